"""Who may do what: every route with every identity, tickets, sealing keys, and how few an aggregate may be of."""

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import jwt
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedlearn.adapters.database import DatabaseRoundStore
from fedlearn.adapters.identity import LocalIssuer
from fedlearn.adapters.keyfiles import save_public_key
from fedlearn.core.errors import Code
from fedlearn.core.ids import shard_of
from fedlearn.core.learning import Examples, Shard
from fedlearn.data.shards import write_shard
from fedlearn.local.ports import free_port
from fedlearn.local.processes import Service, start_program
from fedlearn.protocol.messages import Assignment
from fedlearn.protocol.tickets import Ticket, TicketSigner, make_signing_key
from support.trial import Trial, step
from support.world import HandDevice, World, name_of, wait_for

ANYBODY = "anybody"
DEVICE, EVALUATOR, AGGREGATOR, SERVER, OPERATOR = "device", "evaluator", "aggregator", "server", "operator"
TABLE: dict[str, dict[str, set[str]]] = {
    "server": {
        "GET /healthz": {ANYBODY},
        "GET /readyz": {ANYBODY},
        "GET /metrics": {ANYBODY},
        "GET /v1/keys": {ANYBODY},
        "GET /v1/devices": {ANYBODY},
        "GET /v1/tasks": {ANYBODY},
        "GET /v1/tasks/{task}": {ANYBODY},
        "GET /v1/tasks/{task}/plan": {ANYBODY},
        "GET /v1/tasks/{task}/rounds": {ANYBODY},
        "GET /v1/tasks/{task}/rounds/current": {ANYBODY},
        "GET /v1/tasks/{task}/rounds/{number}": {ANYBODY},
        "GET /v1/tasks/{task}/models": {ANYBODY},
        "POST /v1/checkins": {DEVICE},
        "POST /v1/rounds/{task}/{number}/acceptances": {DEVICE},
        "GET /v1/rounds/{task}/{number}/wanted": {DEVICE},
        "POST /v1/rounds/{task}/{number}/dropouts": {DEVICE},
        "GET /v1/plans/{digest}": {DEVICE, EVALUATOR},
        "PUT /v1/rounds/{task}/{number}/updates": {AGGREGATOR},
        "PUT /v1/rounds/{task}/{number}/result": {AGGREGATOR},
        "PUT /v1/rounds/{task}/{number}/failure": {AGGREGATOR},
        "GET /v1/evaluations/next": {EVALUATOR},
        "PUT /v1/evaluations/{task}/{version}": {EVALUATOR},
        "POST /v1/tasks": {OPERATOR},
        "POST /v1/tasks/{task}/start": {OPERATOR},
        "POST /v1/tasks/{task}/cancel": {OPERATOR},
        "GET /v1/tasks/{task}/models/{version}/download": {OPERATOR},
        "POST /v1/tasks/{task}/pause": {OPERATOR},
        "POST /v1/tasks/{task}/resume": {OPERATOR},
        "POST /v1/tasks/{task}/models/{version}/rollback": {OPERATOR},
        "PUT /v1/tasks/{task}/models/{version}/labels/{label}": {OPERATOR},
        "DELETE /v1/tasks/{task}/labels/{label}": {OPERATOR},
        "GET /v1/tasks/{task}/models/{version}/file": {OPERATOR},
        "GET /v1/tasks/{task}/history": {ANYBODY},
        "GET /v1/overview": {ANYBODY},
        "GET /v1/events": {ANYBODY},
        "GET /v1/audit": {OPERATOR},
    },
    "aggregator": {
        "GET /healthz": {ANYBODY},
        "GET /readyz": {ANYBODY},
        "GET /metrics": {ANYBODY},
        "PUT /v1/rounds/{task}/{number}": {SERVER},
        "POST /v1/rounds/{task}/{number}/close": {SERVER},
        "DELETE /v1/rounds/{task}/{number}": {SERVER},
        "POST /v1/models": {SERVER},
        "GET /v1/rounds/{task}/{number}/sealing-key": {DEVICE},
        "POST /v1/rounds/{task}/{number}/uploads": {DEVICE},
        "POST /v1/rounds/{task}/{number}/uploads/done": {DEVICE},
        "POST /v1/rounds/{task}/{number}/uploads/parts": {DEVICE},
        "POST /v1/rounds/{task}/{number}/uploads/parts/done": {DEVICE},
    },
}
# values that no route takes, so that whoever is admitted changes nothing
ADDRESS = {"task": "-", "number": "0", "version": "-1", "digest": "-", "label": "-"}
ENDLESS = "GET /v1/stream"  # open to anybody, as the overview that it begins with
OTHERS = {"server": "fedlearn-aggregator", "aggregator": "fedlearn-server"}


