"""The way of an update: what a signed URL allows, what is counted, and what is refused and why."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import httpx
import numpy as np
import pytest

from fedlearn.core.errors import Code
from fedlearn.local.storage import LocalStorage
from fedlearn.protocol.envelope import UpdateContext, layout_of, seal
from fedlearn.protocol.messages import Assignment
from fedlearn.protocol.plans import Plan
from fedlearn.protocol.sealing import SealingKey
from support.trial import Trial, step
from support.world import HandDevice, World, name_of, small_plan, wait_for

OTHER_DIGEST = "0" * 64


@pytest.fixture(scope="module")
def world(storage: LocalStorage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Upload URLs are valid for ten seconds only, the shortest that the settings allow."""
    world = World.start(tmp_path_factory.mktemp("world"), storage, {"FEDLEARN_UPLOAD_SECONDS": "10"})
    yield world
    world.stop()


@dataclass(frozen=True)
class Outlived:
    """A round that has ended and was swept; then one URL of it was used, and another is left."""

    trial: Trial
    device: HandDevice
    url: httpx.Response
    body: bytes


@pytest.fixture(scope="module", autouse=True)
def outlived(world: World) -> Outlived:
    """Prepared before all tests of this module, since the second sweep comes ten seconds later."""
    trial = Trial(world, "urls-that-outlive-their-round")
    a, b, c = trial.devices("a", "b", "c")
    trial.introduce(a, b, c)
    trial.submit(goal=2, over_selection=1.5, rounds=1)
    assignments = trial.assign(a, b, c)
    late = [trial.seal(c, assignments[2], trial.update()) for _ in range(2)]
    urls = [c.ask(assignments[2], body) for body in late]
    for device, assignment in zip((a, b), assignments, strict=False):
        trial.bring(device, assignment, trial.update())
    trial.reach(1, "committed")
    wait_for(lambda: world.updates_of(trial.id()) == [], "the first sweep")
    assert c.put(urls[0], late[0]).status_code == 200
    digest = name_of(late[0])
    assert world.updates_of(trial.id()) == [f"{trial.name}/00000001/updates/{c.id}/{digest}"]
    return Outlived(trial, c, urls[1], late[1])


def code_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


# --- what a grant allows


@dataclass(frozen=True)
class Granted:
    """A device in a round, its sealed update, and the answer to its question where that may go."""

    trial: Trial
    device: HandDevice
    assignment: Assignment
    body: bytes
    answer: httpx.Response

    @property
    def url(self) -> str:
        return self.answer.json()["url"]

    @property
    def headers(self) -> dict[str, str]:
        return self.answer.json()["headers"]

    def put(self, **change: Any) -> int:
        """PUT as granted, but for this change; the status."""
        given = {"url": self.url, "headers": self.headers, "content": self.body, **change}
        return httpx.put(**given, trust_env=False).status_code

    def stored(self) -> list[str]:
        return [key for key in self.trial.world.updates_of(self.trial.id()) if "/updates/" in key]


@pytest.fixture
def granted(trial: Trial) -> Granted:
    trial.submit()
    a, b = trial.devices("a", "b")
    assignment, _ = trial.assign(a, b)
    body = trial.seal(a, assignment, trial.update())
    return Granted(trial, a, assignment, body, a.ask(assignment, body))


def changed_header(name: str, value: str) -> Callable[[Granted], dict[str, Any]]:
    return lambda g: {"headers": {**g.headers, name: value}}


@pytest.mark.parametrize(
    ("change", "statuses"),
    [
        pytest.param(lambda g: {"content": g.body[:-1] + b"x"}, {400, 403}, id="other bytes"),
        pytest.param(lambda g: {"content": g.body[:9], "headers": {**g.headers, "Content-Length": "9"}}, {403}, id="length"),
        pytest.param(lambda g: {"url": g.url.replace("/updates/", "/updates/x-")}, {403}, id="another key"),
        pytest.param(changed_header("x-amz-checksum-sha256", "A" * 43 + "="), {400, 403}, id="another digest"),
        pytest.param(changed_header("If-None-Match", "x"), {403}, id="another condition"),
    ],
)
def test_a_grant_is_bound_to_its_key_length_and_digest(
    granted: Granted, change: Callable[[Granted], dict[str, Any]], statuses: set[int]
) -> None:
    assert granted.put(**change(granted)) in statuses
    assert granted.stored() == []
    assert granted.put() == 200


