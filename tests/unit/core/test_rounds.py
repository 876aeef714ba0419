"""What should happen in a round, and what should not."""

import pytest

from fedlearn.core.errors import Code, Refusal
from fedlearn.core.ids import DeviceId, RoundId, TaskId
from fedlearn.core.policy import Quorum, RoundPolicy, Verdict
from fedlearn.core.rounds import (
    Aggregate,
    Aggregated,
    AssignCohort,
    CloseRound,
    CohortSelected,
    CommitModel,
    DeviceAccepted,
    DeviceDropped,
    DevicesAvailable,
    Event,
    Failed,
    ModelRef,
    OpenRound,
    Phase,
    Round,
    RoundOpened,
    SelectCohort,
    Standing,
    SweepRound,
    Tick,
    UpdatesCounted,
    advance,
    resume,
    start,
)

A, B, C = DeviceId("a"), DeviceId("b/0"), DeviceId("b/1")
BASE = ModelRef(3, "t/models/3", "0" * 64, 100)
NEXT = ModelRef(4, "t/models/4", "1" * 64, 100)
POLICY = RoundPolicy(goal=3, min_fraction=0.6, selection_timeout_seconds=10, reporting_timeout_seconds=100)
EVENTS: list[Event] = [
    Tick(),
    DevicesAvailable(5),
    CohortSelected((A, B, C)),
    RoundOpened(),
    DeviceAccepted(A),
    DeviceDropped(A, Code.DEVICE_STOPPING),
    UpdatesCounted(frozenset({A, B, C}), {}),
    Aggregated(Aggregate(NEXT, frozenset({A, B, C}), 30)),
    Failed(Code.TASK_CANCELLED),
]


def in_selection() -> Round:
    return start(RoundId(TaskId("t"), 7), POLICY, BASE, now=1000.0)


def in_configuration() -> Round:
    return advance(in_selection(), CohortSelected((A, B, C)), 1001.0)[0]


def in_reporting() -> Round:
    return advance(in_configuration(), RoundOpened(), 1002.0)[0]


def in_aggregation() -> Round:
    return advance(in_reporting(), UpdatesCounted(frozenset({A, B, C}), {}), 1003.0)[0]


def committed() -> Round:
    return advance(in_aggregation(), Aggregated(Aggregate(NEXT, frozenset({A, B, C}), 30)), 1004.0)[0]


def abandoned() -> Round:
    return advance(in_reporting(), Failed(Code.TASK_CANCELLED), 1003.0)[0]


RUNNING = [in_selection(), in_configuration(), in_reporting(), in_aggregation()]


def standings(round_: Round) -> dict[DeviceId, Standing]:
    return {device: participant.standing for device, participant in round_.participants.items()}


@pytest.mark.parametrize(
    ("count", "elapsed", "can_grow", "verdict"),
    [
        pytest.param(3, 0.0, True, Verdict.ENOUGH, id="the goal is enough at once"),
        pytest.param(2, 9.9, True, Verdict.WAIT, id="the minimum waits for more"),
        pytest.param(2, 10.0, True, Verdict.ENOUGH, id="the minimum is enough when the time is up"),
        pytest.param(1, 10.0, True, Verdict.TOO_FEW, id="below the minimum is too few when the time is up"),
        pytest.param(2, 0.0, False, Verdict.ENOUGH, id="the minimum is enough when no more can come"),
        pytest.param(1, 0.0, False, Verdict.TOO_FEW, id="below the minimum is too few when no more can come"),
    ],
)
def test_a_quorum_is_count_and_time(count: int, elapsed: float, can_grow: bool, verdict: Verdict) -> None:
    assert Quorum(minimum=2, goal=3, timeout_seconds=10).verdict(count, elapsed, can_grow=can_grow) is verdict


