"""The aggregator's peak memory after rounds of 10 and of 100 updates of the CNN's size: the same within 10 %."""

from deployments import peak_megabytes, synthetic

ROUNDS = 3


def peak(devices: int) -> float:
    with synthetic(devices, processes=4) as deployment:
        views = deployment.run(f"memory-{devices}", devices, ROUNDS)
        assert all(len(view.participants) == devices and view.phase == "committed" for view in views)
        return peak_megabytes(deployment.pid("aggregator"))


def main() -> None:
    few, many = peak(10), peak(100)
    print(f"Aggregator's peak resident memory over {ROUNDS} rounds of updates of 6.65 MB:")
    print(f"  10 updates a round   {few:.0f} MB")
    print(f"  100 updates a round  {many:.0f} MB")
    print(f"  ratio                {many / few:.3f} (aim: at most 1.10)")


if __name__ == "__main__":
    main()