def test_a_second_put_is_told_so_and_the_word_of_it_is_success(granted: Granted) -> None:
    assert granted.put() == 200
    again = granted.device.ask(granted.assignment, granted.body)
    assert granted.device.put(again, granted.body).status_code == 412
    assert granted.device.done(granted.assignment, granted.body).status_code == 202
    granted.trial.wait_for_standing(granted.device, "reported")


def test_what_was_put_can_not_be_read_by_the_grant(granted: Granted) -> None:
    assert granted.put() == 200
    assert httpx.get(granted.url, trust_env=False).status_code == 403


# --- what is counted


def test_an_update_that_is_told_twice_is_counted_once_and_another_of_the_device_is_refused(trial: Trial) -> None:
    trial.submit(rounds=1)
    a, b = trial.devices("a", "b")
    first, second = trial.assign(a, b)
    folded, repeated = trial.folded(), trial.counted(Code.UPDATE_REPEATED)
    updates = [trial.update(), trial.update(50)]
    body = trial.bring(a, first, updates[0])
    trial.wait_for_standing(a, "reported")
    assert a.done(first, body).status_code == 202
    other = trial.seal(a, first, trial.update(1000))
    assert code_of(a.ask(first, other)) == (409, Code.UPDATE_REPEATED)
    trial.bring(b, second, updates[1])
    assert trial.reach(1, "committed", "abandoned").phase == "committed"
    assert trial.folded() - folded == 2
    assert trial.counted(Code.UPDATE_REPEATED) - repeated == 1
    assert np.abs(trial.model(1) - step(trial.model(0), updates)).max() < 1e-6


def test_of_two_updates_that_a_device_has_urls_for_the_first_that_is_told_counts(trial: Trial) -> None:
    trial.submit(rounds=1)
    a, b = trial.devices("a", "b")
    first, second = trial.assign(a, b)
    updates, other = [trial.update(), trial.update(50)], trial.update(1000)
    bodies = [trial.seal(a, first, update) for update in (updates[0], other)]
    for body, grant in [(body, a.ask(first, body)) for body in bodies]:
        assert a.put(grant, body).status_code == 200
    a.done(first, bodies[0])
    trial.wait_for_standing(a, "reported")
    repeated = trial.counted(Code.UPDATE_REPEATED)
    assert a.done(first, bodies[1]).status_code == 202
    wait_for(lambda: trial.counted(Code.UPDATE_REPEATED) > repeated, "the other update to be refused")
    trial.bring(b, second, updates[1])
    trial.reach(1, "committed")
    assert np.abs(trial.model(1) - step(trial.model(0), updates)).max() < 1e-6


def test_a_late_update_is_refused_and_does_not_leak_into_the_next_round(trial: Trial) -> None:
    a, b, c = trial.devices("a", "b", "c")
    trial.introduce(a, b, c)
    trial.submit(goal=2, over_selection=1.5, rounds=2)
    assignments = trial.assign(a, b, c)
    late = trial.seal(c, assignments[2], trial.update(1000))
    url = c.ask(assignments[2], late)
    updates = [trial.update(), trial.update(20)]
    for device, assignment, update in zip((a, b), assignments, updates, strict=False):
        trial.bring(device, assignment, update)
    trial.reach(1, "committed")
    counted = trial.counted(Code.UPDATE_LATE)
    assert c.put(url, late).status_code == 200, "the URL is still valid"
    assert code_of(c.done(assignments[2], late)) == (409, Code.UPDATE_LATE)
    assert code_of(c.ask(assignments[2], late)) == (409, Code.UPDATE_LATE)
    assert trial.counted(Code.UPDATE_LATE) - counted == 2

    following = trial.assign(a, b, c)
    assert {assignment.round for assignment in following} == {2}
    assert code_of(c.ask(following[2], late, ticket=assignments[2].ticket)) == (403, Code.TICKET_FOREIGN)
    # the very bytes, offered to the next round with its ticket, open there for nobody
    grant = c.ask(following[2], late)
    assert c.put(grant, late).status_code == 200
    c.done(following[2], late)
    assert trial.wait_for_standing(c, "refused", 2) == Code.UPDATE_TAMPERED
    more = [trial.update(), trial.update(30)]
    for device, assignment, update in zip((a, b), following, more, strict=False):
        trial.bring(device, assignment, update)
    trial.reach(2, "committed")
    assert np.abs(trial.model(2) - step(step(trial.model(0), updates), more)).max() < 1e-6


