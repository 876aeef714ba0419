"""Runs the benchmarks one after the other, and writes docs/benchmarks.md from what they print.

    python benchmarks/page.py [--short] [--only NAME ... | --missing | --show] [--out docs/benchmarks.md]

Without an option it measures all that the page shows, each from nothing. `--short` leaves out what takes long, `--only` runs
those named, `--missing` those that nothing whole is known of, `--show` none; of the others what was measured before is kept,
with its date and its commit, and the page says so.

What each has printed is written to benchmarks/measured.json as soon as it ends, and the page is made of that: one that fails
takes nothing from the others. Each has a time that it may take; what it has printed until then is kept, and the page says so.
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

from sections import IMAGES, Benchmark, Ran, machine, write

HERE = Path(__file__).parent
ROOT = HERE.parent
PAGE, MEASURED = ROOT / "docs" / "benchmarks.md", HERE / "measured.json"
_LOOK_SECONDS, _GRACE_SECONDS = 3.0, 30.0

BENCHMARKS = (
    Benchmark("machine", "The machine", 2),
    Benchmark("folding", "The aggregation engine", 20, image="folding.png"),
    Benchmark("sharding", "One aggregator against two", 12),
    Benchmark("envelope", "Sealing", 2),
    Benchmark("round_overhead", "A round without training", 6),
    Benchmark("aggregator_memory", "The aggregator's memory in real rounds", 5),
    Benchmark("flower", "Beside Flower", 30, image="flower.png"),
    Benchmark("memory", "Memory against the number of updates", 20, image="memory.png"),
    Benchmark("devices", "Many devices in few processes", 8),
    Benchmark("local_training", "Local training", 5),
    Benchmark("mcmahan", "Rounds to 97 %", 60, image="mcmahan.png", long=True),
    Benchmark("wire_codecs", "What codecs cost", 30, image="codecs.png", long=True),
    Benchmark("exact_values", "int8 and the values that it leaves alone", 10, long=True),
    Benchmark("poisoning", "Two liars among ten", 20, image="poisoning.png", long=True),
    Benchmark("gigabyte", "A model of 1 GiB", 15, long=True),
)
_WRITTEN = (PAGE, MEASURED, *(IMAGES / benchmark.image for benchmark in BENCHMARKS if benchmark.image))


class Stopped(NamedTuple):
    """How a process ended: its exit status, None if its time was over."""

    status: int | None
    errors: str


def run(benchmark: Benchmark, command_began: str) -> Ran:
    """Run it to its end, or to that of its time; `command_began` is what all have in common that one command runs."""
    command = [sys.executable, str(HERE / f"{benchmark.name}.py")]
    if benchmark.image:
        command += ["--out", str(IMAGES / benchmark.image)]
    at, others = commit(), busy_cores()  # of the files as they are when it starts
    began, clock = _now(), time.monotonic()
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
    return Ran(benchmark.name, text, wrong, others, began, seconds, at, command_began, machine())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


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
    all_before, idle_before = spent()
    time.sleep(_LOOK_SECONDS)
    whole, idle = spent()
    return (os.cpu_count() or 1) * (1 - (idle - idle_before) / max(1, whole - all_before))


def commit() -> str:
    """The commit that is measured; a plus says that files differ from it, apart from those that the measuring itself writes."""
    but = [f":(exclude){path.relative_to(ROOT)}" for path in _WRITTEN]
    try:
        name = _git("describe", "--always", "--exclude=*")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", *but)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f"{name}+" if changed else name


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def read() -> dict[str, Ran]:
    if not MEASURED.exists():
        return {}
    return {name: Ran(**found) for name, found in json.loads(MEASURED.read_text()).items()}


def save(measured: dict[str, Ran], page: Path) -> None:
    found = {benchmark.name: measured[benchmark.name] for benchmark in BENCHMARKS if benchmark.name in measured}
    MEASURED.write_text(json.dumps({name: ran._asdict() for name, ran in found.items()}, indent=1) + "\n")
    page.write_text(write(BENCHMARKS, found))


def wanted(given: argparse.Namespace, measured: dict[str, Ran]) -> list[Benchmark]:
    """Which to run, in the page's order."""

    def asked(benchmark: Benchmark) -> bool:
        if given.only:
            return benchmark.name in given.only
        known = benchmark.name in measured and not measured[benchmark.name].wrong
        return not (given.show or (given.missing and known) or (given.short and benchmark.long))

    return [benchmark for benchmark in BENCHMARKS if asked(benchmark)]


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--only", nargs="+", choices=[benchmark.name for benchmark in BENCHMARKS])
    which.add_argument("--missing", action="store_true")
    which.add_argument("--show", action="store_true")
    parser.add_argument("--short", action="store_true", help="leave out what takes long")
    parser.add_argument("--out", type=Path, default=PAGE)
    return parser.parse_args(given)


def main() -> None:
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # which ends what is being measured as well
    given = arguments()
    measured, failed, began = read(), False, _now()
    IMAGES.mkdir(parents=True, exist_ok=True)
    for benchmark in wanted(given, measured):
        print(f"== {benchmark.name}", flush=True)
        ran = measured[benchmark.name] = run(benchmark, began)
        print(ran.printed, ran.wrong, f"\n({ran.seconds:.0f} s)", flush=True)
        failed |= bool(ran.wrong)
        save(measured, given.out)
    save(measured, given.out)
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