def test_a_whole_round_commits_its_model_against_its_base() -> None:
    round_, effects = advance(in_selection(), DevicesAvailable(3), 1000.5)
    assert (round_.phase, effects) == (Phase.SELECTION, (SelectCohort(3),))
    round_, effects = advance(round_, CohortSelected((A, B, C)), 1001.0)
    assert (round_.phase, effects) == (Phase.CONFIGURATION, (OpenRound(),))
    round_, effects = advance(round_, RoundOpened(), 1002.0)
    assert (round_.phase, effects) == (Phase.REPORTING, (AssignCohort(),))
    round_, effects = advance(round_, UpdatesCounted(frozenset({A}), {}), 1003.0)
    assert (round_.phase, effects) == (Phase.REPORTING, ())
    round_, effects = advance(round_, UpdatesCounted(frozenset({A, B, C}), {}), 1004.0)
    assert (round_.phase, effects) == (Phase.AGGREGATION, (CloseRound(),))
    round_, effects = advance(round_, Aggregated(Aggregate(NEXT, frozenset({A, B, C}), 30)), 1006.0)
    assert (round_.phase, effects) == (Phase.COMMITTED, (CommitModel(BASE, NEXT), SweepRound()))
    assert round_.phase_seconds == {
        Phase.SELECTION: 1.0,
        Phase.CONFIGURATION: 1.0,
        Phase.REPORTING: 2.0,
        Phase.AGGREGATION: 2.0,
    }


def test_selection_wants_more_devices_than_reports_by_its_over_selection() -> None:
    policy = RoundPolicy(goal=10, over_selection=1.3, selection_timeout_seconds=10)
    round_ = start(RoundId(TaskId("t"), 1), policy, BASE, now=0.0)
    assert advance(round_, DevicesAvailable(12, to_come=30), 1.0) == (round_, ())
    assert advance(round_, DevicesAvailable(40), 1.0)[1] == (SelectCohort(13),)


@pytest.mark.parametrize(
    ("waiting", "to_come", "chosen"),
    [
        pytest.param(10, 0, (SelectCohort(10),), id="the whole fleet is as large as the goal"),
        pytest.param(12, 0, (SelectCohort(12),), id="no spare device will come"),
        pytest.param(12, 1, (), id="one more should be back soon"),
        pytest.param(9, 0, (), id="below the goal a new one may come"),
        pytest.param(40, 5, (SelectCohort(13),), id="enough"),
    ],
)
def test_a_fleet_without_spare_devices_is_not_waited_for(waiting: int, to_come: int, chosen: tuple[object, ...]) -> None:
    policy = RoundPolicy(goal=10, over_selection=1.3, selection_timeout_seconds=10)
    round_ = start(RoundId(TaskId("t"), 1), policy, BASE, now=0.0)
    assert advance(round_, DevicesAvailable(waiting, to_come), 1.0)[1] == chosen


@pytest.mark.parametrize(
    ("event", "chosen"),
    [
        pytest.param(DevicesAvailable(2, gathering_seconds=10.0), (SelectCohort(2),), id="the minimum has had its time"),
        pytest.param(DevicesAvailable(2, gathering_seconds=9.0), (), id="some of its time is left"),
        pytest.param(DevicesAvailable(2, to_come=1, gathering_seconds=10.0), (), id="one is on its way back"),
        pytest.param(DevicesAvailable(1, gathering_seconds=60.0), (), id="below the minimum a new one may come"),
        pytest.param(DevicesAvailable(9, gathering_seconds=60.0), (SelectCohort(4),), id="never more than are wanted"),
    ],
)
def test_devices_that_gathered_before_the_round_was_opened_need_not_wait_again(
    event: Event, chosen: tuple[object, ...]
) -> None:
    round_, effects = advance(in_selection(), event, 1000.0)
    assert (round_, effects) == (in_selection(), chosen)


def test_selection_takes_what_there_is_when_its_time_is_up() -> None:
    assert advance(in_selection(), DevicesAvailable(2), 1010.0)[1] == (SelectCohort(2),)


