"""Words on their way to a round's driver: handed in by requests, applied together, answered once their consequence is saved."""

import asyncio
from dataclasses import dataclass, field

from fedlearn.core.errors import FedlearnError
from fedlearn.core.ids import RoundId
from fedlearn.core.rounds import Event


@dataclass(frozen=True, slots=True, eq=False)
class Word:
    """One event for one round, and somebody who waits for it to be saved."""

    round_id: RoundId
    event: Event
    _saved: asyncio.Future[None] = field(repr=False)

    def confirm(self) -> None:
        """Its consequence is saved."""
        if not self._saved.done():
            self._saved.set_result(None)

    def refuse(self, error: FedlearnError) -> None:
        """It changed nothing; whoever waits for it is told why, unless nobody does any more."""
        if not self._saved.done():
            self._saved.set_exception(error)


class Inbox:
    """Words that the driver has not taken yet."""

    def __init__(self) -> None:
        self._words: list[Word] = []

    async def hand_in(self, round_id: RoundId, event: Event) -> None:
        """Wait until the word is confirmed; raises what it is refused with."""
        saved = asyncio.get_running_loop().create_future()
        self._words.append(Word(round_id, event, saved))
        await saved

    def take(self) -> list[Word]:
        """All words, in the order of their coming; the taker answers each of them."""
        words, self._words = self._words, []
        return words
