"""A run as it goes: a live table on a terminal, plain lines where the output is piped."""

from collections import Counter
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from fedlearn.protocol.views import RoundView
from fedlearn.reporting.history import RoundFigures


class Progress:
    """Shows sentences, the running round and the rounds that have ended.

    Args:
        rounds: how many the run wants; None for no end.
    """

    def __init__(self, console: Console, rounds: int | None) -> None:
        self._console, self._rounds = console, "∞" if rounds is None else str(rounds)
        self._ended: list[RoundFigures] = []
        self._told: set[int] = set()
        self._running: RoundView | None = None
        self._sentence = ""
        self._spinner = Spinner("dots")
        self._live = Live(console=console, get_renderable=self._picture, refresh_per_second=8, transient=False)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._sentence, self._running = "", None
        if self._console.is_terminal:
            self._live.stop()
        else:
            self._tell(self._ended)

    def say(self, sentence: str) -> None:
        self._sentence = sentence
        if not self._console.is_terminal:
            self._console.print(sentence, soft_wrap=True)

    def show(self, running: RoundView | None, ended: list[RoundFigures]) -> None:
        """The state now; a round is told once it has its scores, or the next one has ended without them."""
        self._running, self._ended = running, ended
        if not self._console.is_terminal:
            last = ended[-1].round if ended else 0
            self._tell([figures for figures in ended if _is_scored(figures) or figures.round < last])

    def _tell(self, ended: list[RoundFigures]) -> None:
        for figures in ended:
            if figures.round not in self._told:
                self._told.add(figures.round)
                self._console.print(_line(figures, self._rounds), soft_wrap=True)

    def _picture(self) -> RenderableType:
        parts: list[RenderableType] = []
        if self._ended:
            parts.append(table(self._ended))
        if self._running is not None:
            self._spinner.update(text=_now(self._running, self._rounds))
            parts.append(self._spinner)
        elif self._sentence:
            self._spinner.update(text=Text(self._sentence))
            parts.append(self._spinner)
        return Group(*parts)


def table(rounds: list[RoundFigures]) -> Table:
    """The rounds that have ended, one a row."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("round", "outcome", "reported", "examples", "accuracy", "loss", "hold-out", "seconds"):
        shown.add_column(heading, justify="left" if heading == "outcome" else "right")
    for figures in rounds:
        committed = figures.outcome == "committed"
        shown.add_row(
            str(figures.round),
            Text("committed", "green") if committed else Text(f"abandoned: {_why(figures)}", "red"),
            f"{figures.reported}/{figures.selected}",
            f"{figures.examples:,}",
            Text(_percent(figures.accuracy), "bold"),
            "…" if figures.loss is None and committed else _number(figures.loss),
            _percent(figures.federated_accuracy),
            f"{figures.seconds:.2f}",
        )
    return shown


def _is_scored(figures: RoundFigures) -> bool:
    return figures.outcome == "abandoned" or figures.loss is not None


def _now(round_: RoundView, rounds: str) -> Text:
    counts = Counter(participant.standing for participant in round_.participants)
    text = Text.assemble(
        ("round ", "dim"), f"{_count(round_.round, rounds)} ", (round_.phase, "cyan"), f" {round_.seconds:.1f} s"
    )
    if round_.participants:
        text.append(f"  {counts['reported']}/{len(round_.participants)} reported")
    if counts["refused"] or counts["dropped"]:
        text.append(f"  {counts['refused']} refused, {counts['dropped']} dropped out", "yellow")
    waiting = [p.device for p in round_.participants if p.standing in ("selected", "accepted")]
    if waiting:
        text.append("  waiting for " + ", ".join(waiting[:4]) + (" …" if len(waiting) > 4 else ""), "dim")
    return text


def _line(figures: RoundFigures, rounds: str) -> str:
    if figures.outcome == "abandoned":
        return f"round {_count(figures.round, rounds)} abandoned: {_why(figures)}, {figures.seconds:.2f} s"
    return (
        f"round {_count(figures.round, rounds)} committed: {figures.reported} of {figures.selected} reported, accuracy "
        f"{_percent(figures.accuracy)}, loss {_number(figures.loss)}, hold-out {_percent(figures.federated_accuracy)}, "
        f"{figures.seconds:.2f} s"
    )


def _count(number: int, rounds: str) -> str:
    """Of so many: which a round beyond them, in place of one that was abandoned, is not."""
    return str(number) if rounds.isdecimal() and number > int(rounds) else f"{number}/{rounds}"


def _why(figures: RoundFigures) -> str:
    failures = ", ".join(f"{count} {code}" for code, count in figures.failures.items())
    return f"{figures.reason} ({failures})" if failures else f"{figures.reason}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f} %"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
