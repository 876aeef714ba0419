"""One round's running sum: fetch an update, open and check all of it, and only then fold it.

A refused update leaves the totals untouched. Of a device's updates the first that is folded counts; whatever is told twice is
folded once. Memory is a small constant times the model, however many updates come. With a robust rule there is no sum: the
updates are checked and counted as they come, and combined by `gathering` at the close.

Where several aggregators share a round, each has the sum of its own devices' updates, and the one whose number is 0 adds the
others' sums at the close.
"""

import os
import threading
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass

import numpy as np

from fedlearn.aggregator import ring
from fedlearn.aggregator.buffers import Buffers
from fedlearn.aggregator.forms import Memory, Opened, form_of
from fedlearn.aggregator.gathering import Sealed, combine_sealed
from fedlearn.aggregator.layout import Descriptor, update_key
from fedlearn.aggregator.opening import open_coming
from fedlearn.aggregator.others import Others
from fedlearn.aggregator.partials import Chain, Partials
from fedlearn.aggregator.streaming import Checked, Reader
from fedlearn.core.aggregation import Combined, Tally, Total, WeightedSum
from fedlearn.core.errors import Code, Outage, Refusal, unforeseen
from fedlearn.core.ids import DeviceId, shard_of
from fedlearn.core.ports import ObjectStore
from fedlearn.core.robust import Floats
from fedlearn.core.updates import Update
from fedlearn.protocol.envelope import UpdateContext, layout_of
from fedlearn.protocol.plans import Plan
from fedlearn.protocol.sealing import SealingKey
from fedlearn.telemetry.metrics import aggregator as metrics

# the fault of the bytes that lie there, whatever the storage says next
_OF_THE_BYTES = frozenset(code for code in Code if code.startswith("update_")) - {Code.UPDATE_MISSING, Code.UPDATE_REPEATED}
_DETAIL_CHARACTERS = 1000

_CORES = len(os.sched_getaffinity(0))
_adders = ThreadPoolExecutor(_CORES, thread_name_prefix="add")
_SPLIT_ELEMENTS = 1 << 23  # a shorter sum is added to by one thread, while the others fetch and open
_USELESS = "A part of an update is in the sum and the rest can't be had: it has to be made again."
LARGE_BYTES = ring.BYTES // 2  # a larger delta is never in memory as a whole


@dataclass(frozen=True, slots=True)
class Counts:
    """Whose updates are in the sum, by digest, and whose were refused and why."""

    folded: Mapping[DeviceId, str]
    refused: Mapping[DeviceId, Code]


@dataclass(slots=True)
class _Half:
    """A large update of which all windows before `next` are in the sum."""

    device: DeviceId
    digest: str
    checked: Checked
    next: int = 1


