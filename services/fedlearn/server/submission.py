"""How a task begins: its plan is checked, version 0 gets a place, and once it lies there, rounds may start."""

import asyncio
import json
import math
from dataclasses import replace

from fedlearn.core.errors import Code, Refusal
from fedlearn.core.ids import TaskId
from fedlearn.core.policy import RoundPolicy
from fedlearn.core.ports import Task
from fedlearn.core.rounds import ModelRef
from fedlearn.protocol.aggregations import Aggregation
from fedlearn.protocol.messages import Upload
from fedlearn.protocol.plans import read_plan
from fedlearn.protocol.tensors import check_header, header_bytes
from fedlearn.protocol.views import TaskAccepted, TaskSubmission
from fedlearn.server.coordinator import Coordinator
from fedlearn.telemetry.logs import log

_log = log(__name__)


async def submit_task(coordinator: Coordinator, submission: TaskSubmission) -> TaskAccepted:
    """Store a checked task that waits for its version 0; to submit it once more while it waits gives version 0 a place again.

    Raises:
        Refusal: `plan_invalid`, `task_exists`, or the aggregator's own.
        Outage: `aggregator_unreachable`.
    """
    plan, task_id, policy = read_plan(json.dumps(submission.plan)), TaskId(submission.task), submission.policy.domain()
    _check_reports(plan.aggregation, policy)
    around = coordinator.around
    place = await around.aggregator.place_model(
        task_id,
        minimum=policy.minimum,
        mixed=plan.aggregation.mixed(policy.minimum),
        size_bytes=submission.model_size_bytes,
        sha256=submission.model_sha256,
    )
    task = Task(
        id=task_id,
        state="waiting_for_model",
        plan_digest=plan.digest,
        policy=policy,
        rounds=submission.rounds,
        created_at=around.clock(),
        upload=ModelRef(0, place.key, submission.model_sha256, submission.model_size_bytes),
        target_accuracy=submission.target_accuracy,
    )
    try:
        await asyncio.to_thread(around.store.add_task, task, plan.canonical)
    except Refusal as refusal:
        # its submitter may have died before version 0 was there: that must not take the name away for ever
        if refusal.code is not Code.TASK_EXISTS or not await _waits(coordinator, task):
            raise
    _log.info("task submitted", task=task_id, plan=plan.digest, parameters=plan.parameters)
    upload = Upload(url=place.url, headers=place.headers, valid_seconds=place.valid_seconds)
    return TaskAccepted(task=task_id, plan_digest=plan.digest, upload=upload)


def _check_reports(aggregation: Aggregation, policy: RoundPolicy) -> None:
    """Whether every round that the policy lets close has as many updates as the plan's rule takes: or devices would train for
    nothing.

    Raises:
        Refusal: `plan_invalid`.
    """
    needed, most, selected = aggregation.least_reports, aggregation.most_reports, policy.selection.goal
    if most is not None and selected > most:
        raise Refusal(
            Code.PLAN_INVALID,
            f"The plan's aggregation takes {most} updates or fewer; the policy's goal times its over_selection is {selected}: "
            "lower one of them.",
        )
    if needed > policy.goal:
        raise Refusal(
            Code.PLAN_INVALID,
            f"The plan's aggregation needs {needed} updates or more; the policy's goal is {policy.goal}: raise it.",
        )
    if needed > policy.minimum:
        raise Refusal(
            Code.PLAN_INVALID,
            f"The plan's aggregation needs {needed} updates or more, and by the policy's goal of {policy.goal} and its "
            f"min_fraction of {policy.min_fraction:g} a round may close with {policy.minimum}: raise min_fraction to "
            f"{math.ceil(100 * needed / policy.goal) / 100:g} or more, or the goal.",
        )


async def _waits(coordinator: Coordinator, task: Task) -> bool:
    """Whether just this task is stored, and waits for its version 0."""
    stored = await asyncio.to_thread(coordinator.around.store.task, task.id)
    return replace(stored, created_at=task.created_at) == task


async def start_task(coordinator: Coordinator, task_id: TaskId) -> Task:
    """Check version 0 in storage against its promise and its plan, and begin with the rounds.

    Raises:
        Refusal: `task_unknown`, `task_state`, `model_missing` or `model_mismatch`.
    """
    around = coordinator.around
    task: Task = await asyncio.to_thread(around.store.task, task_id)
    if task.state == "waiting_for_model":
        size = await asyncio.to_thread(around.models.size, task.upload.key)
        if size is None:
            raise Refusal(Code.MODEL_MISSING, f"Version 0 of {task_id!r} is not uploaded yet.")
        if size != task.upload.size_bytes:
            raise Refusal(Code.MODEL_MISMATCH, f"Version 0 has {size} bytes instead of {task.upload.size_bytes}.")
        plan = await coordinator.plan(task.plan_digest)
        prefix = await asyncio.to_thread(around.models.get, task.upload.key, length=min(size, header_bytes(plan)))
        check_header(prefix, size, plan)
    task = await asyncio.to_thread(around.store.start_task, task_id, around.clock())
    await coordinator.run_task(task)
    return task
