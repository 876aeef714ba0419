"""An update that fits into memory: opened piece by piece as it comes from storage, while each piece is in the cache."""

import time

from fedlearn.aggregator.forms import Form, Memory
from fedlearn.core.ports import Source
from fedlearn.core.updates import Update, check_claims
from fedlearn.protocol.envelope import Coming, UpdateContext
from fedlearn.protocol.plans import Plan
from fedlearn.protocol.sealing import SealingKey
from fedlearn.telemetry.metrics import aggregator as metrics


def open_coming(
    source: Source,
    digest: str,
    *,
    key: SealingKey,
    context: UpdateContext,
    form: Form,
    plan: Plan,
    memory: memoryview,
    out: Memory,
) -> Update:
    """Open an update and check it, as `open_update` and `check_claims` do.

    Args:
        memory: for one piece after the other, `layout_of(plan).longest_piece` bytes.
        out: where its delta is written in this form; undefined after a refusal.

    Raises:
        Refusal: as these.
        Outage: `storage_unavailable`.
    """
    metrics.UPDATES_RECEIVED.inc()
    metrics.UPDATE_BYTES.inc(source.size)
    began = time.perf_counter() - source.seconds

    def take(length: int, index: int) -> memoryview:
        piece = (form.room(out, index, length) if index else None) or memory[:length]
        source.fill(piece)
        return piece

    update = form.open(Coming(source.size, take), key=key, context=context, digest=digest, memory=out)
    check_claims(update, max_examples=plan.max_examples, figures=plan.figures)
    metrics.FETCH_SECONDS.observe(source.seconds)
    metrics.OPEN_SECONDS.observe(time.perf_counter() - began - source.seconds)
    return update
