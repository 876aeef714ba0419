"""What must be true after any kills; what each version must be is computed apart (`chaos_replay`), from who was in."""

import os
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from rich.table import Table

from fedlearn.core.rounds import Phase, Round
from fedlearn.local.chaos import PHASES, TASK, Arena, Kill
from fedlearn.local.chaos_replay import Replay

_TOLERANCE = 1e-6  # of a weight, or of its magnitude beyond 1


def faults(arena: Arena) -> list[str]:
    """Everything that is not as it must be, in sentences; an empty list is what is wanted."""
    found = []
    rounds, versions = arena.store.rounds(TASK), arena.store.versions(TASK)
    committed = [round_ for round_ in rounds if round_.phase is Phase.COMMITTED]
    numbers = [version.ref.version for version in versions]
    if numbers != list(range(len(committed) + 1)):
        found.append(f"{len(committed)} rounds are committed, and the versions are {numbers}.")
    if [version.round for version in versions[1:]] != [round_.id.number for round_ in committed]:
        found.append("The versions don't name the committed rounds in their order.")
    found += [f"Round {round_.id.number} is still in {round_.phase}." for round_ in rounds if not round_.phase.ended]
    found += [
        f"Round {round_.id.number} was abandoned without a reason."
        for round_ in rounds
        if round_.phase is Phase.ABANDONED and round_.reason is None
    ]
    replay = Replay(arena.plan, arena.seed)
    for before, round_ in enumerate(committed):
        found += _of_round(arena, replay, round_, before)
    if left := arena.leftovers():
        found.append(f"{len(left)} objects are left in the updates bucket, {left[0]} first.")
    return found


def _of_round(arena: Arena, replay: Replay, round_: Round, base_version: int) -> Iterable[str]:
    aggregate = round_.aggregate
    assert aggregate is not None
    name = f"Round {round_.id.number}"
    if (round_.base.version, aggregate.model.version) != (base_version, base_version + 1):
        yield f"{name} made version {aggregate.model.version} of {round_.base.version}, after version {base_version}."
    examples = {arena.shard(device): arena.examples(device) for device in sorted(aggregate.contributors)}
    if aggregate.examples != sum(examples.values()):
        yield f"{name} counted {aggregate.examples} examples; its {len(examples)} devices have {sum(examples.values())}."
    expected = replay.after(arena.model(round_.base.key), round_.id.number, examples)
    error = float((np.abs(arena.model(aggregate.model.key) - expected) / np.maximum(1.0, np.abs(expected))).max())
    if not error < _TOLERANCE:
        yield f"{name} is off by {error:g} from what its devices' updates make of its base."


def orphans(directory: Path) -> list[int]:
    """Processes other than this one that know of the directory; none where there is no /proc."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            text = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
        except OSError:  # it has ended, or is somebody else's
            continue
        if int(entry.name) != os.getpid() and str(directory).encode() + b"/" in text:
            found.append(int(entry.name))
    return found


def outcome(round_: Round) -> str:
    return "committed" if round_.reason is None else f"abandoned: {round_.reason}"


def kill_table(arena: Arena, kills: Sequence[Kill]) -> Table:
    """Role by phase: what became of the rounds in which it was killed, or away."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    columns = [str(phase) for phase in PHASES] + ["between rounds"]
    for column in ("killed or away in", *columns):
        table.add_column(column)
    cells: dict[tuple[str, str], Counter[str]] = {}
    for kill in kills:
        phase = "between rounds" if kill.phase.ended else str(kill.phase)
        what = "had ended" if kill.phase.ended else outcome(arena.round(kill.round))
        cells.setdefault((kill.role, phase), Counter())[what] += 1
    for role in sorted({kill.role for kill in kills}):
        found = [cells.get((role, column), Counter[str]()) for column in columns]
        words = [", ".join(f"{count} {what}" for what, count in outcomes.most_common()) for outcomes in found]
        table.add_row(role, *(cell or "–" for cell in words))
    return table


def recovery_table(arena: Arena, kills: Sequence[Kill]) -> Table:
    """How long each role was away, and how long the round went on after the kill: median and worst."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("role", "times", "ready again, median", "worst", "round ended after, median", "worst"):
        table.add_column(column, justify="left" if column == "role" else "right")
    for role in sorted({kill.role for kill in kills}):
        mine = [kill for kill in kills if kill.role == role]
        back = [kill.back_seconds for kill in mine]
        ended = [arena.round(kill.round).phase_since - kill.at for kill in mine if not kill.phase.ended]
        row = [f"{value:.2f} s" for value in (statistics.median(back), max(back))]
        row += [f"{value:.2f} s" for value in (statistics.median(ended), max(ended))] if ended else ["", ""]
        table.add_row(role, str(len(mine)), *row)
    return table
