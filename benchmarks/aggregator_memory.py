"""The aggregator's peak memory after rounds of 10 and of 100 updates of the CNN's size, in a whole deployment."""

from deployments import peak_megabytes, synthetic
from results import Figure, show

ROUNDS = 3


def peak(devices: int) -> float:
    with synthetic(devices, processes=4) as deployment:
        views = deployment.run(f"memory-{devices}", devices, ROUNDS)
        if lost := [(view.round, view.reason) for view in views if view.phase != "committed"]:
            print(f"Not committed: {lost}.", flush=True)
        return peak_megabytes(deployment.pid("aggregator"))


def main() -> None:
    few, many = peak(10), peak(100)
    figures = [
        Figure(f"peak resident memory, {ROUNDS} rounds of 10 updates of 6.65 MB", few, "MB"),
        Figure(f"peak resident memory, {ROUNDS} rounds of 100 updates of 6.65 MB", many, "MB"),
        Figure("peak resident memory, rounds of 100 updates by those of 10", many / few, "×", at_most=1.1),
    ]
    print(show(figures))


if __name__ == "__main__":
    main()
