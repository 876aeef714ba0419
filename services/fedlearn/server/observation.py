"""What a round's way through its phases leaves in metrics and logs."""

from fedlearn.core.rounds import Round
from fedlearn.telemetry import metrics
from fedlearn.telemetry.logs import log

_log = log(__name__)


def observe(before: Round | None, after: Round) -> None:
    """Count and tell a round that has entered another phase.

    Args:
        before: the round as it was, None for one that is new here.
    """
    if before is not None and before.id == after.id and before.phase in after.phase_seconds:
        metrics.PHASE_SECONDS.labels(before.phase).observe(after.phase_seconds[before.phase])
    if not after.phase.ended:
        _log.info("phase", phase=after.phase, devices=len(after.participants))
        return
    metrics.ROUNDS.labels(after.phase, after.reason or "").inc()
    for participant in after.participants.values():
        metrics.PARTICIPANTS.labels(participant.standing).inc()
    if after.aggregate is not None:
        metrics.MODEL_VERSION.set(after.aggregate.model.version)
    _log.info("round ended", outcome=after.phase, reason=after.reason, seconds=round(after.phase_since - after.opened_at, 3))
