"""What the benchmarks' page says of what was measured, and of when."""

import pytest

import sections
from results import Figure, show
from sections import Benchmark, Ran, write

FIRST, SECOND = "2026-11-25T03:23:00+00:00", "2026-11-27T20:00:00+00:00"
LISTED = (
    Benchmark("machine", "The machine", 2),
    Benchmark("envelope", "Sealing", 2, image="envelope.png"),
    Benchmark("mcmahan", "Rounds to 97 %", 60, long=True),
)


def ran(name: str, printed: str = "| a | b |\n|---|---|\n", wrong: str = "", run: str = FIRST, **other: object) -> Ran:
    found = Ran(name, printed, wrong, 0.0, run, 60.0, "625aade" if run == FIRST else "d51a82d", run, "a machine")
    return found._replace(**other)


def page(*parts: Ran) -> str:
    return write(LISTED, {part.name: part for part in parts})


def section(text: str, title: str) -> str:
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


SLOWER = "Where a peer is faster, and no aim was set"


def listed(text: str, title: str) -> list[str]:
    """What stands below a title of where we are not ahead."""
    behind = section(text, "Where we are not ahead")
    return behind.partition(f"**{title}**\n\n")[2].partition("\n\n**")[0].strip().splitlines()


def test_what_one_command_measured_is_said_to_be_all() -> None:
    text = page(ran("machine"), ran("envelope"), ran("mcmahan"))
    assert "That command began 2026-11-25 03:23 UTC, at 625aade, and measured everything below in 3 minutes. a machine." in text
    assert "Not of the same run" not in text
    assert "Not measured" not in text


def test_what_a_short_run_left_out_keeps_its_date_and_commit_and_is_marked() -> None:
    text = page(ran("machine", run=SECOND), ran("envelope", run=SECOND), ran("mcmahan"))
    assert "began 2026-11-27 20:00 UTC, at d51a82d, and measured all that stands below in 2 minutes, **but for rounds" in text
    assert "**but for rounds to 97 % (2026-11-25 03:23 UTC, at 625aade)**." in text
    kept = section(text, "Rounds to 97 %")
    assert "**Not of the same run as most of this page: measured 2026-11-25 03:23 UTC, at 625aade.**" in kept
    assert "(`benchmarks/mcmahan.py`, 60 s, 2026-11-25 03:23 UTC, at 625aade.)" in kept
    assert "2026-11-27 20:00 UTC, at d51a82d.)" in section(text, "Sealing")
    assert "Not of the same run" not in section(text, "Sealing")


def test_a_section_that_another_machine_measured_names_it() -> None:
    text = page(ran("machine", run=SECOND), ran("envelope", run=SECOND), ran("mcmahan", machine="a laptop"))
    assert "and on another machine (a laptop)" in section(text, "Rounds to 97 %")


def test_what_was_never_measured_is_named() -> None:
    assert "**Not measured yet: rounds to 97 %.**" in page(ran("machine"), ran("envelope"))


def test_the_page_names_the_command_and_what_it_leaves_out_when_short() -> None:
    text = page(ran("machine"), ran("envelope"), ran("mcmahan"))
    assert "`make bench BENCH_FLAGS=--short` leaves out what takes long" in text
    assert "of it: rounds to 97 %." in text


def test_every_miss_stands_under_where_we_are_not_ahead_with_its_reason() -> None:
    missed = Figure("two by one", 0.74, "×", at_least=1, why="the storage has the same cores")
    text = page(ran("machine", show([Figure("reads", 30, "GB/s", at_least=20), missed])), ran("envelope"))
    assert listed(text, "Aims that were missed") == [
        "- The machine: two by one: 0.74 ×; aimed at: at least 1 ×: the storage has the same cores"
    ]


def test_with_every_aim_reached_the_page_says_so() -> None:
    text = page(ran("machine", show([Figure("reads", 30, "GB/s", at_least=20)])))
    assert listed(text, "Aims that were missed") == ["Every aim that is stated below was reached."]


def test_where_a_peer_is_faster_without_an_aim_stands_in_a_list_of_its_own() -> None:
    slower = Figure("ours by theirs", 1.99, "×", slower_above=1, why="theirs stay in memory")
    text = page(ran("machine", show([slower, Figure("ours by others'", 0.9, "×", slower_above=1)])), ran("envelope"))
    assert listed(text, SLOWER) == ["- The machine: ours by theirs: 1.99 ×: theirs stay in memory"]
    assert listed(text, "Aims that were missed") == ["Every aim that is stated below was reached."]


def test_where_no_peer_is_faster_the_page_says_so() -> None:
    assert listed(page(ran("machine")), SLOWER) == ["No row below is of that kind."]


def test_what_ended_before_its_time_is_a_list_only_where_something_did() -> None:
    assert "What was not measured to its end" not in page(ran("machine"))


def test_a_benchmark_that_failed_is_said_to_and_shows_no_earlier_picture(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.setattr(sections, "IMAGES", tmp_path)
    (tmp_path / "envelope.png").write_bytes(b"a picture")  # type: ignore[operator]
    failed = page(ran("machine"), ran("envelope", wrong="It was ended after its 2 minutes."))
    assert "- Sealing: It was ended after its 2 minutes." in listed(failed, "What was not measured to its end")
    assert "**It was ended after its 2 minutes.**" in section(failed, "Sealing")
    assert "images/envelope.png" not in failed
    assert "![Sealing](images/envelope.png)" in page(ran("machine"), ran("envelope"))


def test_a_busy_machine_is_confessed() -> None:
    assert "**The machine was not quiet**: so many cores were busy with other things around sealing (1.2)." in page(
        ran("machine"), ran("envelope", others=1.2)
    )
