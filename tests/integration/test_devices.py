"""The fleet on one machine, where nobody but the devices themselves tells of them."""

from concurrent.futures import ThreadPoolExecutor

from fedlearn.core.errors import Code
from fedlearn.protocol.views import DeviceView
from support.trial import Trial
from support.world import HandDevice, World, wait_for


def shown(world: World, device: HandDevice) -> DeviceView | None:
    with world.operator() as operator:
        fleet = operator.devices()
    assert fleet.cluster == "none"
    return next((view for view in fleet.devices if view.device == device.id), None)


def test_a_device_is_shown_from_its_first_check_in_to_the_end_of_its_part(world: World, trial: Trial) -> None:
    device, other = trial.device("a", 3), trial.device("b")
    assert shown(world, device) is None
    with ThreadPoolExecutor(1) as threads:
        held = threads.submit(device.assignment)
        view = wait_for(lambda: shown(world, device), "the device to be shown")
        assert (view.waiting, view.part, view.dataset, view.examples, view.pod) == (True, None, trial.name, 10, None)
        trial.submit()
        others = other.assignment()
        assignment = held.result()
    assert device.accept(assignment).is_success
    view = shown(world, device)
    assert view is not None
    assert view.part is not None
    assert (view.waiting, view.part.task, view.part.round, view.part.standing) == (False, trial.name, 1, "accepted")
    for one, part in ((device, assignment), (other, others)):
        assert one.drop_out(part, Code.TRAINING_FAILED).is_success
    trial.reach(1, "abandoned")
    view = shown(world, device)
    assert view is not None
    assert view.part is None or view.part.round > 1
