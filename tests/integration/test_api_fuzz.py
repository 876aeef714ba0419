"""The three APIs under generated requests, as documented and not, with the right credential and with none.

No answer may be a failure of the service, and each must be one that the service's own OpenAPI document names: its status, its
media type, its body.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from operator import methodcaller

import httpx
import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode as Mode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from fedlearn.adapters.http import TICKET_HEADER
from fedlearn.core.learning import Examples, Shard
from fedlearn.data.shards import write_shard
from fedlearn.local.identities import AGGREGATOR_AUDIENCE, SERVER_AUDIENCE
from fedlearn.local.ports import free_port
from fedlearn.local.processes import start_program
from fedlearn.local.storage import LocalStorage
from support.world import World, small_plan

TASK = "fuzz"
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
HELD = ("/v1/checkins", "/v1/evaluations/next", "/v1/rounds/{task}/{number}/wanted", "/v1/tasks/{task}/rounds/current")
REACHED = {
    "server": {200, 201, 204, 401, 403, 404, 409, 422},
    "aggregator": {200, 204, 401, 403, 409, 422},
    "device": {200, 409},
}
"""Statuses that must have come: else the requests don't reach what they are meant to try."""
often = st.sampled_from([True, True, False])
whose = st.sampled_from(["the right one's", "the right one's", "another's", "nobody's"])
right = methodcaller("as_strategy", generation_mode=Mode.POSITIVE)
wrong = methodcaller("as_strategy", generation_mode=Mode.NEGATIVE)
bounded = settings(max_examples=10, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def world(storage: LocalStorage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The services, with a task that runs."""
    directory = tmp_path_factory.mktemp("fuzz")
    world = World.start(directory, storage, server_settings={"FEDLEARN_MAX_CHECKIN_SECONDS": "8"})
    try:
        world.submit(TASK, small_plan(), rounds=None, goal=2, over_selection=1.0)
        yield world
    finally:
        world.stop()


@pytest.fixture(scope="module")
def urls(world: World) -> Mapping[str, str]:
    """The three services; the device is one that steps by hand, since others serve health alone."""
    examples = Examples(np.zeros((10, 1), np.float32), np.zeros(10, np.int32))
    shards, port = world.deployment.directory / "shards", free_port()
    write_shard(shards / "0", Shard(examples, examples))
    environment = {
        **world.deployment.device(0, port=port, shards=shards, first_shard=0, count=None, dataset="mnist", seed=0),
        "FEDLEARN_LEARNER": "synthetic",
        "FEDLEARN_MANUAL": "true",
    }
    log = world.deployment.directory / "device.log"
    device = world.services.add(start_program("device", ["device"], environment, log))
    url = f"http://127.0.0.1:{port}"
    device.wait_until_answering(f"{url}/healthz")
    return {"server": world.server_url, "aggregator": world.aggregator_url, "device": url}


@pytest.fixture(scope="module")
def tokens(world: World) -> Mapping[str, Mapping[str, str]]:
    """Who may call which routes, by service and the routes' tag."""

    def minted(audience: str) -> dict[str, str]:
        tags = {"devices": "device", "aggregator": "aggregator", "evaluator": "evaluator", "server": "server"}
        return {tag: world.issuer.mint(f"fedlearn-{role}", f"{role}-0", audience, 3600) for tag, role in tags.items()}

    operator = {"operators": world.deployment.operator_token()}
    return {"server": {**minted(SERVER_AUDIENCE), **operator}, "aggregator": minted(AGGREGATOR_AUDIENCE), "device": {}}


@pytest.fixture(scope="module")
def ticket(world: World) -> str:
    """What the device of the tokens was given for round 1, which waits for its update."""
    with ThreadPoolExecutor(2) as threads:
        first, _ = threads.map(lambda pod: world.device(pod).assignment(), ("device-0", "other-0"))
    return first.ticket


class Caller:
    """Sends each request as it was made, or with what exists put in; with the right credential, another role's, or none."""

    def __init__(self, tokens: Mapping[str, str], ticket: str) -> None:
        self._tokens, self._ticket = tokens, ticket
        self.seen = Counter[int]()

    def send(self, case: schemathesis.Case, *, real: bool, token: str) -> None:
        tag = (case.operation.definition.raw.get("tags") or [""])[0]
        if real:
            self._make_real(case, tag)
        if case.operation.path in HELD:
            part = case.query if case.operation.method == "get" else case.body
            if isinstance(part, dict):
                part["wait_seconds"] = 0
        case.headers.pop("Authorization", None)
        self.seen[case.call_and_validate(checks=CHECKS, headers=self._credential(tag, token)).status_code] += 1

    def _credential(self, tag: str, token: str) -> dict[str, str]:
        others = [of for other, of in self._tokens.items() if other != tag]
        given = {"the right one's": self._tokens.get(tag), "another's": others[0] if others else None}.get(token)
        return {"Authorization": f"Bearer {given}"} if given else {}

    def _make_real(self, case: schemathesis.Case, tag: str) -> None:
        # the aggregator's server closes and sweeps another round than the one that devices bring updates to
        known = {"task": TASK, "number": 9 if tag == "server" else 1, "version": 0}
        if isinstance(case.path_parameters, dict):
            case.path_parameters.update({name: known[name] for name in known.keys() & case.path_parameters.keys()})
        if TICKET_HEADER in case.headers:
            case.headers[TICKET_HEADER] = self._ticket
        if isinstance(case.body, dict):
            case.body.pop("slot", None)
            if "plan" in case.body:
                case.body["plan"] = small_plan().model_dump(mode="json")


@pytest.mark.parametrize("service", ["aggregator", "device", "server"])
def test_each_answer_is_a_documented_one(
    service: str, urls: Mapping[str, str], tokens: Mapping[str, Mapping[str, str]], ticket: str
) -> None:
    schema = schemathesis.openapi.from_url(f"{urls[service]}/openapi.json").exclude(path="/v1/stream")  # it never ends
    caller, faults = Caller(tokens[service], ticket), list[str]()
    for result in schema.get_all_operations():
        operation = result.ok()

        @bounded
        @given(case=right(operation) | wrong(operation), real=often, token=whose)
        def answers_as_documented(case: schemathesis.Case, real: bool, token: str) -> None:
            caller.send(case, real=real, token=token)

        try:
            answers_as_documented()
        except (FailureGroup, Failure) as failure:
            faults.append(f"{operation.method.upper()} {operation.path}: {failure}")
    assert not faults, "\n\n".join(faults)
    assert caller.seen.keys() >= REACHED[service]


def test_after_all_of_it_every_service_is_ready(urls: Mapping[str, str]) -> None:
    for url in urls.values():
        assert httpx.get(f"{url}/healthz", trust_env=False).is_success
    assert httpx.get(f"{urls['server']}/readyz", trust_env=False).is_success
    assert httpx.get(f"{urls['aggregator']}/readyz", trust_env=False).is_success