def url_of(world: World, service: str) -> str:
    return {"server": world.server_url, "aggregator": world.aggregator_url}[service]


@pytest.fixture(scope="module")
def identities(world: World) -> Mapping[str, Mapping[str, str | None]]:
    """For each service: the Authorization header of everybody who may come along."""
    issuer_file = world.deployment.identities.directory / "issuer.key.pem"
    elsewhere = LocalIssuer.load(issuer_file, namespace="elsewhere")
    foreign = LocalIssuer(Ed25519PrivateKey.generate())
    long_ago = LocalIssuer.load(issuer_file, clock=lambda: time.time() - 7200)

    def at(service: str) -> dict[str, str]:
        audience = f"fedlearn-{service}"
        accounts = {role: f"fedlearn-{role}" for role in (DEVICE, EVALUATOR, AGGREGATOR, SERVER)}
        return {
            **{role: world.issuer.mint(account, f"{role}-0", audience, 600) for role, account in accounts.items()},
            OPERATOR: world.deployment.operator_token(),
            "garbage": "no.token.at-all",
            **{f"{role} of another audience": world.issuer.mint(a, "p", OTHERS[service], 600) for role, a in accounts.items()},
            **{f"{role} of another namespace": elsewhere.mint(a, "p", audience, 600) for role, a in accounts.items()},
            **{f"{role} of another issuer": foreign.mint(a, "p", audience, 600) for role, a in accounts.items()},
            **{f"{role} of an hour ago": long_ago.mint(a, "p", audience, 3600) for role, a in accounts.items()},
            "another service account": world.issuer.mint("default", "p", audience, 600),
        }

    headers = {service: {who: f"Bearer {token}" for who, token in at(service).items()} for service in TABLE}
    basic = {"none": None, "without a scheme": world.deployment.operator_token(), "an empty token": "Bearer"}
    return {service: {**basic, **given} for service, given in headers.items()}


