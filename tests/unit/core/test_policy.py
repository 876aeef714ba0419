from fractions import Fraction
from math import ceil

import pytest

from fedlearn.core.policy import RoundPolicy

GOALS = [*range(1, 101), 1000, 99_999, 100_000]


@pytest.mark.parametrize("digits", [1, 2])
def test_as_many_are_needed_and_selected_as_the_fractions_say_in_decimals(digits: int) -> None:
    one = 10**digits
    for goal in GOALS:
        for part in range(1, one + 1):
            policy = RoundPolicy(goal=goal, min_fraction=part / one, over_selection=1 + part / one)
            assert policy.minimum == policy.selection.minimum == policy.reporting.minimum == ceil(Fraction(goal * part, one))
            assert policy.selection.goal == ceil(goal + Fraction(goal * part, one))


def test_a_fraction_of_one_number_by_the_goal_needs_that_number() -> None:
    for goal in range(1, 301):
        for number in range(1, goal + 1):
            assert RoundPolicy(goal=goal, min_fraction=number / goal).minimum == number


def test_one_report_is_needed_at_least() -> None:
    assert RoundPolicy(goal=1, min_fraction=1e-300).minimum == 1