class Folding:
    """The sum of one round; its methods may be called from several threads.

    Args:
        key: the round's private sealing key.
        updates: the updates bucket.
        shard: which of the round's aggregators this is.
        buffers: an earlier round's, which are used again where they fit.
    """

    def __init__(
        self,
        descriptor: Descriptor,
        plan: Plan,
        key: SealingKey,
        updates: ObjectStore,
        *,
        shard: int = 0,
        buffers: Buffers | None = None,
    ) -> None:
        self.descriptor, self.plan, self.key, self.shard = descriptor, plan, key, shard
        self._updates, self._buffers = updates, Buffers.of(plan, buffers)
        self._lock = threading.Lock()  # of the names, and held for no longer than it takes to read or write them
        self._adding = threading.Lock()  # of the sum, and of who is counted
        self._form = form_of(plan)
        self._ring = ring.Ring(self._buffers, alone=plan.aggregation.rule is not None)
        self._large = self._form.size_bytes > LARGE_BYTES
        self._reader = Reader(plan, key, updates)
        self._half: _Half | None = None
        self._sum: Tally = WeightedSum(plan.parameters) if plan.aggregation.rule is None else Tally()
        self._partials, self._chain = Partials(descriptor, plan, key, updates, shard), Chain()
        self._writing = threading.Lock()  # of partial sums
        self._tried: Chain | None = None  # one whose manifest may have been written, although nobody said so
        self.others = Others(descriptor, plan, key, updates, shard)
        self._examples: dict[DeviceId, int] = {}
        self._folded: dict[DeviceId, str] = {}
        self._refused: dict[DeviceId, Code] = {}
        self._busy: set[tuple[DeviceId, str]] = set()
        self._wrong: dict[tuple[DeviceId, str], tuple[Code, str]] = {}

    @property
    def max_update_bytes(self) -> int:
        """No envelope of this plan is longer."""
        return layout_of(self.plan).max_bytes

    def counts(self) -> Counts:
        with self._lock:
            return Counts(dict(self._folded), dict(self._refused))

    def folded_digest(self, device: DeviceId) -> str | None:
        """The digest of the device's update that is in the sum."""
        with self._lock:
            return self._folded.get(device)

    def consider(self, device: DeviceId, digest: str) -> bool:
        """Fold the update of this device and digest, unless it is folded already; False while another call is at it.

        Raises:
            Refusal: the reason why it is not folded; the same stands in `counts`, but for `update_repeated`. One whose bytes
                were found wrong is not fetched, and not counted, a second time. Whatever nobody foresaw is `internal` there.
            Outage: `storage_unavailable`; it may be called again, and goes on with a large update where it was.
        """
        with self._lock:
            counted = self._folded.get(device)
            if (device, digest) in self._busy:
                return False
            if counted == digest:
                return True
            if counted is not None:
                metrics.UPDATES.labels(Code.UPDATE_REPEATED).inc()
                raise Refusal(Code.UPDATE_REPEATED, f"Another update of {device} is counted already.")
            if (wrong := self._wrong.get((device, digest))) is not None:
                raise Refusal(*wrong)
            self._busy.add((device, digest))
        try:
            if self._large:
                self._consider_large(device, digest)
            else:
                self._consider_whole(device, digest)
        except Refusal as refusal:
            self._refuse(device, digest, refusal)
            raise
        except Outage:
            raise
        except Exception as error:  # who waits for this device must not wait for ever
            self._refuse(device, digest, unforeseen(error, "aggregator"))
            raise
        finally:
            with self._lock:
                self._busy.discard((device, digest))
        metrics.UPDATES.labels("folded").inc()
        return True

    def mine(self, device: DeviceId) -> bool:
        """Whether this aggregator takes the device's update."""
        return shard_of(device, self.descriptor.aggregators) == self.shard

    @property
    def finished(self) -> bool:
        """Whether the last partial sum is written, after which nothing is counted any more."""
        return self._chain.final

    @property
    def unsaved(self) -> int:
        """How many updates are in the sum and in no partial sum; 0 with a robust rule, which needs the updates themselves."""
        if self.plan.aggregation.rule is not None or self._sum.taken:
            return 0
        with self._lock:
            return len(self._folded) - self._chain.counted

    @property
    def saved(self) -> Collection[DeviceId]:
        """Whose updates a partial sum counts, so that they are deleted."""
        return self._chain.contributors.keys()

    def resume(self) -> None:
        """Go on from the last partial sum in storage; called once, before anything is folded.

        Raises:
            Refusal: `partial_sum_damaged`.
            Outage: `storage_unavailable`; what was begun is to be thrown away.
        """
        chain = self._partials.read()
        if chain.manifests and isinstance(self._sum, WeightedSum):
            for _ in self._partials.load(chain, self._sum):
                pass
            self._sum.add_state(chain.manifests[-1].tally)
            self._chain = chain
            with self._lock:
                self._folded.update(chain.contributors)
        self._partials.tidy(chain, chain.contributors)

    def save(self, *, final: bool = False) -> None:
        """Write what has been added up as a partial sum, and delete the updates that it counts.

        Args:
            final: nothing is counted after it.

        Raises:
            Refusal: `round_conflict` when another process has written one, `partial_sum_damaged` when a part of an update is in
                the sum and the rest can't be had: this one's sum is worth nothing any more.
            Outage: `storage_unavailable`; it may be called again.
        """
        with self._writing:
            if self.finished or (not final and self.unsaved == 0):
                return
            if self._tried is None:
                with self._adding:
                    self._add_checked()
                    if self._sum.taken:
                        raise Refusal(Code.PARTIAL_SUM_DAMAGED, _USELESS)
                    assert isinstance(self._sum, WeightedSum), "a robust rule needs the updates themselves"
                    counted = list(self._folded.items())
                    new = dict(counted[self._chain.counted :])
                    chain = self._chain.and_then(new, self._sum.state(), final=final)
                    self._partials.write_sum(chain, self._sum)
                self._tried = chain
            if not self._partials.commit(self._tried):
                raise Refusal(
                    Code.ROUND_CONFLICT, f"Another process has written partial sum {self._tried.number} of this round."
                )
            self._chain, self._tried = self._tried, None
            self._partials.tidy(self._chain, self._chain.manifests[-1].contributors)
        if final and not self.finished:  # what was tried before was not the last
            self.save(final=True)

    def total(self, contributors: Mapping[DeviceId, str]) -> Total:
        """What exactly these updates give; what is folded already is used if it is a part of that.

        Raises:
            Refusal: when one of them can't be folded any more; `too_few_for_rule`.
            Outage: `storage_unavailable`, also when the sum has to be made again; `aggregator_unreachable`.
        """
        others = self.others.contributors()
        own = [item for item in contributors.items() if item[0] not in others]
        if {**dict(own), **others} != dict(contributors):
            raise Refusal(
                Code.UPDATE_MISSING, "The other aggregators have counted other updates than the round's record names."
            )
        folding = self
        with self._lock:
            # in the record's order: a float64 sum in another one may differ in its last bit
            fits = not self._sum.taken and list(self._folded.items()) == own[: len(self._folded)]
        if not fits:
            with self._adding:  # what waits, and the sum, make room for that other one
                self._sum.discard()
                self._ring.drain(lambda _: None)
            folding = Folding(self.descriptor, self.plan, self.key, self._updates, shard=self.shard, buffers=self._buffers)
            folding.resume()
        for device, digest in own:
            folding.consider(device, digest)
        return folding._total(own, contributors)

    def _total(self, own: list[tuple[DeviceId, str]], contributors: Mapping[DeviceId, str]) -> Total:
        self.others.contributors()
        with self._adding:
            self._add_checked()
            if self._folded != dict(own):
                raise Refusal(Code.UPDATE_MISSING, "A partial sum counts updates that the round's record does not name.")
            total = self._sum
            if total.taken:
                raise Outage(Code.STORAGE_UNAVAILABLE, _USELESS)
            if isinstance(total, WeightedSum):
                self.others.merge_into(total)
                return total
            tally, examples = copy(total), np.array(list(self._examples.values()), np.float64)
            return Combined(tally, self._combine(contributors, examples))

    def _combine(self, contributors: Mapping[DeviceId, str], examples: Floats) -> Floats:
        sealed = [
            Sealed(update_key(self.descriptor.id, device, digest), digest, self._context(device))
            for device, digest in contributors.items()
        ]
        return combine_sealed(sealed, self.plan, self.key, self._updates, examples)

    def _context(self, device: DeviceId) -> UpdateContext:
        return UpdateContext(
            task=self.descriptor.task,
            round=self.descriptor.round,
            device=device,
            plan_digest=self.plan.digest,
            base_sha256=self.descriptor.start.sha256,
        )

    def _consider_whole(self, device: DeviceId, digest: str) -> None:
        with self._ring.filling() as slot:
            with self._buffers.piece() as piece:
                update = self._open(device, digest, piece, slot.memory)
            with metrics.FOLD_SECONDS.time(), self._adding:
                self._refuse_another(device)
                self._ring.keep(update, slot)
                self._count(device, digest, update)
                if self._ring.full:
                    self._add_checked()

    def _consider_large(self, device: DeviceId, digest: str) -> None:
        with metrics.FETCH_SECONDS.time():
            try:
                checked = self._reader.check(update_key(self.descriptor.id, device, digest), digest, self._context(device))
            except Refusal as refusal:
                if refusal.code is Code.NOT_FOUND:
                    raise Refusal(Code.UPDATE_MISSING, f"The update of {device} is not in object storage.") from refusal
                raise
        metrics.UPDATES_RECEIVED.inc()
        metrics.UPDATE_BYTES.inc(checked.opening.header.total_bytes)
        with metrics.FOLD_SECONDS.time(), self._adding:
            self._add_begun()
            if self._folded.get(device) == digest:  # an outage had come before its last window
                return
            self._refuse_another(device)
            self._half = _Half(device, digest, checked)
            self._add_rest()

    def _add_begun(self) -> None:
        """Add what is left of a large update that was begun, whoever asks; if it can't be had, that is its own fault alone."""
        half = self._half
        try:
            self._add_rest()
        except Refusal as refusal:
            assert half is not None
            self._refuse(half.device, half.digest, refusal)

    def _add_rest(self) -> None:
        half = self._half
        if half is None:
            return
        update = half.checked.update
        try:
            if isinstance(self._sum, WeightedSum):
                for window in self._reader.windows(half.checked, half.next):
                    self._sum.fold_part(window.start, window.delta, update.examples)
                    half.next += 1
                self._sum.count(update)
            else:
                self._sum.fold(update)
        except Refusal:  # the storage gives other bytes than a moment ago
            self._half = None
            if half.next > 1:
                self._sum.discard()
            raise
        self._half = None
        self._count(half.device, half.digest, update)

    def _refuse(self, device: DeviceId, digest: str, refusal: Refusal) -> None:
        with self._lock:
            if device not in self._folded:
                self._refused[device] = refusal.code
            if refusal.code in _OF_THE_BYTES:  # without the error's traceback, whose frames hold what was read
                self._wrong[device, digest] = refusal.code, refusal.detail[:_DETAIL_CHARACTERS]
        metrics.UPDATES.labels(refusal.code).inc()

    def _refuse_another(self, device: DeviceId) -> None:
        if device in self._folded:
            raise Refusal(Code.UPDATE_REPEATED, f"Another update of {device} is counted already.")

    def _count(self, device: DeviceId, digest: str, update: Update) -> None:
        with self._lock:
            self._folded[device] = digest
            self._examples[device] = update.examples
            self._refused.pop(device, None)

    def _open(self, device: DeviceId, digest: str, memory: memoryview, opened: Memory) -> Update:
        plan, context = self.plan, self._context(device)
        try:
            with self._updates.reading(update_key(self.descriptor.id, device, digest)) as source:
                return open_coming(
                    source, digest, key=self.key, context=context, form=self._form, plan=plan, memory=memory, out=opened
                )
        except Refusal as refusal:
            if refusal.code is Code.NOT_FOUND:
                raise Refusal(Code.UPDATE_MISSING, f"The update of {device} is not in object storage.") from refusal
            raise

    def _add_checked(self) -> None:
        """Add to the sum what waits for it, in one pass over the sum."""
        self._add_begun()
        self._ring.drain(self._add)

    def _add(self, opened: list[Opened]) -> None:
        if isinstance(self._sum, WeightedSum):
            self._form.add(self._sum, opened, _adders if self.plan.parameters >= _SPLIT_ELEMENTS else None, _CORES)
        else:
            for update, _ in opened:
                self._sum.fold(update)
