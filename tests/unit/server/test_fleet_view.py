import asyncio
from collections.abc import Mapping

import httpx
import pytest
from fastapi import FastAPI

from fedlearn.adapters.identity import Caller
from fedlearn.core.errors import Code
from fedlearn.core.ids import DeviceId
from fedlearn.core.pods import Pod, PodState
from fedlearn.core.rounds import DeviceAccepted, Phase, Standing
from fedlearn.protocol.messages import CheckIn, Unfit
from fedlearn.protocol.views import DeviceView, FleetView
from fedlearn.server.fleet import Fleet
from fedlearn.server.roster import NoCluster, Roster, Sight
from fedlearn.server.routes.fleet import fleet_routes
from support.desk import Desk, until

CHECKIN = CheckIn(dataset="mnist", examples=5400, runtime="fedlearn 0.1.0")


class SeenCluster(NoCluster):
    def __init__(self, pods: Mapping[str, Pod], sight: Sight = "watching") -> None:
        self.pods, self.sight = pods, sight


def pods(**states: PodState) -> Mapping[str, Pod]:
    return {name: Pod(name, f"uid-of-{name}", state, "node1") for name, state in states.items()}


def visit(roster: Roster, *devices: str) -> None:
    for device in devices:
        pod, _, slot = device.partition("/")
        caller = Caller("fl", "fedlearn-device", pod, f"uid-of-{pod}", "node1")
        roster.check_in(roster.admit(caller, int(slot) if slot else None), CHECKIN)


async def shown(desk: Desk, roster: Roster, cluster: NoCluster | None = None) -> FleetView:
    """The answer of the route itself."""
    app = FastAPI()
    app.include_router(fleet_routes(desk.coordinator, roster, cluster or NoCluster()))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
        answer = await client.get("/v1/devices")
    assert answer.status_code == 200
    return FleetView.model_validate_json(answer.content)


async def one(desk: Desk, roster: Roster, cluster: NoCluster | None = None) -> DeviceView:
    (device,) = (await shown(desk, roster, cluster)).devices
    return device


@pytest.fixture
def roster(desk: Desk) -> Roster:
    return Roster(desk.around.clock)


async def test_nobody_has_checked_in_yet(desk: Desk, roster: Roster) -> None:
    assert await shown(desk, roster) == FleetView(cluster="none", devices=())


class TestOnOneMachine:
    async def test_a_device_is_known_by_its_check_in_alone(self, desk: Desk, roster: Roster) -> None:
        visit(roster, "device-0/1")
        device = await one(desk, roster)
        assert (device.device, device.dataset, device.examples, device.runtime) == (
            "device-0/1",
            "mnist",
            5400,
            "fedlearn 0.1.0",
        )
        assert device.last_seen is not None
        assert (device.waiting, device.part, device.pod) == (False, None, None)

    async def test_a_device_waits_while_its_check_in_is_held(self, desk: Desk, roster: Roster) -> None:
        visit(roster, "device-0")
        held = desk.check_in("device-0")["device-0"]
        await asyncio.sleep(0)
        assert (await one(desk, roster)).waiting
        held.cancel()
        await asyncio.gather(held, return_exceptions=True)
        assert not (await one(desk, roster)).waiting

    async def test_a_device_is_shown_with_its_part_until_the_round_ends(self, desk: Desk, roster: Roster) -> None:
        visit(roster, "a", "b")
        held = desk.check_in("a", "b")
        runner = await desk.drive(desk.add_task(rounds=1))
        round_ = await desk.reach(1, Phase.REPORTING)
        await runner.tell(round_.id, DeviceAccepted(DeviceId("b")))
        parts = {device.device: device.part for device in (await shown(desk, roster)).devices}
        assert {name: part and (part.task, part.round, part.standing) for name, part in parts.items()} == {
            "a": ("t", 1, "selected"),
            "b": ("t", 1, "accepted"),
        }
        await desk.coordinator.cancel(round_.id.task)
        assert [device.part for device in (await shown(desk, roster)).devices] == [None, None]
        await asyncio.gather(*held.values())

    async def test_after_a_restart_who_is_in_a_round_is_shown_before_it_checks_in(self, desk: Desk, roster: Roster) -> None:
        desk.check_in("a", "b")
        await desk.drive(desk.add_task(rounds=1))
        await desk.reach(1, Phase.REPORTING)
        device = (await shown(desk, roster)).devices[0]
        assert device.part is not None
        assert (device.device, device.examples, device.last_seen) == ("a", None, None)

    async def test_devices_stand_in_the_order_of_their_numbers(self, desk: Desk, roster: Roster) -> None:
        visit(roster, "device-10", "device-2/11", "device-2/3", "device-1")
        assert [d.device for d in (await shown(desk, roster)).devices] == ["device-1", "device-2/3", "device-2/11", "device-10"]


