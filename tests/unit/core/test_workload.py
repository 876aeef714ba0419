import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlearn.core.ids import DeviceId
from fedlearn.core.workload import Work, fit, smoothed, within


def fitted(min_fraction: float, *works: tuple[int, float | None]) -> list[int]:
    cohort = {DeviceId(str(number)): Work(*work) for number, work in enumerate(works)}
    return list(fit(cohort, min_fraction).values())


def test_a_slow_device_does_as_much_as_it_can_while_the_median_device_does_all() -> None:
    assert fitted(0.1, (600, 0.01), (600, 0.01), (600, 0.01), (600, 0.01), (600, 0.05)) == [600, 600, 600, 600, 120]


def test_a_large_shard_is_slow_as_well() -> None:
    assert fitted(0.1, (100, 0.01), (100, 0.01), (300, 0.01)) == [100, 100, 100]


def test_a_fast_device_is_given_no_more_than_all() -> None:
    assert fitted(0.1, (100, 0.01), (100, 0.01), (100, 0.001)) == [100, 100, 100]


def test_nobody_is_given_less_than_the_plan_allows() -> None:
    assert fitted(0.25, (100, 0.01), (100, 0.01), (101, 1.0)) == [100, 100, 26]


def test_of_two_devices_the_faster_one_says_how_long_it_takes() -> None:
    assert fitted(0.1, (100, 0.01), (100, 0.02)) == [100, 50]


def test_who_has_not_been_measured_does_all_and_says_nothing_about_the_others() -> None:
    assert fitted(0.1, (100, None), (100, 0.01), (100, 0.02)) == [100, 100, 50]
    assert fitted(0.1, (100, None), (50, None)) == [100, 50]
    assert fitted(0.1) == []


@given(
    works=st.lists(st.tuples(st.integers(1, 10_000), st.none() | st.floats(1e-6, 1e3)), max_size=20),
    min_fraction=st.floats(0.01, 1),
)
def test_steps_stay_within_bounds_and_most_devices_end_by_the_same_time(
    works: list[tuple[int, float | None]], min_fraction: float
) -> None:
    steps = fitted(min_fraction, *works)
    times = sorted(whole * speed for whole, speed in works if speed is not None)
    for fit_to, (whole, speed) in zip(steps, works, strict=True):
        least = math.ceil(whole * min_fraction)
        assert least <= fit_to <= whole
        if speed is None:
            assert fit_to == whole
        elif fit_to > least:
            assert fit_to * speed <= times[(len(times) - 1) // 2] * (1 + 1e-9)


@pytest.mark.parametrize(("steps", "becomes"), [(0, 25), (25, 25), (60, 60), (101, 100)])
def test_a_device_keeps_to_its_plans_bounds(steps: int, becomes: int) -> None:
    assert within(steps, 100, 0.25) == becomes


def test_an_estimate_follows_a_change_and_forgets_an_outlier() -> None:
    estimate = smoothed(None, 0.01)
    assert estimate == 0.01
    estimate = smoothed(estimate, 0.09)
    for _ in range(6):
        estimate = smoothed(estimate, 0.01)
    assert estimate == pytest.approx(0.01, rel=0.1)
