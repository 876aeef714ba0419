import numpy as np

from fedlearn.core.ids import DeviceId
from fedlearn.core.selection import choose

FLEET = [DeviceId(f"device-{i}") for i in range(20)]


def test_a_cohort_has_the_wanted_size_and_no_device_twice() -> None:
    cohort = choose(FLEET, 7, np.random.default_rng(0))
    assert len(set(cohort)) == len(cohort) == 7
    assert set(cohort) <= set(FLEET)


def test_a_small_fleet_is_taken_whole() -> None:
    assert choose(FLEET[:3], 7, np.random.default_rng(0)) == tuple(sorted(FLEET[:3]))


def test_the_same_generator_chooses_the_same_whatever_the_order_of_check_in() -> None:
    assert choose(FLEET, 5, np.random.default_rng(4)) == choose(FLEET[::-1], 5, np.random.default_rng(4))


def test_every_device_is_as_likely_as_any_other() -> None:
    rng, counts = np.random.default_rng(1), dict.fromkeys(FLEET, 0)
    for _ in range(2000):
        for device in choose(FLEET, 5, rng):
            counts[device] += 1
    # 2,000 draws of 5 in 20: 500 each, with a standard deviation of 19
    assert all(400 < count < 600 for count in counts.values())
