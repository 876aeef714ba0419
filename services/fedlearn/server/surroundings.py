"""What every task's driver works with, and who hears how its rounds end."""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from fedlearn.core.ports import Clock, ObjectStore, RoundStore
from fedlearn.core.rounds import Round
from fedlearn.core.selection import Pace
from fedlearn.protocol.tickets import TicketSigner
from fedlearn.server.console.feed import Feed
from fedlearn.server.fleet import Fleet
from fedlearn.server.peers import AggregatorClient
from fedlearn.server.speeds import Speeds


class RoundListener(Protocol):
    """Hears how rounds end. It has to return at once; what it raises is logged, and no round fails with it."""

    def ended(self, round_: Round) -> None: ...


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What every runner works with."""

    store: RoundStore
    models: ObjectStore
    fleet: Fleet
    aggregator: AggregatorClient
    signer: TicketSigner
    clock: Clock
    rng: np.random.Generator
    ticket_grace_seconds: float
    pace: Pace = field(default_factory=Pace)
    listeners: tuple[RoundListener, ...] = ()
    speeds: Speeds = field(default_factory=Speeds)
    feed: Feed = field(default_factory=Feed)
