from dataclasses import replace
from typing import Any

import pytest

from fedlearn.adapters.kubernetes.events import Happening
from fedlearn.core.errors import Code
from fedlearn.core.ids import DeviceId, RoundId, TaskId
from fedlearn.core.policy import RoundPolicy
from fedlearn.core.rounds import Aggregate, ModelRef, Participant, Phase, Round, Standing
from fedlearn.server.cluster import happening

OPENED = 1_800_000_000.25
BASE, NEW = ModelRef(3, "k", "0" * 64, 1), ModelRef(4, "k", "1" * 64, 1)
TOLD = {f"fedlearn-device-{n}": Participant(Standing.REPORTED) for n in range(2)}
COHORT = {**TOLD, "fedlearn-device-2": Participant(Standing.DROPPED, Code.DEVICE_STOPPING)}


def ended(phase: Phase, **changes: Any) -> Round:
    round_ = Round(RoundId(TaskId("mnist-2nn"), 4), RoundPolicy(3), BASE, OPENED, phase, OPENED + 12.34)
    cohort = {DeviceId(device): participant for device, participant in COHORT.items()}
    return replace(round_, **{"participants": cohort, **changes})


def committed(**metrics: float) -> Happening:
    aggregate = Aggregate(NEW, frozenset(map(DeviceId, TOLD)), 10_800, metrics)
    return happening(ended(Phase.COMMITTED, aggregate=aggregate), "fedlearn-device")


class TestACommittedRound:
    def test_is_told_with_its_version_and_who_made_it(self) -> None:
        told = committed(accuracy=0.9312, loss=0.2)
        assert told.note == (
            "mnist-2nn round 4 committed version 4: 2 of 3 devices reported, 10,800 examples, "
            "accuracy 93.1% on their hold-outs before it, 12.3 s."
        )
        assert (told.reason, told.action, told.warning, told.at) == ("RoundCommitted", "Commit", False, OPENED + 12.34)

    def test_may_have_no_figures(self) -> None:
        assert committed().note == "mnist-2nn round 4 committed version 4: 2 of 3 devices reported, 10,800 examples, 12.3 s."


class TestAnAbandonedRound:
    def test_is_a_warning_that_says_why(self) -> None:
        told = happening(ended(Phase.ABANDONED, reason=Code.TOO_FEW_REPORTS), "fedlearn-device")
        assert told.note == (
            "mnist-2nn round 4 abandoned after 12.3 s: 2 of 3 devices reported. "
            "Too few devices reported before the deadline. [too_few_reports]"
        )
        assert (told.reason, told.action, told.warning) == ("RoundAbandoned", "Abandon", True)

    def test_may_have_selected_nobody(self) -> None:
        told = happening(ended(Phase.ABANDONED, reason=Code.TOO_FEW_DEVICES, participants={}), "fedlearn-device")
        assert told.note.startswith("mnist-2nn round 4 abandoned after 12.3 s: no device was selected.")


class TestItsName:
    def test_is_the_same_for_whoever_tells_it(self) -> None:
        assert committed().name == committed(accuracy=0.5).name == "fedlearn-device.mnist-2nn.4.1a3185c50fa"

    def test_is_another_for_a_round_of_the_same_number_in_a_later_installation(self) -> None:
        again = ended(Phase.COMMITTED, opened_at=OPENED + 1)
        assert happening(again, "fedlearn-device").name != committed().name

    @pytest.mark.parametrize("task", ["t", "t" * 63])
    def test_is_one_that_kubernetes_takes(self, task: str) -> None:
        round_ = ended(Phase.COMMITTED, id=RoundId(TaskId(task), 2**31))
        name = happening(round_, "d" * 63).name
        assert len(name) <= 253
        assert name == name.lower()
