"""Whatever way a round goes, the database gives back exactly the round that was saved, and accepts the next step from it."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedlearn.adapters.database import DatabaseRoundStore
from fedlearn.core.eligibility import Demands
from fedlearn.core.errors import Code, Refusal
from fedlearn.core.ids import DeviceId, RoundId, TaskId
from fedlearn.core.policy import RoundPolicy
from fedlearn.core.ports import RoundStore, Task
from fedlearn.core.rounds import (
    Aggregate,
    Aggregated,
    CohortSelected,
    DeviceAccepted,
    DeviceDropped,
    Event,
    Failed,
    ModelRef,
    Phase,
    Round,
    RoundOpened,
    Tick,
    UpdatesCounted,
    advance,
    start,
)

DEVICES = [DeviceId(f"device-{number}") for number in range(6)]
_names = itertools.count()

seconds = st.floats(min_value=0.0, max_value=1e4)
sizes = st.integers(min_value=0, max_value=2**62)
codes = st.sampled_from(Code)
some_devices = st.lists(st.sampled_from(DEVICES), unique=True)
policies = st.builds(
    RoundPolicy,
    goal=st.integers(1, 5),
    over_selection=st.floats(1.0, 3.0),
    min_fraction=st.floats(0.1, 1.0),
    selection_timeout_seconds=seconds,
    reporting_timeout_seconds=seconds,
    aggregation_timeout_seconds=seconds,
    overlap_selection=st.booleans(),
    demands=st.builds(
        Demands, idle=st.booleans(), min_examples=sizes, runtime=st.text(st.characters(codec="utf-8"), max_size=9)
    ),
)
metrics = st.dictionaries(st.text(max_size=8), st.floats(allow_nan=False))
keys = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=9)
aggregates = st.builds(
    Aggregate,
    model=st.builds(ModelRef, st.just(1), keys, st.just("cd"), sizes),
    contributors=st.frozensets(st.sampled_from(DEVICES)),
    examples=sizes,
    metrics=metrics,
)
openings = st.builds(RoundOpened, st.none() | st.builds(ModelRef, st.just(0), st.just("0.float16"), st.just("cd"), sizes))
events = st.one_of(
    st.just(Tick()),
    openings,
    some_devices.map(lambda devices: CohortSelected(tuple(devices))),
    st.sampled_from(DEVICES).map(DeviceAccepted),
    st.builds(DeviceDropped, st.sampled_from(DEVICES), codes),
    st.builds(UpdatesCounted, some_devices.map(frozenset), st.dictionaries(st.sampled_from(DEVICES), codes)),
    st.builds(Aggregated, aggregates),
    codes.map(Failed),
)
likely = st.tuples(st.permutations(DEVICES).map(lambda devices: CohortSelected(tuple(devices))), openings)


@st.composite
def walks(draw: st.DrawFn) -> list[Round]:
    """The states that a new round goes through, each reached from the one before by one event."""
    now = draw(st.floats(min_value=0.0, max_value=2e9))
    task = TaskId(f"task-{next(_names)}")
    round_ = start(RoundId(task, draw(st.integers(1, 2**31 - 1))), draw(policies), ModelRef(0, "0", "ab", draw(sizes)), now)
    walk = [round_]
    beginning: tuple[Event, ...] = draw(st.one_of(st.just(()), likely))
    for event in [*beginning, *draw(st.lists(events, max_size=12))]:
        now += draw(seconds)
        try:
            round_, _ = advance(round_, event, now)
        except Refusal:  # word of a device that is not in the round
            continue
        walk.append(round_)
    return walk


@pytest.fixture
def store(database_url: str) -> Iterator[RoundStore]:
    store = DatabaseRoundStore(database_url)
    store.migrate()
    yield store
    store.close()


@given(walk=walks())
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_state_of_a_round_comes_back_exactly(store: RoundStore, walk: list[Round]) -> None:
    first, base = walk[0], walk[0].base
    store.add_task(Task(first.id.task, "waiting_for_model", "d1" * 32, first.policy, None, 0.0, base), b"{}")
    store.start_task(first.id.task, 0.0)
    store.add_round(first)
    for previous, round_ in itertools.pairwise(walk):
        if round_.phase is Phase.COMMITTED and previous.phase is not Phase.COMMITTED:
            store.commit(round_, previous, 0.0)
        else:
            store.save_round(round_, previous)
        assert shown(store.round(round_.id)) == shown(round_)
        assert store.rounds(round_.id.task) == [store.latest_round(round_.id.task)] == [round_]


def shown(round_: Round) -> Any:
    """The round with the types of its parts and the order of its mappings, which `==` would overlook."""
    contributors = round_.aggregate and sorted(round_.aggregate.contributors)
    bare = round_.aggregate and replace(round_.aggregate, contributors=frozenset())
    return repr(replace(round_, aggregate=bare)), contributors
