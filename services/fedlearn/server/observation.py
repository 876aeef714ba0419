"""What a round's way through its phases leaves in metrics and logs."""

from fedlearn.core.ports import ModelVersion, Task
from fedlearn.core.rounds import Phase, Round, Standing
from fedlearn.telemetry.logs import log
from fedlearn.telemetry.metrics import server as metrics
from fedlearn.telemetry.metrics import tasks

_log = log(__name__)


def observe_task(task: Task, now: float) -> None:
    """Show a task that is driven from now on, that rests, or that goes on."""
    policy = task.policy
    longest = policy.selection_timeout_seconds + policy.reporting_timeout_seconds + policy.aggregation_timeout_seconds
    version = 0 if task.model is None else task.model.version
    tasks.begin(task.id, version=version, round_timeout_seconds=longest, now=now)
    if task.state == "paused":
        tasks.rest(task.id)


def recall(latest: Round | None, scored: ModelVersion | None) -> None:
    """Show the figures that an earlier server has left in the database."""
    if latest is not None:
        tasks.ROUND.labels(latest.id.task).set(latest.id.number)
        if latest.aggregate is not None:
            _show_commit(latest)
    if scored is not None and scored.evaluation is not None:
        tasks.scored(scored.task, scored.ref.version, scored.evaluation)


def observe(before: Round | None, after: Round) -> None:
    """Count and tell what has changed.

    Args:
        before: the round as it was, None for one that is new here.
    """
    same = before is not None and before.id == after.id
    if same:
        assert before is not None
        _count_dropouts(before, after)
        if before.phase is after.phase:
            return
        if before.phase in after.phase_seconds:
            metrics.PHASE_SECONDS.labels(before.phase).observe(after.phase_seconds[before.phase])
    else:
        tasks.ROUND.labels(after.id.task).set(after.id.number)
    if not after.phase.ended:
        _log.info("phase", phase=after.phase, devices=len(after.participants))
        return
    metrics.count_round(after.phase, after.reason)
    for participant in after.participants.values():
        metrics.PARTICIPANTS.labels(participant.standing).inc()
    if after.phase is Phase.ABANDONED:
        tasks.abandoned(after.id.task)
    else:
        _show_commit(after)
    _log.info("round ended", outcome=after.phase, reason=after.reason, seconds=round(after.phase_since - after.opened_at, 3))


def _count_dropouts(before: Round, after: Round) -> None:
    for device, participant in after.participants.items():
        earlier = before.participants.get(device)
        if participant.standing is Standing.DROPPED and earlier is not None and earlier.standing is not Standing.DROPPED:
            metrics.count_dropout(earlier.standing, participant.code)


def _show_commit(round_: Round) -> None:
    assert round_.aggregate is not None
    tasks.committed(
        round_.id.task,
        version=round_.aggregate.model.version,
        devices=len(round_.aggregate.contributors),
        examples=round_.aggregate.examples,
        figures=round_.aggregate.metrics,
        now=round_.phase_since,
    )
