from dataclasses import replace

from fedlearn.adapters.database import DatabaseRoundStore
from fedlearn.core.rounds import Phase, Round
from fedlearn.server.coordinator import Coordinator
from fedlearn.server.surroundings import RoundListener
from support.desk import Desk, until


def desk_with(listener: RoundListener, store: DatabaseRoundStore) -> Desk:
    desk = Desk(store)
    desk.around = replace(desk.around, listeners=(listener,))
    desk.coordinator = Coordinator(desk.around)
    return desk


async def test_a_listener_hears_once_how_each_round_has_ended(store: DatabaseRoundStore) -> None:
    heard: list[Round] = []

    class Listener:
        def ended(self, round_: Round) -> None:
            heard.append(round_)

    desk = desk_with(Listener(), store)
    await desk.drive(desk.add_task(rounds=1, goal=1, selection_timeout_seconds=0.02))
    await until(lambda: len(heard) >= 2)
    assert [(round_.id.number, round_.phase) for round_ in heard[:2]] == [(1, Phase.ABANDONED), (2, Phase.ABANDONED)]
    assert heard[0] == desk.round(1)
    await desk.coordinator.stop()
    store.close()


async def test_a_listener_that_fails_fails_no_round(store: DatabaseRoundStore) -> None:
    class Listener:
        def ended(self, round_: Round) -> None:
            raise RuntimeError("deaf")

    desk = desk_with(Listener(), store)
    runner = await desk.drive(desk.add_task(rounds=1, goal=1, selection_timeout_seconds=0.02))
    await desk.reach(1, Phase.ABANDONED)
    await until(lambda: runner.round is not None and runner.round.id.number == 2)
    assert desk.runner() is runner, "its driver has not started anew"
    await desk.coordinator.stop()
    store.close()