def test_an_upload_whose_word_never_came_is_counted_at_the_close(trial: Trial) -> None:
    trial.submit(goal=3, min_fraction=0.6, rounds=1, reporting_timeout_seconds=3.0)
    devices = trial.devices("a", "b", "c")
    assignments = trial.assign(*devices)
    updates = [trial.update(), trial.update(20), trial.update(300)]
    for device, assignment, update in zip(devices[:2], assignments, updates, strict=False):
        trial.bring(device, assignment, update)
    silent = trial.seal(devices[2], assignments[2], updates[2])
    assert devices[2].put(devices[2].ask(assignments[2], silent), silent).status_code == 200
    assert trial.reach(1, "committed", "abandoned").phase == "committed"
    assert trial.standings()["c"] == ("reported", None)
    assert np.abs(trial.model(1) - step(trial.model(0), updates)).max() < 1e-6


# --- what is refused


def with_nan(update: Any) -> Any:
    delta = update.delta.copy()
    delta[4711] = np.nan
    return replace(update, delta=delta)


def sealed_to_another_key(trial: Trial, a: HandDevice, assignment: Assignment) -> bytes:
    key = SealingKey.generate(trial.id())
    context = UpdateContext(trial.name, 1, a.id, assignment.plan_digest, assignment.model.sha256)
    return seal(trial.update(), key=key.public, context=context, format=trial.plan.update)


def in_another_plan(trial: Trial, a: HandDevice, assignment: Assignment, plan: Plan) -> bytes:
    update = trial.update()
    return a.sealed(assignment, replace(update, delta=update.delta[: plan.parameters]), plan)


WRONG: dict[str, tuple[Code, Callable[[Trial, HandDevice, Assignment], bytes]]] = {
    "malformed": (Code.UPDATE_MALFORMED, lambda t, d, a: b"this is no envelope" * 50),
    "cut off": (Code.UPDATE_MALFORMED, lambda t, d, a: t.seal(d, a, t.update())[:-100]),
    "tampered": (Code.UPDATE_TAMPERED, lambda t, d, a: t.seal(d, a, t.update())[:-1] + b"x"),
    "sealed to another key": (Code.UPDATE_TAMPERED, sealed_to_another_key),
    "sealed for another device": (Code.UPDATE_TAMPERED, lambda t, d, a: t.seal(d, a, t.update(), device=f"{t.name}-b")),
    "sealed for another round": (Code.UPDATE_TAMPERED, lambda t, d, a: t.seal(d, a, t.update(), round=2)),
    "sealed for another plan": (Code.UPDATE_TAMPERED, lambda t, d, a: t.seal(d, a, t.update(), plan_digest=OTHER_DIGEST)),
    "sealed for another base": (Code.UPDATE_TAMPERED, lambda t, d, a: t.seal(d, a, t.update(), base_sha256=OTHER_DIGEST)),
    "with a NaN": (Code.UPDATE_NOT_FINITE, lambda t, d, a: t.seal(d, a, with_nan(t.update()))),
    "of no examples": (Code.UPDATE_EXAMPLES, lambda t, d, a: t.seal(d, a, t.update(0))),
    "of a billion examples": (Code.UPDATE_EXAMPLES, lambda t, d, a: t.seal(d, a, t.update(10**9))),
    "of another shape": (
        Code.UPDATE_SHAPE,
        lambda t, d, a: in_another_plan(t, d, a, small_plan(weights=[{"shape": [784, 9]}, {"shape": [9]}])),
    ),
    "in another encoding": (
        Code.UPDATE_DTYPE,
        lambda t, d, a: in_another_plan(t, d, a, small_plan(update={"encoding": "float16"})),
    ),
    "never uploaded": (Code.UPDATE_MISSING, lambda t, d, a: b""),
}


