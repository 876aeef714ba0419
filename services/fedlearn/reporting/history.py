"""The history of a task as the summary that `fedlearn run` writes."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from fedlearn.core.errors import Code
from fedlearn.core.rounds import Standing
from fedlearn.protocol.problems import CATALOGUE
from fedlearn.protocol.views import RoundView, VersionView


class RoundFigures(BaseModel):
    """One round as the summary tells it.

    Args:
        accuracy: the published model's on the test set; None for an abandoned round.
        federated_accuracy: the devices' weighted hold-out accuracy of the version that the round started from.
        failures: how many devices were refused or dropped out, by the code of why.
    """

    round: int
    outcome: Literal["committed", "abandoned"]
    reason: str | None = None
    selected: int
    reported: int
    rejected: int
    examples: int
    accuracy: float | None
    loss: float | None
    federated_accuracy: float | None
    seconds: float
    failures: dict[Code, int] = {}


class Summary(BaseModel):
    """A run from start to end.

    Args:
        final_accuracy: the model's on the test set, as is `final_loss`; None if no round has made it.
        seconds: from the command's start until the last version was scored and saved.
    """

    dataset: str
    model: str
    devices: int
    partitioner: str
    seed: int
    rounds: list[RoundFigures]
    final_accuracy: float | None
    final_loss: float | None
    model_path: Path
    model_version: Annotated[int, Field(ge=0)]
    seconds: float


def figures(round_: RoundView, versions: Sequence[VersionView]) -> RoundFigures:
    """What a round that has ended comes to; accuracy and loss once its version is scored."""
    standings = [participant.standing for participant in round_.participants]
    version = next((v for v in versions if v.round == round_.round), None)
    scores = (version.evaluation if version is not None else None) or {}
    return RoundFigures(
        round=round_.round,
        outcome="committed" if round_.phase == "committed" else "abandoned",
        reason=round_.reason,
        selected=len(standings),
        reported=sum(standing == Standing.REPORTED for standing in standings),
        rejected=sum(standing == Standing.REFUSED for standing in standings),
        examples=round_.examples or 0,
        accuracy=scores.get("accuracy"),
        loss=scores.get("loss"),
        federated_accuracy=round_.metrics.get("accuracy"),
        seconds=round(round_.seconds, 3),
        failures=Counter(participant.code for participant in round_.participants if participant.code is not None),
    )


def why_none(rounds: Sequence[RoundFigures]) -> str | None:
    """Why no round of them was committed, as a sentence with the code of the last one; None if one was, or there is none."""
    if not rounds or any(figures.outcome == "committed" for figures in rounds):
        return None
    last = rounds[-1]
    reason = f" [{last.reason}]" if last.reason else ""
    if not last.failures:
        title = CATALOGUE[Code(last.reason)].title if last.reason else "It gave no reason."
        return f"No round was committed: {title}{reason}"
    devices = ", ".join(
        f"{count} of {last.selected} devices failed ({code}: {CATALOGUE[code].title.rstrip('.')})"
        for code, count in last.failures.items()
    )
    return f"No round was committed: in the last one {devices}; their logs say more.{reason}"
