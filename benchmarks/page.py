"""Runs the benchmarks one after the other, and writes docs/benchmarks.md from what they print.

    python benchmarks/page.py [--only NAME ... | --missing | --show] [--full] [--out docs/benchmarks.md]

What each has printed is written to benchmarks/measured.json as soon as it ends, and the page is made of that: one that fails
takes nothing from the others. `--only` runs those named and keeps what was measured of the others, `--missing` those that
nothing whole is known of, `--show` none. `--full` adds those that take hours. Each has a time that it may take; what it has
printed until then is kept, and the page says so.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from sections import Benchmark, Ran, write

HERE = Path(__file__).parent
ROOT = HERE.parent
PAGE, MEASURED, IMAGES = ROOT / "docs" / "benchmarks.md", HERE / "measured.json", ROOT / "docs" / "images"
KEPT = ROOT / "runs" / "mcmahan"
_LOOK_SECONDS, _GRACE_SECONDS = 3.0, 30.0

BENCHMARKS = (
    Benchmark("machine", "The machine", 2),
    Benchmark("folding", "The aggregation engine", 12, image="folding.png"),
    Benchmark("sharding", "One aggregator against two", 6),
    Benchmark("envelope", "Sealing", 2),
    Benchmark("round_overhead", "A round without training", 6),
    Benchmark("aggregator_memory", "The aggregator's memory in real rounds", 5),
    Benchmark("flower", "Beside Flower", 20, image="flower.png"),
    Benchmark("devices", "Many devices in few processes", 8),
    Benchmark("local_training", "Local training", 5),
    Benchmark("mcmahan", "Rounds to 97 %", 1, image="mcmahan.png", arguments=("--keep", "runs/mcmahan", "--show"), needs=KEPT),
    Benchmark("mcmahan", "Rounds to 97 %", 600, image="mcmahan.png", arguments=("--keep", "runs/mcmahan"), full=True),
    Benchmark("wire_codecs", "What codecs cost", 120, image="codecs.png", full=True),
    Benchmark("exact_values", "int8 and the values that it leaves alone", 30, full=True),
    Benchmark("poisoning", "Two liars among ten", 120, image="poisoning.png", full=True),
    Benchmark("gigabyte", "A model of 1 GiB", 30, full=True),
)


class Stopped(NamedTuple):
    """How a process ended: its exit status, None if its time was over."""

    status: int | None
    errors: str


def run(benchmark: Benchmark) -> Ran:
    command = [sys.executable, str(HERE / f"{benchmark.name}.py"), *benchmark.arguments]
    if benchmark.image:
        command += ["--out", str(IMAGES / benchmark.image)]
    others, began, clock = busy_cores(), datetime.now(UTC), time.monotonic()
    with tempfile.TemporaryFile("w+") as printed:
        ended = _until_ended(command, 60 * benchmark.minutes, printed.fileno())
        printed.seek(0)
        text = printed.read()
    wrong = ""
    if ended.status is None:
        wrong = f"It was ended after its {benchmark.minutes:g} minutes."
    elif ended.status != 0:
        wrong = f"It failed: {' '.join(ended.errors.strip().splitlines()[-1:]) or ended.status}"
    seconds = round(time.monotonic() - clock, 1)
    others = round(max(others, busy_cores()), 2)
    return Ran(benchmark.name, text, wrong, others, began.isoformat(timespec="seconds"), seconds, commit())


def _until_ended(command: list[str], seconds: float, out: int) -> Stopped:
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=errors, env=environment, start_new_session=True)
        try:
            status: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)  # so that it stops what it has started, and clears up
                try:
                    process.wait(_GRACE_SECONDS)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        errors.seek(0)
        return Stopped(status, errors.read())


def busy_cores() -> float:
    """How many cores others keep busy while nothing of this runs; 0 where nobody can tell."""

    def spent() -> tuple[int, int]:
        fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        return sum(fields), fields[3] + fields[4]  # all, and idle or waiting for a disk

    if not Path("/proc/stat").exists():
        return 0.0
    (all_before, idle_before), _ = spent(), time.sleep(_LOOK_SECONDS)
    whole, idle = spent()
    return (os.cpu_count() or 1) * (1 - (idle - idle_before) / max(1, whole - all_before))


def commit() -> str:
    """The commit that is measured; a plus says that files differ from it."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--exclude=*"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return found.stdout.strip()


def read() -> dict[str, Ran]:
    if not MEASURED.exists():
        return {}
    return {name: Ran(**found) for name, found in json.loads(MEASURED.read_text()).items()}


def save(measured: dict[str, Ran], page: Path) -> None:
    MEASURED.write_text(json.dumps({name: ran._asdict() for name, ran in measured.items()}, indent=1) + "\n")
    listed = {benchmark.name: benchmark for benchmark in BENCHMARKS}
    page.write_text(write([(listed[name], measured[name]) for name in listed if name in measured]))


def wanted(given: argparse.Namespace, measured: dict[str, Ran]) -> list[Benchmark]:
    """Of two with the same name, the one that the options ask for."""
    full_ones = {benchmark.name for benchmark in BENCHMARKS if benchmark.full}
    short_ones = {benchmark.name for benchmark in BENCHMARKS if not benchmark.full}

    def asked(benchmark: Benchmark) -> bool:
        if given.show or (benchmark.needs and not benchmark.needs.exists()):
            return False
        as_asked = benchmark.full == given.full or benchmark.name not in (full_ones if given.full else short_ones)
        if given.only:
            return benchmark.name in given.only and as_asked
        if given.missing and benchmark.name in measured and not measured[benchmark.name].wrong:
            return False
        return as_asked and (given.full or not benchmark.full)

    return [benchmark for benchmark in BENCHMARKS if asked(benchmark)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--only", nargs="+", choices=sorted({benchmark.name for benchmark in BENCHMARKS}))
    which.add_argument("--missing", action="store_true")
    which.add_argument("--show", action="store_true")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--out", type=Path, default=PAGE)
    given = parser.parse_args()
    measured, failed = read(), False
    IMAGES.mkdir(parents=True, exist_ok=True)
    for benchmark in wanted(given, measured):
        print(f"== {benchmark.name}", flush=True)
        ran = measured[benchmark.name] = run(benchmark)
        print(ran.printed, ran.wrong, f"\n({ran.seconds:.0f} s)", flush=True)
        failed |= bool(ran.wrong)
        save(measured, given.out)
    save(measured, given.out)
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
