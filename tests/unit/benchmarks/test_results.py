"""How figures are shown beside their aims."""

import math

from results import Figure, show, table


def test_a_figure_without_an_aim_or_cpu_time_gets_no_columns_for_them() -> None:
    assert show([Figure("memory", 255.4, "MB")]) == "|  | measured |\n|---|---|\n| memory | 255 MB |\n"


def test_columns_come_with_the_first_figure_that_has_something_for_them() -> None:
    shown = show([Figure("plain", 1, "s"), Figure("by both", 2, "s", by_cpu=1.5, at_most=3)]).splitlines()
    assert shown[0] == "|  | by the clock | by CPU time | aim |"
    assert shown[2:] == ["| plain | 1 s |  |  |", "| by both | 2 s | 1.5 s | at most 3 s |"]


def test_a_miss_is_marked_and_has_its_reason() -> None:
    shown = show([Figure("two by one", 0.74, "×", at_least=1, why="the storage has the same cores")])
    assert shown.splitlines()[2] == "| two by one | 0.74 × | at least 1 × **(missed)**: the storage has the same cores |"


def test_a_reason_is_left_out_where_the_aim_is_reached() -> None:
    assert "because" not in show([Figure("two by one", 1.7, "×", at_least=1, why="because")])


def test_where_a_peer_is_faster_without_an_aim_it_is_marked_with_its_reason() -> None:
    shown = show([Figure("ours by theirs", 1.99, "×", slower_above=1, why="theirs stay in memory")]).splitlines()
    assert shown[0] == "|  | measured | aim |"
    assert shown[2] == "| ours by theirs | 1.99 × | none **(slower)**: theirs stay in memory |"


def test_what_is_level_with_a_peer_or_faster_is_not_marked() -> None:
    shown = show([Figure("ours by theirs", value, "×", slower_above=1, why="because") for value in (1.0, 0.9)])
    assert shown.splitlines()[2:] == ["| ours by theirs | 1 × |", "| ours by theirs | 0.9 × |"]


def test_the_least_and_the_most_stand_beside_their_median() -> None:
    assert "| 17.1 s (16.2 to 18.4) |" in show([Figure("a round", 17.1, "s", between=(16.2, 18.4))])
    assert "| not reached (49 to not reached) |" in show([Figure("a round", math.inf, "rounds", between=(49, math.inf))])
    assert "| not reached |" in show([Figure("a round", math.inf, "rounds", between=(math.inf, math.inf))])


def test_what_was_never_reached_misses_its_aim() -> None:
    shown = show([Figure("rounds", math.inf, "rounds", at_most=87)])
    assert "| not reached | at most 87 rounds **(missed)** |" in shown


def test_large_numbers_are_written_out() -> None:
    assert "| 2,301 MB |" in show([Figure("memory", 2301.4, "MB")])
    assert "| -1,500 MB |" in show([Figure("memory", -1500, "MB")])


def test_a_table_has_a_line_for_each_row() -> None:
    assert table(["rule", "all honest"], [["median", "90.6"]]) == "| rule | all honest |\n|---|---|\n| median | 90.6 |\n"
