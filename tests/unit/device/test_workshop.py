"""What devices of one process fetch and build together, and keep: over the real way to storage, from a server that counts."""

import asyncio
import hashlib
import http.server
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlearn.core.errors import Code, Refusal
from fedlearn.core.ids import TaskId
from fedlearn.device.agent import Agent, Home
from fedlearn.device.workshop import Workshop
from fedlearn.learning.synthetic import SyntheticLearner
from fedlearn.protocol.messages import Model
from fedlearn.protocol.plans import Plan
from fedlearn.protocol.tensors import decode_model
from support.desk import until
from support.sealed import BASE, BASE_FILE, IDENTITY, PLAN
from support.world import random_model, small_plan
from unit.device.test_agent import SHARD, Services, assignment

OTHER_PLAN = small_plan(dataset="another")
TASK = TaskId("a")


class Storage:
    """Serves files by their paths; what lies `instead` of one is given out first."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.instead: dict[str, list[bytes]] = {}
        self.fetched = Counter[str]()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path[1:]
                outer.fetched[path] += 1
                body = outer.instead[path].pop(0) if outer.instead.get(path) else outer.files[path]
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                return

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def url(self, key: str) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/{key}"

    def put(self, task: str, version: int, body: bytes) -> Model:
        key, sha256 = f"{task}/models/{version:08d}.safetensors", hashlib.sha256(body).hexdigest()
        self.files[key] = body
        return Model(version=version, key=key, sha256=sha256, size_bytes=len(body))

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Plans:
    """A server that has two plans, and counts who asks."""

    def __init__(self) -> None:
        self.asked = Counter[str]()

    async def plan(self, digest: str) -> Plan:
        self.asked[digest] += 1
        return {plan.digest: plan for plan in (PLAN, OTHER_PLAN)}[digest]


class Built(SyntheticLearner):
    """A learner that notes for which plan it was built."""

    plans: Counter[str]

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.plans[plan.digest] += 1


@pytest.fixture
def storage() -> Iterator[Storage]:
    storage = Storage()
    yield storage
    storage.close()


@pytest.fixture
def compute() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as compute:
        yield compute


@pytest.fixture
def built() -> type[Built]:
    return type("BuiltHere", (Built,), {"plans": Counter()})


def workshop_of(server: Any, compute: ThreadPoolExecutor, learner: type[Built]) -> Workshop:
    identity = IDENTITY.public_key()
    return Workshop(server=server, aggregator=server, identity=identity, make_learner=learner, compute=compute)


async def test_three_agents_in_one_round_fetch_its_model_once_and_build_one_learner(
    storage: Storage, compute: ThreadPoolExecutor, built: type[Built], tmp_path: Path
) -> None:
    services = Services()
    played: Any = services
    services.answers = [assignment().model_copy(update={"model_url": storage.url(BASE.key)})] * 3
    storage.files[BASE.key] = BASE_FILE
    workshop = workshop_of(played, compute, built)
    fetch = workshop.transfer
    # the way down is the real one, the way up leads to the storage that the services play
    workshop.transfer = played
    played.fetch = fetch.fetch
    agents = [
        Agent(Home(slot, "mnist", SHARD, 5, str(slot), "synthetic", tmp_path / str(slot)), workshop, played, 30.0)
        for slot in range(3)
    ]
    work = [asyncio.create_task(agent.run()) for agent in agents]
    try:
        await until(lambda: len(services.checkins) == 6)  # all have done their part, and wait for the next
    finally:
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)
    assert services.dropped == []
    assert {hint.slot for hint in services.told} == {0, 1, 2}
    assert storage.fetched == {BASE.key: 1}
    assert built.plans == {PLAN.digest: 1}


async def test_tasks_that_alternate_fetch_each_version_once_and_build_each_learner_once(
    storage: Storage, compute: ThreadPoolExecutor, built: type[Built]
) -> None:
    plans, rounds = Plans(), 3
    workshop = workshop_of(plans, compute, built)
    # two tasks of one plan, and a third one of another
    tasks = {"a": PLAN, "b": PLAN, "c": OTHER_PLAN}
    for version in range(rounds):
        models = {
            task: storage.put(task, version, random_model(plan, seed=10 * version + place))
            for place, (task, plan) in enumerate(tasks.items())
        }
        for _device in range(2):
            for task, plan in tasks.items():
                tools = await workshop.tools(plan.digest)
                assert tools.plan == plan
                weights = await workshop.weights(TaskId(task), models[task], storage.url(models[task].key), tools.plan)
                expected = decode_model(storage.files[models[task].key], plan)
                assert all(np.array_equal(*pair) for pair in zip(weights, expected, strict=True))
    assert storage.fetched == dict.fromkeys(storage.files, 1)
    assert len(storage.files) == 9
    assert plans.asked == built.plans == {PLAN.digest: 1, OTHER_PLAN.digest: 1}


async def test_of_one_task_no_version_but_the_newest_is_kept(
    storage: Storage, compute: ThreadPoolExecutor, built: type[Built]
) -> None:
    workshop = workshop_of(Plans(), compute, built)
    models = [storage.put("a", version, random_model(PLAN, version)) for version in range(2)]
    for model in (*models, models[0]):
        await workshop.weights(TASK, model, storage.url(model.key), PLAN)
    assert storage.fetched == {models[0].key: 2, models[1].key: 1}


@pytest.mark.parametrize(
    "given",
    [
        pytest.param(BASE_FILE[:-1] + bytes([BASE_FILE[-1] ^ 1]), id="a bit is another"),
        pytest.param(BASE_FILE[:-1], id="cut off"),
        pytest.param(random_model(PLAN, seed=9), id="another model"),
    ],
)
async def test_a_model_of_another_digest_is_refused_to_all_who_wait_and_fetched_again_by_the_next(
    storage: Storage, compute: ThreadPoolExecutor, built: type[Built], given: bytes
) -> None:
    workshop = workshop_of(Plans(), compute, built)
    model = storage.put("a", 0, BASE_FILE)
    storage.instead[model.key] = [given]
    answers = await asyncio.gather(
        *(workshop.weights(TASK, model, storage.url(model.key), PLAN) for _ in range(3)), return_exceptions=True
    )
    assert [getattr(answer, "code", None) for answer in answers] == [Code.MODEL_MISMATCH] * 3
    assert all(isinstance(answer, Refusal) for answer in answers)
    assert storage.fetched == {model.key: 1}
    weights = await workshop.weights(TASK, model, storage.url(model.key), PLAN)
    assert all(np.array_equal(*pair) for pair in zip(weights, decode_model(BASE_FILE, PLAN), strict=True))
    assert storage.fetched == {model.key: 2}
