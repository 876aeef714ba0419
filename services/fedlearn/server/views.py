"""How the server shows what it keeps."""

from fedlearn.core.ports import Clock, ModelVersion, Task
from fedlearn.core.rounds import Round
from fedlearn.protocol.messages import Model, ParticipantView, Policy, RoundView, TaskView, VersionView, timestamp


def task_view(task: Task) -> TaskView:
    policy = task.policy
    return TaskView(
        task=task.id,
        state=task.state,
        plan_digest=task.plan_digest,
        policy=Policy(
            goal=policy.goal,
            over_selection=policy.over_selection,
            min_fraction=policy.min_fraction,
            selection_timeout_seconds=policy.selection_timeout_seconds,
            reporting_timeout_seconds=policy.reporting_timeout_seconds,
            aggregation_timeout_seconds=policy.aggregation_timeout_seconds,
        ),
        rounds=task.rounds,
        target_accuracy=task.target_accuracy,
        created_at=timestamp(task.created_at),
        model=None if task.model is None else Model.of(task.model),
    )


def round_view(round_: Round, clock: Clock) -> RoundView:
    aggregate = round_.aggregate
    until = round_.phase_since if round_.phase.ended else clock()
    return RoundView(
        task=round_.id.task,
        round=round_.id.number,
        phase=round_.phase,
        reason=round_.reason,
        base_version=round_.base.version,
        opened_at=timestamp(round_.opened_at),
        seconds=max(0.0, until - round_.opened_at),
        phase_seconds={phase.value: seconds for phase, seconds in round_.phase_seconds.items()},
        participants=tuple(
            ParticipantView(device=device, standing=participant.standing, code=participant.code)
            for device, participant in sorted(round_.participants.items())
        ),
        model=None if aggregate is None else Model.of(aggregate.model),
        examples=None if aggregate is None else aggregate.examples,
        metrics={} if aggregate is None else dict(aggregate.metrics),
    )


def version_view(version: ModelVersion) -> VersionView:
    return VersionView(
        task=version.task,
        model=Model.of(version.ref),
        round=version.round,
        created_at=timestamp(version.created_at),
        evaluation=None if version.evaluation is None else dict(version.evaluation),
    )
