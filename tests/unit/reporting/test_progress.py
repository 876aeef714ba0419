"""What a run tells where its output is piped."""

import io

from rich.console import Console

from fedlearn.core.errors import Code
from fedlearn.protocol.problems import CATALOGUE
from fedlearn.reporting.history import RoundFigures, why_none
from fedlearn.reporting.progress import Progress

SCORED = RoundFigures(
    round=1,
    outcome="committed",
    reason=None,
    selected=4,
    reported=4,
    rejected=0,
    examples=100,
    accuracy=0.9,
    loss=0.3,
    federated_accuracy=0.1,
    seconds=1.5,
)


def told(*states: list[RoundFigures]) -> list[str]:
    """The lines after each of these states of the rounds that have ended; and at the end."""
    text = io.StringIO()
    lines = []
    with Progress(Console(file=text), rounds=3) as progress:
        for state in states:
            progress.show(None, state)
            lines.append(text.getvalue())
    return [*lines, text.getvalue()]


def test_a_round_is_told_once_when_it_has_its_scores() -> None:
    waiting = SCORED.model_copy(update={"accuracy": None, "loss": None})
    lines = told([waiting], [SCORED], [SCORED])
    assert lines[0] == ""
    assert "round 1/3 committed: 4 of 4 reported, accuracy 90.00 %" in lines[1]
    assert lines[1] == lines[2] == lines[3]


def test_a_round_that_nobody_scores_is_told_when_the_next_has_ended_and_the_last_at_the_end() -> None:
    first, second = (SCORED.model_copy(update={"round": number, "accuracy": None, "loss": None}) for number in (1, 2))
    lines = told([first], [first, second])
    assert lines[0] == ""
    assert "round 1/3" in lines[1]
    assert "round 2/3" not in lines[1]
    assert "round 2/3 committed" in lines[2]


ABANDONED = SCORED.model_copy(
    update={
        "outcome": "abandoned",
        "reason": "too_few_reports",
        "reported": 0,
        "selected": 5,
        "failures": {Code.TRAINING_FAILED: 5},
    }
)


def test_an_abandoned_round_says_why_its_devices_failed_and_is_counted_no_higher_than_wanted() -> None:
    fourth = ABANDONED.model_copy(update={"round": 4})
    first, last = told([ABANDONED, fourth])[-1].splitlines()
    assert first == "round 1/3 abandoned: too_few_reports (5 training_failed), 1.50 s"
    assert last == "round 4 abandoned: too_few_reports (5 training_failed), 1.50 s"


def test_a_run_without_a_committed_round_says_why() -> None:
    assert why_none([]) is why_none([ABANDONED, SCORED]) is None
    assert why_none([ABANDONED]) == (
        "No round was committed: in the last one 5 of 5 devices failed (training_failed: "
        f"{CATALOGUE[Code.TRAINING_FAILED].title.rstrip('.')}); their logs say more. [too_few_reports]"
    )
    nobody = ABANDONED.model_copy(update={"reason": "too_few_devices", "failures": {}})
    assert why_none([nobody]) == f"No round was committed: {CATALOGUE[Code.TOO_FEW_DEVICES].title} [too_few_devices]"
