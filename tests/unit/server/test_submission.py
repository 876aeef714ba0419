"""What is refused of a task before anything is stored of it: rounds that could not have a result."""

import re
from typing import Any

import pytest

from fedlearn.core.errors import Code, Refusal
from fedlearn.core.ids import TaskId
from fedlearn.protocol.views import Policy, TaskSubmission
from fedlearn.server.submission import submit_task
from support.desk import Desk
from support.world import small_plan


def submission(rule: dict[str, Any] | None = None, **policy: Any) -> TaskSubmission:
    plan = small_plan(aggregation={"strategy": "fedavg"} if rule is None else {"strategy": "fedavg", "rule": rule})
    return TaskSubmission(
        task="t",
        plan=plan.model_dump(mode="json"),
        policy=Policy(**policy),
        model_size_bytes=100,
        model_sha256="0" * 64,
    )


async def refused(desk: Desk, submitted: TaskSubmission) -> Refusal:
    with pytest.raises(Refusal) as caught:
        await submit_task(desk.coordinator, submitted)
    with pytest.raises(Refusal) as unknown:
        desk.store.task(TaskId("t"))
    assert unknown.value.code is Code.TASK_UNKNOWN
    return caught.value


@pytest.mark.parametrize(
    ("rule", "policy", "said"),
    [
        pytest.param({"name": "multi_krum"}, {"goal": 4, "min_fraction": 1.0}, "needs 5 .* goal is 4: raise", id="the goal"),
        pytest.param(
            {"name": "multi_krum"}, {"goal": 5}, "close with 4: raise min_fraction to 1 or", id="the default fraction"
        ),
        pytest.param({"name": "krum", "byzantine": 2}, {"goal": 9, "min_fraction": 0.5}, "close with 5.* to 0.78", id="Krum"),
        pytest.param({"name": "trimmed_mean"}, {"goal": 10, "min_fraction": 0.4}, "close with 4.* to 0.5", id="trimmed mean"),
        pytest.param(
            {"name": "geometric_median"}, {"goal": 3200, "over_selection": 1.3}, "takes 4096 .* is 4160: lower", id="too many"
        ),
    ],
)
async def test_a_policy_whose_rounds_close_with_too_few_or_too_many_for_the_rule_is_refused(
    desk: Desk, rule: dict[str, Any], policy: dict[str, Any], said: str
) -> None:
    refusal = await refused(desk, submission(rule, **policy))
    assert refusal.code is Code.PLAN_INVALID
    assert re.search(said, refusal.detail)
    assert desk.aggregator.placed == []


@pytest.mark.parametrize(
    ("rule", "policy", "minimum", "mixed"),
    [
        pytest.param(None, {"goal": 3, "min_fraction": 0.1}, 1, 1, id="mean"),
        pytest.param(None, {"goal": 3, "min_fraction": 0.5}, 2, 2, id="mean, rounded up"),
        pytest.param({"name": "median"}, {"goal": 3, "min_fraction": 0.1}, 1, 1, id="median"),
        pytest.param({"name": "median"}, {"goal": 10_000}, 8_000, 8_000, id="median of many"),
        pytest.param(
            {"name": "multi_krum"},
            {"goal": 4096, "over_selection": 1.0, "min_fraction": 1.0},
            4096,
            4095,
            id="Multi-Krum of as many as it takes",
        ),
        pytest.param({"name": "krum"}, {"goal": 6}, 5, 1, id="Krum"),
        pytest.param({"name": "multi_krum"}, {"goal": 6}, 5, 4, id="Multi-Krum"),
        pytest.param({"name": "multi_krum", "keep": 2}, {"goal": 5, "min_fraction": 1.0}, 5, 2, id="a small keep"),
    ],
)
async def test_the_aggregator_is_asked_about_the_fewest_reports_of_a_round_and_what_the_rule_mixes_of_them(
    desk: Desk, rule: dict[str, Any] | None, policy: dict[str, Any], minimum: int, mixed: int
) -> None:
    submitted = submission(rule, **policy)
    await submit_task(desk.coordinator, submitted)
    assert desk.aggregator.placed == [(minimum, mixed)]
    assert desk.store.task(TaskId("t")).policy.minimum == minimum


async def test_what_the_aggregator_refuses_is_not_stored(desk: Desk) -> None:
    desk.aggregator.refuses = Refusal(Code.COHORT_TOO_SMALL, "Too few.")
    assert await refused(desk, submission({"name": "krum"}, goal=9)) is desk.aggregator.refuses
