"""How a task begins: its plan is checked, version 0 gets a place, and once it lies there, rounds may start."""

import asyncio
import json
from dataclasses import replace

from fedlearn.core.errors import Code, Refusal
from fedlearn.core.ids import TaskId
from fedlearn.core.ports import Task
from fedlearn.core.rounds import ModelRef
from fedlearn.protocol.aggregations import check_reports
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
    check_reports(plan.aggregation, policy)
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