def test_selection_is_abandoned_when_too_few_devices_came() -> None:
    round_, effects = advance(in_selection(), DevicesAvailable(1), 1010.0)
    assert (round_.phase, round_.reason, effects) == (Phase.ABANDONED, Code.TOO_FEW_DEVICES, ())


def test_an_aggregator_that_never_opens_the_round_abandons_it() -> None:
    configuration = in_configuration()
    assert configuration.deadline is not None
    assert advance(configuration, Tick(), configuration.deadline - 1)[0].phase is Phase.CONFIGURATION
    round_, effects = advance(configuration, Tick(), configuration.deadline)
    assert (round_.phase, round_.reason, effects) == (Phase.ABANDONED, Code.AGGREGATOR_UNREACHABLE, (SweepRound(),))


def test_the_deadline_closes_a_round_that_has_the_minimum() -> None:
    round_ = advance(in_reporting(), UpdatesCounted(frozenset({A, B}), {}), 1050.0)[0]
    round_, effects = advance(round_, Tick(), 1102.0)
    assert (round_.phase, effects) == (Phase.AGGREGATION, (CloseRound(),))
    assert standings(round_) == {A: Standing.REPORTED, B: Standing.REPORTED, C: Standing.RELEASED}


def test_the_deadline_abandons_a_round_that_has_less_than_the_minimum() -> None:
    round_ = advance(in_reporting(), UpdatesCounted(frozenset({A}), {}), 1050.0)[0]
    round_, effects = advance(round_, Tick(), 1102.0)
    assert (round_.phase, round_.reason, effects) == (Phase.ABANDONED, Code.TOO_FEW_REPORTS, (SweepRound(),))


def test_a_round_does_not_wait_for_devices_that_have_dropped_out_or_were_refused() -> None:
    round_ = advance(in_reporting(), UpdatesCounted(frozenset({A, B}), {}), 1050.0)[0]
    round_, effects = advance(round_, DeviceDropped(C, Code.DEVICE_STOPPING), 1051.0)
    assert (round_.phase, effects) == (Phase.AGGREGATION, (CloseRound(),))
    refused = advance(in_reporting(), UpdatesCounted(frozenset({A, B}), {C: Code.UPDATE_NOT_FINITE}), 1050.0)[0]
    assert refused.phase is Phase.AGGREGATION
    assert refused.participants[C].code is Code.UPDATE_NOT_FINITE


def test_the_same_word_twice_changes_nothing() -> None:
    once = advance(in_reporting(), UpdatesCounted(frozenset({A}), {B: Code.UPDATE_SHAPE}), 1050.0)[0]
    assert advance(once, UpdatesCounted(frozenset({A}), {B: Code.UPDATE_SHAPE}), 1051.0) == (once, ())
    dropped = advance(once, DeviceDropped(A, Code.DEVICE_STOPPING), 1052.0)[0]
    assert dropped.participants[A].standing is Standing.REPORTED


def test_a_device_that_was_refused_first_and_then_folded_has_reported() -> None:
    refused = advance(in_reporting(), UpdatesCounted(frozenset(), {B: Code.UPDATE_SHAPE}), 1050.0)[0]
    assert advance(refused, UpdatesCounted(frozenset({B}), {}), 1051.0)[0].participants[B].standing is Standing.REPORTED


def test_strangers_are_not_counted() -> None:
    reporting = in_reporting()
    stranger = DeviceId("stranger")
    assert advance(reporting, UpdatesCounted(frozenset({stranger}), {}), 1050.0) == (reporting, ())
    with pytest.raises(Refusal, match="not in round t/7") as refusal:
        advance(reporting, DeviceAccepted(stranger), 1050.0)
    assert refusal.value.code is Code.NOT_SELECTED


