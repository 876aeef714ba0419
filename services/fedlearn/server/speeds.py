"""How fast devices have been lately, by what they say at check-in. A cache: a restarted server measures anew."""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

from fedlearn.core.ids import DeviceId
from fedlearn.core.workload import Work, fit, smoothed
from fedlearn.protocol.messages import MAX_DEVICES_A_ROUND, CheckIn
from fedlearn.protocol.plans import Plan
from fedlearn.telemetry.logs import log

_log = log(__name__)
_REMEMBERED_PLANS = 4


@dataclass(slots=True)
class _Estimate:
    """Of one device with one plan; `round` is the last one that it was measured in, which check-ins repeat."""

    seconds_per_step: float
    round: tuple[str, int]


@dataclass(slots=True)
class _Known:
    examples: int = 0
    estimates: OrderedDict[str, _Estimate] = field(default_factory=OrderedDict)


class Speeds:
    """A smoothed speed for each device and plan.

    Args:
        most: how many devices are remembered; those that were heard of longest ago are forgotten first.
    """

    def __init__(self, most: int = MAX_DEVICES_A_ROUND) -> None:
        self._most = most
        self._devices: OrderedDict[DeviceId, _Known] = OrderedDict()

    def note(self, device: DeviceId, checkin: CheckIn) -> None:
        """Take what a check-in says of the device's shard, and of its speed if that is news."""
        known = self._devices.setdefault(device, _Known())
        self._devices.move_to_end(device)
        known.examples = checkin.examples
        if (speed := checkin.speed) is not None:
            self._measure(known, speed.plan_digest, speed.seconds / speed.steps, (speed.task, speed.round))
        while len(self._devices) > self._most:
            self._devices.popitem(last=False)

    def steps(self, devices: Iterable[DeviceId], plan: Plan) -> dict[DeviceId, int]:
        """The steps for each device of a cohort; none for a device that this server has not heard of, or that has all to do."""
        least = plan.training.min_steps_fraction
        if least == 1.0:
            return {}
        works = {device: self._work(self._devices[device], plan) for device in devices if device in self._devices}
        fitted = fit(works, least)
        less = {device: steps for device, steps in fitted.items() if steps < works[device].steps}
        if less:
            _log.info("slow devices have less to do", devices=len(less), of=len(works), least=min(less.values()))
        return less

    @staticmethod
    def _measure(known: _Known, plan_digest: str, seconds_per_step: float, round_: tuple[str, int]) -> None:
        before = known.estimates.get(plan_digest)
        if before is None or before.round != round_:
            estimate = smoothed(None if before is None else before.seconds_per_step, seconds_per_step)
            known.estimates[plan_digest] = _Estimate(estimate, round_)
            known.estimates.move_to_end(plan_digest)
        while len(known.estimates) > _REMEMBERED_PLANS:
            known.estimates.popitem(last=False)

    @staticmethod
    def _work(known: _Known, plan: Plan) -> Work:
        estimate = known.estimates.get(plan.digest)
        return Work(plan.training.steps(known.examples), None if estimate is None else estimate.seconds_per_step)