class TestInACluster:
    async def test_a_device_is_shown_with_its_pod(self, desk: Desk, roster: Roster) -> None:
        visit(roster, "device-0")
        pod = (await one(desk, roster, SeenCluster(pods(**{"device-0": PodState.READY})))).pod
        assert pod is not None
        assert (pod.state, pod.node) == ("ready", "node1")

    async def test_a_pod_that_has_not_checked_in_is_shown_as_well(self, desk: Desk, roster: Roster) -> None:
        device = await one(desk, roster, SeenCluster(pods(**{"device-0": PodState.PENDING})))
        assert device.pod is not None
        assert (device.device, device.pod.state, device.last_seen) == ("device-0", "pending", None)

    async def test_a_pod_of_several_devices_is_shown_by_them_alone(self, desk: Desk, roster: Roster) -> None:
        visit(roster, "device-0/0", "device-0/1")
        devices = (await shown(desk, roster, SeenCluster(pods(**{"device-0": PodState.READY})))).devices
        assert [(device.device, device.pod and device.pod.state) for device in devices] == [
            ("device-0/0", "ready"),
            ("device-0/1", "ready"),
        ]

    async def test_a_device_whose_pod_is_gone_has_none(self, desk: Desk, roster: Roster) -> None:
        visit(roster, "device-0")
        assert (await one(desk, roster, SeenCluster({}))).pod is None

    async def test_that_the_cluster_is_out_of_sight_is_said(self, desk: Desk, roster: Roster) -> None:
        seen = SeenCluster(pods(**{"device-0": PodState.READY}), sight="unavailable")
        assert (await shown(desk, roster, seen)).cluster == "unavailable"


class TestADeviceThatIsUnfit:
    UNFIT = CheckIn(
        dataset="mnist", examples=0, unfit=Unfit(code=Code.SHARD_INVALID, detail="It holds no example."), wait_seconds=10
    )

    async def test_is_shown_with_its_sentence(self, desk: Desk, roster: Roster) -> None:
        visit(roster, "device-0")
        roster.check_in(DeviceId("device-0"), self.UNFIT)
        device = await one(desk, roster)
        assert device.unfit == self.UNFIT.unfit
        assert (device.waiting, device.examples) == (False, None)
        visit(roster, "device-0")
        device = await one(desk, roster)
        assert (device.unfit, device.examples) == (None, 5400)

    async def test_is_answered_at_once_and_never_selected(self, desk: Desk) -> None:
        await desk.drive(desk.add_task(rounds=1, goal=1))
        async with asyncio.timeout(5):
            assert await desk.coordinator.check_in(DeviceId("a"), self.UNFIT, 10.0) is None
        assert desk.fleet.waiting("mnist") == []
        assert (await desk.reach(1, Phase.SELECTION)).participants == {}

    async def test_leaves_the_round_that_it_had_a_part_in(self, desk: Desk) -> None:
        held = desk.check_in("a", "b")
        await desk.drive(desk.add_task(rounds=1))
        await asyncio.gather(*held.values())
        await desk.coordinator.check_in(DeviceId("a"), self.UNFIT, 10.0)
        participant = desk.round(1).participants[DeviceId("a")]
        assert (participant.standing, participant.code) == (Standing.DROPPED, Code.SHARD_INVALID)


class TestADeviceThatLeaves:
    async def test_is_not_selected(self, desk: Desk) -> None:
        leaving = {DeviceId("b")}
        desk.fleet._is_leaving = leaving.__contains__
        desk.check_in("a", "b")
        await desk.drive(desk.add_task(rounds=1, goal=2, min_fraction=1.0))
        await until(lambda: desk.fleet.holds(DeviceId("b")))
        assert desk.fleet.waiting("mnist") == [DeviceId("a")]
        await desk.reach(1, Phase.SELECTION)
        desk.check_in("c")
        round_ = await desk.reach(1, Phase.REPORTING)
        assert set(round_.participants) == {"a", "c"}

    async def test_waits_for_nothing_but_is_still_answered_when_it_has_a_part(self) -> None:
        fleet = Fleet(is_leaving=lambda _device: True)
        held = asyncio.create_task(fleet.wait(DeviceId("a"), CHECKIN, 10))
        await asyncio.sleep(0)
        assert fleet.holds(DeviceId("a"))
        assert fleet.waiting("mnist") == []
        held.cancel()
