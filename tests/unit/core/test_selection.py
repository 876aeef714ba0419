import numpy as np
import pytest

from fedlearn.core.ids import DeviceId
from fedlearn.core.selection import Census, Pace, choose

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


class TestPaceSteering:
    def test_holds_a_small_fleet_together(self) -> None:
        rng = np.random.default_rng(0)
        waits = [Pace().come_back(Census(50, 20), 30.0, now, rng) for now in np.arange(0.0, 100.0, 0.7)]
        assert max(waits) <= 1.0

    def test_lets_devices_that_can_not_be_held_meet(self) -> None:
        rng = np.random.default_rng(0)
        arrivals = [
            now + Pace(meeting_seconds=15.0).come_back(Census(50, 20), 0.0, now, rng) for now in np.arange(0.0, 14.9, 0.1)
        ]
        assert 15.0 <= min(arrivals) <= max(arrivals) <= 16.0

    def test_spreads_a_large_fleet_so_that_the_server_is_asked_no_more_often_than_it_bears(self) -> None:
        rng, pace = np.random.default_rng(0), Pace(checkins_per_second=200.0)
        waits = np.array([pace.come_back(Census(100_000, 130), 30.0, 0.0, rng) for _ in range(5000)])
        assert 100_000 / (30.0 + waits.mean()) <= 202.0
        assert waits.std() > 0.25 * waits.mean(), "no two devices that came together come back together"

    def test_lets_no_more_devices_wait_than_the_rounds_want_with_some_to_spare(self) -> None:
        pace = Pace(spare=3.0, checkins_per_second=1000.0)
        away = pace.away_seconds(Census(10_000, 130), 30.0)
        assert 10_000 * 30.0 / (30.0 + away) == pytest.approx(3 * 130)

    def test_keeps_nobody_away_for_longer_than_it_may(self) -> None:
        assert Pace(longest_seconds=900.0).away_seconds(Census(10_000_000, 0), 30.0) == 900.0

    @pytest.mark.parametrize("wanted", [0, 13, 1300])
    def test_keeps_a_fleet_away_the_longer_the_larger_it_is(self, wanted: int) -> None:
        away = [Pace().away_seconds(Census(fleet, wanted), 30.0) for fleet in (1, 10, 100, 1000, 10_000, 100_000)]
        assert away == sorted(away)
        assert away[0] == 0.0