def test_the_aggregate_says_who_is_in_even_if_the_reports_did_not() -> None:
    round_ = advance(in_reporting(), UpdatesCounted(frozenset({A, B}), {}), 1050.0)[0]
    round_ = advance(round_, Tick(), 1102.0)[0]
    assert round_.participants[C].standing is Standing.RELEASED
    round_ = advance(round_, Aggregated(Aggregate(NEXT, frozenset({A, B, C}), 30)), 1103.0)[0]
    assert round_.participants[C].standing is Standing.REPORTED


def test_a_device_that_is_counted_after_the_close_and_is_not_in_the_aggregate_has_not_reported() -> None:
    round_ = advance(in_reporting(), UpdatesCounted(frozenset({A, B}), {}), 1050.0)[0]
    round_ = advance(round_, Tick(), 1102.0)[0]
    round_ = advance(round_, UpdatesCounted(frozenset({A, B, C}), {}), 1102.5)[0]
    round_ = advance(round_, Aggregated(Aggregate(NEXT, frozenset({A, B}), 20)), 1103.0)[0]
    assert standings(round_) == {A: Standing.REPORTED, B: Standing.REPORTED, C: Standing.RELEASED}


def test_an_aggregation_that_takes_too_long_is_abandoned() -> None:
    aggregation = in_aggregation()
    assert aggregation.deadline is not None
    round_, effects = advance(aggregation, Tick(), aggregation.deadline)
    assert (round_.phase, round_.reason, effects) == (Phase.ABANDONED, Code.AGGREGATION_TIMEOUT, (SweepRound(),))


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
@pytest.mark.parametrize("round_", [committed(), abandoned()], ids=["committed", "abandoned"])
def test_nothing_changes_a_round_that_has_ended(round_: Round, event: Event) -> None:
    assert advance(round_, event, 9999.0) == (round_, ())


@pytest.mark.parametrize("round_", RUNNING, ids=lambda r: r.phase)
def test_a_failure_abandons_a_round_in_any_phase_with_its_reason(round_: Round) -> None:
    ended, effects = advance(round_, Failed(Code.AGGREGATOR_KEY_LOST), 1010.0)
    assert (ended.phase, ended.reason, effects) == (Phase.ABANDONED, Code.AGGREGATOR_KEY_LOST, (SweepRound(),))
    assert ended.deadline is None


@pytest.mark.parametrize(
    ("round_", "event"),
    [
        pytest.param(in_selection(), RoundOpened(), id="opened while selecting"),
        pytest.param(in_selection(), Aggregated(Aggregate(NEXT, frozenset({A}), 1)), id="a result while selecting"),
        pytest.param(in_reporting(), Aggregated(Aggregate(NEXT, frozenset({A}), 1)), id="a result before the close"),
        pytest.param(in_reporting(), CohortSelected((A,)), id="a second cohort"),
        pytest.param(in_aggregation(), RoundOpened(), id="opened while closing"),
    ],
)
def test_what_comes_out_of_its_phase_changes_nothing(round_: Round, event: Event) -> None:
    assert advance(round_, event, 1003.5) == (round_, ())


@pytest.mark.parametrize(
    ("round_", "effects"),
    [
        pytest.param(in_selection(), (), id="selection waits for devices"),
        pytest.param(in_configuration(), (OpenRound(),), id="configuration opens again"),
        pytest.param(in_reporting(), (OpenRound(),), id="reporting makes sure that it is open"),
        pytest.param(in_aggregation(), (CloseRound(),), id="aggregation closes again"),
        pytest.param(committed(), (SweepRound(),), id="what has ended is swept again"),
    ],
)
def test_a_driver_that_finds_a_round_goes_on_where_it_stands(round_: Round, effects: tuple[object, ...]) -> None:
    assert resume(round_) == effects


def test_a_resumed_reporting_assigns_its_cohort_again() -> None:
    reporting = in_reporting()
    assert advance(reporting, RoundOpened(), 1003.0) == (reporting, (AssignCohort(),))
