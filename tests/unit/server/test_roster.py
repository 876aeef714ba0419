from collections.abc import Mapping

import pytest

from fedlearn.adapters.identity import Caller
from fedlearn.core.errors import Code, Refusal
from fedlearn.core.ids import DeviceId
from fedlearn.core.pods import Pod, PodState
from fedlearn.protocol.messages import CheckIn
from fedlearn.server.roster import NoCluster, Roster, Sight

NAME = "fedlearn-device-0"
CHECKIN = CheckIn(dataset="mnist", examples=10)
NOW = 1_800_000_000.0


def caller(uid: str, pod: str = NAME) -> Caller:
    return Caller("fl", "fedlearn-device", pod, uid, "node1")


class SeenCluster(NoCluster):
    """A cluster whose pods a test sets."""

    def __init__(self, *pods: Pod, sight: Sight = "watching") -> None:
        self.pods: Mapping[str, Pod] = {pod.name: pod for pod in pods}
        self.sight = sight


class Time:
    now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def roster() -> Roster:
    return Roster(Time())


def replaced(roster: Roster, uid: str) -> bool:
    """Whether another pod has taken the place of the one with this UID."""
    try:
        roster.admit(caller(uid), None)
    except Refusal as refusal:
        return refusal.code is Code.DEVICE_REPLACED
    return False


class TestAdmission:
    def test_a_device_is_its_pod_or_a_slot_of_it(self, roster: Roster) -> None:
        assert roster.admit(caller("first"), None) == NAME
        assert roster.admit(caller("first"), 3) == f"{NAME}/3"

    def test_a_slot_out_of_range_is_refused(self, roster: Roster) -> None:
        with pytest.raises(Refusal) as refusal:
            roster.admit(caller("first"), -1)
        assert refusal.value.code is Code.BAD_REQUEST

    def test_the_newer_of_two_pods_of_a_name_is_the_device(self, roster: Roster) -> None:
        assert not replaced(roster, "first")
        assert not replaced(roster, "second")
        assert replaced(roster, "first")
        assert not replaced(roster, "second")

    def test_all_slots_of_a_pod_are_replaced_with_it(self, roster: Roster) -> None:
        for slot in (0, 1):
            roster.admit(caller("first"), slot)
        roster.admit(caller("second"), 0)
        with pytest.raises(Refusal):
            roster.admit(caller("first"), 1)

    def test_a_pod_of_another_name_is_another_device(self, roster: Roster) -> None:
        roster.admit(caller("first"), None)
        assert roster.admit(caller("other", "fedlearn-device-1"), None) == "fedlearn-device-1"
        assert not replaced(roster, "first")

    def test_a_pod_may_be_replaced_time_and_again(self, roster: Roster) -> None:
        for number in range(20):
            assert not replaced(roster, str(number))
        assert all(replaced(roster, str(number)) for number in range(15, 19))

    @pytest.mark.parametrize(
        ("cluster", "old_is_refused"),
        [
            (SeenCluster(Pod(NAME, "new", PodState.READY)), True),
            (SeenCluster(Pod(NAME, "new", PodState.READY), sight="unavailable"), False),
            (SeenCluster(Pod(NAME, "new", PodState.TERMINATING)), False),
            (SeenCluster(Pod(NAME, "old", PodState.READY)), False),
            (SeenCluster(), False),
        ],
        ids=["which is there", "which was there", "which goes", "which it does not see yet", "which it does not see"],
    )
    def test_after_a_restart_the_old_pod_does_not_replace_the_new_one(self, cluster: SeenCluster, old_is_refused: bool) -> None:
        roster = Roster(Time(), cluster)
        assert not replaced(roster, "new")
        assert replaced(roster, "old") is old_is_refused


class TestVisits:
    def test_the_last_check_in_is_known_and_when_it_was(self) -> None:
        time = Time()
        roster = Roster(time)
        device = roster.admit(caller("first"), None)
        assert not roster.visits
        roster.check_in(device, CHECKIN)
        time.now += 60
        roster.check_in(device, CheckIn(dataset="mnist", examples=20))
        visit = roster.visits[device]
        assert (visit.checkin.examples, visit.at) == (20, NOW + 60)

    def test_any_other_word_shows_that_a_device_is_alive(self) -> None:
        time = Time()
        roster = Roster(time)
        roster.check_in(roster.admit(caller("first"), None), CHECKIN)
        time.now += 60
        roster.admit(caller("first"), None)
        assert roster.visits[DeviceId(NAME)].at == NOW + 60

    def test_a_device_is_forgotten_a_day_later_and_with_it_which_pod_it_was(self) -> None:
        time = Time()
        roster = Roster(time)
        roster.check_in(roster.admit(caller("first"), None), CHECKIN)
        roster.admit(caller("second"), None)
        time.now += 86_401
        other = roster.admit(caller("other", "fedlearn-device-1"), None)
        roster.check_in(other, CHECKIN)
        assert list(roster.visits) == [other]
        assert not replaced(roster, "first")

    def test_who_was_heard_of_today_stays(self) -> None:
        time = Time()
        roster = Roster(time)
        devices = [roster.admit(caller(str(n), f"device-{n}"), None) for n in range(3)]
        for device in devices:
            roster.check_in(device, CHECKIN)
        time.now += 80_000
        roster.check_in(devices[0], CHECKIN)
        time.now += 80_000
        roster.check_in(devices[2], CHECKIN)
        assert list(roster.visits) == [devices[0], devices[2]]


class TestLeaving:
    @pytest.mark.parametrize("state", PodState)
    def test_a_device_leaves_with_its_pod(self, state: PodState) -> None:
        roster = Roster(Time(), SeenCluster(Pod(NAME, "first", state)))
        roster.admit(caller("first"), 2)
        assert roster.is_leaving(DeviceId(f"{NAME}/2")) is (state in (PodState.TERMINATING, PodState.ENDED))

    def test_a_new_pod_does_not_leave_with_the_one_before_it(self) -> None:
        roster = Roster(Time(), SeenCluster(Pod(NAME, "first", PodState.TERMINATING)))
        roster.admit(caller("first"), None)
        assert roster.is_leaving(DeviceId(NAME))
        roster.admit(caller("second"), None)
        assert not roster.is_leaving(DeviceId(NAME))

    def test_nobody_leaves_where_there_is_no_cluster(self, roster: Roster) -> None:
        roster.admit(caller("first"), None)
        assert not roster.is_leaving(DeviceId(NAME))
