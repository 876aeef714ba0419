"""Which benchmarks one command runs, and what it notes of each."""

import ast
import json
import subprocess
from pathlib import Path

import pytest

import page
from sections import Benchmark, Ran

LISTED = (
    Benchmark("quick", "Quick", 1),
    Benchmark("drawn", "Drawn", 1, image="drawn.png"),
    Benchmark("slow", "Slow", 1, long=True),
)
BEGAN = "2026-11-27T20:00:00+00:00"


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with benchmarks of a line each, all that they write beside them."""
    images = tmp_path / "docs" / "images"
    images.mkdir(parents=True)
    (tmp_path / "benchmarks").mkdir()
    for benchmark in LISTED:
        (tmp_path / "benchmarks" / f"{benchmark.name}.py").write_text(f'"""What is {benchmark.name}."""\n\nprint("found it")\n')
    written = (tmp_path / "docs" / "benchmarks.md", tmp_path / "benchmarks" / "measured.json", images / "drawn.png")
    for path in written:
        path.write_text("{}")
    monkeypatch.setattr(page, "ROOT", tmp_path)
    monkeypatch.setattr(page, "HERE", tmp_path / "benchmarks")
    monkeypatch.setattr("sections.HERE", tmp_path / "benchmarks")
    monkeypatch.setattr(page, "IMAGES", images)
    monkeypatch.setattr(page, "PAGE", written[0])
    monkeypatch.setattr(page, "MEASURED", written[1])
    monkeypatch.setattr(page, "BENCHMARKS", LISTED)
    monkeypatch.setattr(page, "_WRITTEN", written)
    monkeypatch.setattr(page, "_LOOK_SECONDS", 0.0)
    for command in (
        ["init", "--quiet"],
        ["add", "."],
        ["-c", "user.name=somebody", "-c", "user.email=somebody@example.com", "commit", "--quiet", "--message", "All"],
    ):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    return tmp_path


def names(*options: str, measured: dict[str, Ran] | None = None) -> list[str]:
    return [benchmark.name for benchmark in page.wanted(page.arguments(list(options)), measured or {})]


def known(name: str, wrong: str = "") -> Ran:
    return Ran(name, "found it earlier", wrong, 0.0, "2026-11-25T03:00:00+00:00", 1.0, "625aade", "2026-11-25T03:00:00+00:00")


@pytest.mark.usefixtures("repository")
def test_without_an_option_everything_is_measured_anew() -> None:
    everything = {benchmark.name: known(benchmark.name) for benchmark in LISTED}
    assert names(measured=everything) == ["quick", "drawn", "slow"]


@pytest.mark.usefixtures("repository")
def test_a_short_run_leaves_out_what_takes_long() -> None:
    assert names("--short") == ["quick", "drawn"]


@pytest.mark.usefixtures("repository")
def test_what_is_known_whole_is_not_missing() -> None:
    measured = {"quick": known("quick"), "drawn": known("drawn", wrong="It failed.")}
    assert names("--missing", measured=measured) == ["drawn", "slow"]
    assert names("--missing", "--short", measured=measured) == ["drawn"]


@pytest.mark.usefixtures("repository")
def test_those_named_are_run_and_no_others() -> None:
    assert names("--only", "slow") == ["slow"]
    assert names("--show") == []


@pytest.mark.usefixtures("repository")
def test_what_one_command_runs_has_its_beginning_in_common() -> None:
    first, second = page.run(LISTED[0], BEGAN), page.run(LISTED[2], BEGAN)
    assert (first.run, second.run) == (BEGAN, BEGAN)
    assert (first.printed, first.wrong) == ("found it\n", "")


def test_what_the_measuring_itself_writes_does_not_make_the_commit_dirty(repository: Path) -> None:
    for path in ("docs/benchmarks.md", "benchmarks/measured.json", "docs/images/drawn.png"):
        (repository / path).write_text("changed")
    clean = page.commit()
    assert clean
    assert not clean.endswith("+")
    (repository / "benchmarks" / "quick.py").write_text("print('changed')\n")
    assert page.commit() == f"{clean}+"


def test_a_failure_is_kept_with_what_was_printed_until_then(repository: Path) -> None:
    (repository / "benchmarks" / "quick.py").write_text('print("half of it")\nraise SystemExit("no storage")\n')
    ran = page.run(LISTED[0], BEGAN)
    assert (ran.printed, ran.wrong) == ("half of it\n", "It failed: no storage")


def test_what_is_no_longer_listed_is_forgotten(repository: Path) -> None:
    measured = {"quick": known("quick"), "gone": known("gone")}
    page.save(measured, repository / "docs" / "benchmarks.md")
    assert list(json.loads((repository / "benchmarks" / "measured.json").read_text())) == ["quick"]
    assert page.read() == {"quick": known("quick")}


def test_every_benchmark_of_the_page_is_there_and_says_what_it_measures() -> None:
    for benchmark in page.BENCHMARKS:
        script = page.HERE / f"{benchmark.name}.py"
        assert ast.get_docstring(ast.parse(script.read_text())), benchmark.name
        assert benchmark.image is None or '"--out"' in script.read_text()