def routes_of(document: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The operations of an OpenAPI document, by method and path."""
    return {
        f"{method.upper()} {path}": operation
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }


def turned_away(who: str, *, by_operator: bool) -> set[tuple[int, str]]:
    """How somebody who may not call a route is told so."""
    if by_operator:
        return {(401, Code.UNAUTHENTICATED)}
    if who in (DEVICE, EVALUATOR, AGGREGATOR, SERVER, "another service account") or "namespace" in who:
        return {(403, Code.FORBIDDEN)}
    if "issuer" in who:  # its key may be one that the issuer has made just now: nobody knows until the keys are read again
        return {(401, Code.UNAUTHENTICATED), (503, Code.IDENTITY_UNAVAILABLE)}
    return {(401, Code.UNAUTHENTICATED)}


@pytest.mark.parametrize("service", TABLE)
def test_every_route_has_its_row(world: World, service: str) -> None:
    document = httpx.get(f"{url_of(world, service)}/openapi.json", trust_env=False).json()
    assert set(routes_of(document)) - {ENDLESS} == set(TABLE[service])


@pytest.mark.parametrize(("service", "route"), [(service, route) for service, routes in TABLE.items() for route in routes])
def test_a_route_admits_those_of_its_row_and_nobody_else(
    world: World, identities: Mapping[str, Mapping[str, str | None]], service: str, route: str
) -> None:
    method, _, path = route.partition(" ")
    document = httpx.get(f"{url_of(world, service)}/openapi.json", trust_env=False).json()
    documented = routes_of(document)[route]["responses"]
    with httpx.Client(base_url=url_of(world, service), trust_env=False) as client:
        for who, header in identities[service].items():
            headers = {} if header is None else {"Authorization": header}
            answer = client.request(method, path.format(**ADDRESS), headers=headers)
            if ANYBODY in TABLE[service][route] or who in TABLE[service][route]:
                assert answer.status_code not in (401, 403), who
                continue
            code = answer.json()["code"]
            assert (answer.status_code, code) in turned_away(who, by_operator=OPERATOR in TABLE[service][route]), who
            assert code in documented[str(answer.status_code)]["description"]
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.status_code != 401 or answer.headers["www-authenticate"] == "Bearer"


def test_nobody_but_the_server_moves_a_round_and_nobody_but_the_aggregator_reports(
    trial: Trial, identities: Mapping[str, Mapping[str, str | None]]
) -> None:
    """What would harm a live round, to the letter of the API, by all who may not do it; then the round goes on."""
    world = trial.world
    trial.submit(rounds=1)
    a, b = trial.devices("a", "b")
    assignments = trial.assign(a, b)
    model = assignments[0].model.model_dump(mode="json")
    forged = {**model, "version": 1, "sha256": "0" * 64}
    prefix = f"/v1/rounds/{trial.name}/1"
    opening = {"plan": trial.plan.model_dump(mode="json"), "base": model, "reporting_seconds": 1}
    place = {"task": trial.name, "minimum": 2, "mixed": 2, "size_bytes": 1, "sha256": "0" * 64}
    harmful = {
        "aggregator": [
            ("PUT", prefix, opening),
            ("POST", f"{prefix}/close", None),
            ("DELETE", prefix, None),
            ("POST", "/v1/models", place),
        ],
        "server": [
            ("PUT", f"{prefix}/updates", {"reported": [a.id, b.id], "refused": {}}),
            ("PUT", f"{prefix}/result", {"model": forged, "contributors": [a.id], "examples": 1, "metrics": {}}),
            ("PUT", f"{prefix}/failure", {"code": Code.AGGREGATOR_KEY_LOST}),
        ],
    }
    for service, calls in harmful.items():
        allowed = SERVER if service == "aggregator" else AGGREGATOR
        with httpx.Client(base_url=url_of(world, service), trust_env=False) as client:
            for method, path, body in calls:
                for who, header in identities[service].items():
                    if who != allowed:
                        headers = {} if header is None else {"Authorization": header}
                        answer = client.request(method, path, headers=headers, json=body)
                        assert (answer.status_code, answer.json()["code"]) in turned_away(who, by_operator=False), who
    assert set(trial.standings().values()) == {("selected", None)}
    updates = [trial.update(), trial.update(30)]
    for device, assignment, update in zip((a, b), assignments, updates, strict=True):
        trial.bring(device, assignment, update)
    assert trial.reach(1, "committed", "abandoned").phase == "committed"
    assert np.abs(trial.model(1) - step(trial.model(0), updates)).max() < 1e-6


def test_a_device_speaks_for_itself_alone(trial: Trial) -> None:
    """It says which of its own slots it is, and never who it is: that is its token's word."""
    trial.submit()
    a, b = trial.devices("a", "b")
    assignment, _ = trial.assign(a, b)
    stranger = trial.device("stranger")
    for answer in (stranger.accept(assignment), stranger.drop_out(assignment, Code.INTERNAL)):
        assert (answer.status_code, answer.json()["code"]) == (403, Code.NOT_SELECTED)
    slot = trial.device("a", slot=1)
    assert slot.accept(assignment).json()["code"] == Code.NOT_SELECTED
    named = a.server.post("/v1/checkins", json={"dataset": trial.name, "examples": 1, "device": b.id})
    assert (named.status_code, named.json()["code"]) == (422, Code.BAD_REQUEST)
    assert set(trial.standings().values()) == {("selected", None)}


# --- tickets


@pytest.fixture(scope="module")
def signer(world: World) -> TicketSigner:
    """The server's own ticket-signing key."""
    store = DatabaseRoundStore(world.environments["server"]["FEDLEARN_DATABASE_URL"])
    kid, key = store.signing_key(lambda: pytest.fail("the server has a key"), time.time())
    store.close()
    return TicketSigner(kid, key)


class Forgery:
    """Tickets for device `a` of a round, each with something about it that is not right."""

    def __init__(self, signer: TicketSigner, trial: Trial, a: HandDevice, b: HandDevice, assignment: Assignment) -> None:
        self.signer, self.trial, self.a, self.b, self.assignment = signer, trial, a, b, assignment
        self.now = time.time()

    def sign(self, signer: TicketSigner | None = None, seconds: float = 60, **change: Any) -> str:
        given = {
            "device": self.a.id,
            "task": self.trial.name,
            "round": 1,
            "plan_digest": self.assignment.plan_digest,
            "base_sha256": self.assignment.model.sha256,
            **change,
        }
        return (signer or self.signer).sign(Ticket(**given), seconds, self.now - (120 if seconds < 0 else 0))

    def with_another_key(self, kid: str) -> str:
        return self.sign(TicketSigner(kid, make_signing_key()[1]))

    def changed(self) -> str:
        head, claims, signature = self.sign().split(".")
        return ".".join((head, claims, ("A" if signature[0] != "A" else "B") + signature[1:]))

    def unsigned(self) -> str:
        claims = jwt.decode(self.sign(), options={"verify_signature": False})
        return jwt.encode(claims, None, "none", headers={"typ": "fedlearn-ticket+jwt", "kid": self.signer.jwk()["kid"]})


FORGED: dict[str, tuple[Code, Callable[[Forgery], str]]] = {
    "of another device": (Code.TICKET_FOREIGN, lambda f: f.sign(device=f.b.id)),
    "of another slot": (Code.TICKET_FOREIGN, lambda f: f.sign(device=f"{f.a.id}/0")),
    "of another round": (Code.TICKET_FOREIGN, lambda f: f.sign(round=2)),
    "of another task": (Code.TICKET_FOREIGN, lambda f: f.sign(task="another")),
    "of another plan": (Code.TICKET_FOREIGN, lambda f: f.sign(plan_digest="0" * 64)),
    "of another base": (Code.TICKET_FOREIGN, lambda f: f.sign(base_sha256="0" * 64)),
    "of another aggregator": (Code.TICKET_FOREIGN, lambda f: f.sign(aggregator=1)),
    "expired": (Code.TICKET_EXPIRED, lambda f: f.sign(seconds=-1)),
    "with a changed signature": (Code.TICKET_INVALID, Forgery.changed),
    "signed by another key": (Code.TICKET_INVALID, lambda f: f.with_another_key(f.signer.jwk()["kid"])),
    "signed by an unknown key": (Code.TICKET_INVALID, lambda f: f.with_another_key("unknown")),
    "unsigned": (Code.TICKET_INVALID, Forgery.unsigned),
    "garbage": (Code.TICKET_INVALID, lambda f: "no ticket"),
    "the device's own token": (Code.TICKET_INVALID, lambda f: f.a.aggregator.headers["authorization"].split()[1]),
}


@pytest.fixture(scope="module")
def forgery(world: World, signer: TicketSigner) -> Iterator[Forgery]:
    trial = Trial(world, "tickets")
    trial.submit()
    a, b = trial.devices("a", "b")
    yield Forgery(signer, trial, a, b, trial.assign(a, b)[0])
    trial.cancel()


@pytest.mark.parametrize("what", FORGED)
def test_a_ticket_that_is_not_right_is_refused_with_its_code(forgery: Forgery, what: str) -> None:
    code, forge = FORGED[what]
    ticket, a, assignment = forge(forgery), forgery.a, forgery.assignment
    body = b"sealed"
    asked = a.ask(assignment, body, ticket=ticket)
    told = a.done(assignment.model_copy(update={"ticket": ticket}), body)
    refused = {(403, code)}
    if what == "signed by an unknown key":  # the server may have made it just now: nobody knows until its keys are read again
        refused.add((503, Code.SERVER_UNREACHABLE))
    for answer in (asked, told):
        assert (answer.status_code, answer.json()["code"]) in refused
    assert a.ask(assignment, body).is_success, "with its own it is let in"
    assert a.ask(assignment, body, ticket=forgery.sign()).is_success, "with nothing wrong about it, it is let in"


def test_an_aggregator_that_shares_a_round_takes_its_own_devices_updates_alone(forgery: Forgery) -> None:
    """Whatever a ticket says: an update that two aggregators take would be counted twice."""
    trial, base = forgery.trial, forgery.assignment.model
    opening = {"plan": trial.plan.model_dump(mode="json"), "base": base.model_dump(mode="json"), "reporting_seconds": 60}
    shared = forgery.assignment.model_copy(update={"task": f"{trial.name}-shared"})
    devices = [trial.device(f"shared-{number}") for number in range(8)]
    with trial.world.as_server() as server:
        path = f"/v1/rounds/{shared.task}/1"
        assert server.put(path, json={**opening, "aggregators": 2}).is_success
        answers = {
            (shard_of(device.id, 2), number): device.ask(
                shared, b"sealed", ticket=forgery.sign(task=shared.task, device=device.id, aggregator=number)
            )
            for device in devices
            for number in (0, 1)
        }
        assert server.delete(path).is_success
    assert {which: answer.status_code for which, answer in answers.items()} == {
        (0, 0): 200,
        (0, 1): 403,
        (1, 0): 403,
        (1, 1): 403,
    }
    assert {answer.json()["code"] for answer in answers.values() if not answer.is_success} == {Code.TICKET_FOREIGN}


def test_a_device_can_not_use_the_ticket_of_another_slot_of_its_pod(trial: Trial) -> None:
    trial.submit()
    zero, one = trial.device("pod", 0), trial.device("pod", 1)
    first, second = trial.assign(zero, one)
    for device, assignment in ((zero, second), (one, first)):
        answer = device.ask(assignment, b"sealed")
        assert (answer.status_code, answer.json()["code"]) == (403, Code.TICKET_FOREIGN)
    answer = trial.device("pod").ask(first, b"sealed")
    assert (answer.status_code, answer.json()["code"]) == (403, Code.TICKET_FOREIGN)


def test_a_call_without_a_ticket_is_no_call(trial: Trial) -> None:
    trial.submit()
    a, b = trial.devices("a", "b")
    trial.assign(a, b)
    request = {"slot": None, "size_bytes": 1, "digest": "0" * 64, "sha256": "0" * 64}
    answer = a.aggregator.post(f"/v1/rounds/{trial.name}/1/uploads", json=request)
    assert (answer.status_code, answer.json()["code"]) == (422, Code.BAD_REQUEST)


# --- the sealing key, by the real device


@pytest.fixture
def start_device(trial: Trial, tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """Starts a process that hosts two devices with the learner that needs no framework."""
    rng, started = np.random.default_rng(0), list[Service]()

    def start(**settings: str) -> Service:
        for slot in (0, 1):
            features = rng.integers(0, 255, (20, 28, 28), dtype=np.uint8)
            examples = Examples(features, rng.integers(0, 10, 20, dtype=np.uint8))
            write_shard(tmp_path / "shards" / str(slot), Shard(train=examples, holdout=examples))
        environment = trial.world.deployment.device(
            0, port=free_port(), shards=tmp_path / "shards", first_shard=0, count=2, dataset=trial.name, seed=1
        )
        log = tmp_path / "device.log"
        started.append(start_program("device", ["device"], {**environment, "FEDLEARN_LEARNER": "synthetic", **settings}, log))
        return started[-1]

    yield start
    for service in started:
        service.process.terminate(8)


def test_a_device_takes_part_with_the_aggregator_that_it_was_configured_with(
    trial: Trial, start_device: Callable[..., Service]
) -> None:
    start_device()
    trial.submit(rounds=2)
    for number in (1, 2):
        assert trial.reach(number, "committed", "abandoned").phase == "committed"
        assert len(trial.standings(number)) == 2
    assert (trial.model(2) != trial.model(0)).all()


def test_a_device_seals_nothing_to_a_key_that_its_configured_aggregator_did_not_sign(
    trial: Trial, start_device: Callable[..., Service], tmp_path: Path
) -> None:
    other = tmp_path / "other.pub.pem"
    save_public_key(other, Ed25519PrivateKey.generate().public_key())
    folded = trial.folded()
    start_device(FEDLEARN_AGGREGATOR_IDENTITY_FILE=str(other))
    trial.submit(rounds=1)
    assert trial.reach(1, "committed", "abandoned").reason is Code.TOO_FEW_REPORTS
    assert set(trial.standings().values()) == {("dropped", Code.SEALING_KEY_UNTRUSTED)}
    trial.cancel()
    assert trial.folded() == folded
    assert not any("/updates/" in key for key in trial.world.updates_of(trial.id()))


# --- how few an aggregate may be of


def test_a_server_that_closes_early_gets_no_aggregate_of_one(trial: Trial) -> None:
    """A curious server holds a proper identity, and still may not single a device out."""
    ended = 'fedlearn_rounds_ended_total{outcome="abandoned",reason="cohort_too_small"}'
    before = trial.world.metric(trial.world.server_url, ended)
    trial.submit(rounds=1)
    a, b = trial.devices("a", "b")
    assignment, _ = trial.assign(a, b)
    body = trial.bring(a, assignment, trial.update())
    trial.wait_for_standing(a, "reported")
    with trial.world.as_server() as server:
        assert server.post(f"/v1/rounds/{trial.name}/1/close").status_code == 202
        round_ = trial.reach(1, "committed", "abandoned")
    assert (round_.phase, round_.reason, round_.model) == ("abandoned", Code.COHORT_TOO_SMALL, None)
    trial.cancel()
    assert trial.world.metric(trial.world.server_url, ended) - before >= 1
    digest = name_of(body)
    models = [stored.key for stored in trial.world.store("server", "fedlearn-models").list(f"{trial.name}/")]
    assert not any(digest in key for key in models)
    assert len(models) == 1, "only version 0 is there"
    wait_for(lambda: trial.world.updates_of(trial.id()) == [], "the lone update to be swept")
