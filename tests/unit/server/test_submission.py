"""What is refused when a task is submitted, before anything is stored or anybody asked."""

import asyncio
import json
from typing import Any, cast

import pytest

from fedlearn.core.errors import Code, Refusal
from fedlearn.protocol.views import Policy, TaskSubmission
from fedlearn.server.coordinator import Coordinator
from fedlearn.server.submission import submit_task
from support.world import small_plan


class _Reached(Exception):
    """The submission has come as far as what is around the coordinator."""


class _Nobody:
    @property
    def around(self) -> object:
        raise _Reached


def submit(rule: dict[str, Any], **policy: Any) -> None:
    plan = small_plan(aggregation={"strategy": "fedavg", "rule": rule})
    document = json.loads(plan.canonical)
    submission = TaskSubmission(task="t", plan=document, policy=Policy(**policy), model_size_bytes=1, model_sha256="0" * 64)
    asyncio.run(submit_task(cast("Coordinator", _Nobody()), submission))


@pytest.mark.parametrize(
    ("rule", "goal", "why"),
    [
        pytest.param("multi_krum", 4, "needs 5 updates or more; the policy's goal is 4", id="too few"),
        pytest.param("geometric_median", 3200, "takes 4096 updates or fewer; .* is 4160", id="too many, with over-selection"),
    ],
)
def test_a_rule_that_does_not_take_the_policys_number_of_updates_is_refused(rule: str, goal: int, why: str) -> None:
    with pytest.raises(Refusal, match=why) as refusal:
        submit({"name": rule}, goal=goal, over_selection=1.3)
    assert refusal.value.code is Code.PLAN_INVALID


@pytest.mark.parametrize(("rule", "goal"), [("multi_krum", 4096), ("median", 10_000)])
def test_a_rule_that_takes_as_many_is_not(rule: str, goal: int) -> None:
    with pytest.raises(_Reached):
        submit({"name": rule}, goal=goal, over_selection=1.0)