def test_each_refusal_has_its_code_and_counter_and_the_round_goes_on_untouched(trial: Trial) -> None:
    """One round: each device but the last two brings something wrong, and what commits is the mean of those two."""
    good = [trial.device("good-1"), trial.device("good-2")]
    bad = {what: trial.device(f"bad-{i}") for i, what in enumerate(WRONG)}
    trial.submit(goal=len(bad) + 2, min_fraction=2 / (len(bad) + 2), rounds=1)
    assignments = dict(zip([*bad.values(), *good], trial.assign(*bad.values(), *good), strict=True))
    before = {code: trial.counted(code) for code, _ in WRONG.values()}
    folded = trial.folded()

    def bring(what: str) -> None:
        device, (code, make) = bad[what], WRONG[what]
        body = make(trial, device, assignments[device])
        if code is not Code.UPDATE_MISSING:
            assert device.put(device.ask(assignments[device], body), body).status_code == 200
        assert device.done(assignments[device], body).status_code == 202

    updates = [trial.update(), trial.update(90)]
    trial.bring(good[0], assignments[good[0]], updates[0])
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(bring, bad))
    for what, device in bad.items():
        assert trial.wait_for_standing(device, "refused") == WRONG[what][0], what
    trial.bring(good[1], assignments[good[1]], updates[1])

    assert trial.reach(1, "committed", "abandoned").phase == "committed"
    assert np.abs(trial.model(1) - step(trial.model(0), updates)).max() < 1e-6
    assert trial.round(1).examples == 100
    assert trial.folded() - folded == 2
    for code, count in before.items():
        assert trial.counted(code) - count == [c for c, _ in WRONG.values()].count(code), code


def test_more_bytes_than_the_plan_allows_get_no_url(granted: Granted) -> None:
    trial = granted.trial
    before = trial.counted(Code.UPDATE_TOO_LARGE)
    most = layout_of(trial.plan).max_bytes
    assert granted.device.ask(granted.assignment, granted.body, size_bytes=most).is_success
    larger = granted.device.ask(granted.assignment, granted.body, size_bytes=most + 1)
    assert code_of(larger) == (413, Code.UPDATE_TOO_LARGE)
    assert trial.counted(Code.UPDATE_TOO_LARGE) - before == 1


def test_a_device_whose_update_was_refused_may_bring_a_good_one(trial: Trial) -> None:
    trial.submit(rounds=1)
    a, b = trial.devices("a", "b")
    first, second = trial.assign(a, b)
    wrong = b"no envelope"
    a.put(a.ask(first, wrong), wrong)
    a.done(first, wrong)
    assert trial.wait_for_standing(a, "refused") == Code.UPDATE_MALFORMED
    updates = [trial.update(), trial.update(20)]
    trial.bring(a, first, updates[0])
    trial.wait_for_standing(a, "reported")
    trial.bring(b, second, updates[1])
    trial.reach(1, "committed")
    assert np.abs(trial.model(1) - step(trial.model(0), updates)).max() < 1e-6


def test_a_refused_update_that_leaves_too_few_abandons_the_round(trial: Trial) -> None:
    trial.submit(rounds=1)
    a, b = trial.devices("a", "b")
    first, second = trial.assign(a, b)
    trial.bring(a, first, trial.update())
    trial.bring(b, second, with_nan(trial.update()))
    assert trial.reach(1, "committed", "abandoned").reason is Code.TOO_FEW_REPORTS


# --- the last sweep


def test_an_upload_by_a_url_that_outlived_its_round_is_swept_and_an_expired_one_is_refused(outlived: Outlived) -> None:
    """Its ten seconds have passed while the tests above ran; by itself it waits for them."""
    wait_for(lambda: outlived.trial.world.updates_of(outlived.trial.id()) == [], "the second sweep")
    assert outlived.device.put(outlived.url, outlived.body).status_code == 403, "it was swept before the last URL had expired"


def test_the_storage_holds_nothing_but_ciphertext_of_an_update(granted: Granted) -> None:
    trial = granted.trial
    update = replace(trial.update(), metrics={"secret-name": 0.5})
    body = trial.seal(granted.device, granted.assignment, update)
    granted.device.put(granted.device.ask(granted.assignment, body), body)
    store = trial.world.store("aggregator", "fedlearn-updates")
    stored = b"".join(store.get(key) for key in trial.world.updates_of(trial.id()))
    assert body in stored
    assert update.delta[:4].tobytes() not in stored
    assert b"secret-name" not in stored
