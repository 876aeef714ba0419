"""The real services on this machine, and hands to act as any of their callers."""

import hashlib
import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from fedlearn.adapters.http import TICKET_HEADER
from fedlearn.adapters.identity import LocalIssuer
from fedlearn.adapters.keyfiles import load_public_key
from fedlearn.adapters.objects import S3ObjectStore, object_store
from fedlearn.adapters.operator import OperatorClient
from fedlearn.config import StorageSettings
from fedlearn.core.errors import Code, Refusal
from fedlearn.core.ids import DeviceId, RoundId, TaskId
from fedlearn.core.updates import Update
from fedlearn.local.deployment import Addresses, Deployment
from fedlearn.local.identities import AGGREGATOR_AUDIENCE, SERVER_AUDIENCE
from fedlearn.local.ports import free_port
from fedlearn.local.processes import Service, Services, start_program
from fedlearn.local.storage import LocalStorage
from fedlearn.protocol.envelope import UpdateContext, digest_of, seal
from fedlearn.protocol.messages import Assignment
from fedlearn.protocol.plans import Plan
from fedlearn.protocol.sealing import SignedSealingKey, verify_sealing_key
from fedlearn.protocol.tensors import decode_vector, encode_model, unflatten
from fedlearn.protocol.views import Policy, RoundView

PATIENCE_SECONDS = 30.0
_PATIENT = {"FEDLEARN_LIMITS__FAILURES_PER_SECOND": "10000"}  # tests show wrong tokens by the hundred


def small_plan(**changes: Any) -> Plan:
    """A plan of 7,850 parameters that needs no Keras; its updates are float32, so that sums can be compared to the last bit."""
    dense = {"module": "keras.layers", "class_name": "Dense", "config": {"units": 10}, "registered_name": None}
    architecture = {"module": "keras", "class_name": "Sequential", "config": {"layers": [dense]}}
    weights = [{"shape": [784, 10]}, {"shape": [10]}]
    given: dict[str, Any] = {"dataset": "mnist", "architecture": architecture, "weights": weights, "max_examples": 1000}
    return Plan.model_validate({**given, "update": {"encoding": "float32"}, **changes})


def random_model(plan: Plan, seed: int = 0) -> bytes:
    """A model file with random weights."""
    vector = np.random.default_rng(seed).normal(size=plan.parameters).astype(np.float32)
    return encode_model(unflatten(vector, plan), plan)


def random_update(plan: Plan, seed: int, examples: int = 10) -> Update:
    delta = np.random.default_rng(seed).normal(0, 0.01, plan.parameters).astype(np.float32)
    return Update(delta, examples=examples, holdout_examples=5, metrics={"loss": 1.0, "accuracy": seed / 100})


def name_of(body: bytes) -> str:
    """What an update is known by; of bytes that are none, what a device might say."""
    try:
        return digest_of(body)
    except Refusal:
        return hashlib.sha256(body).hexdigest()


def wait_for(condition: Callable[[], Any], what: str, seconds: float = PATIENCE_SECONDS) -> Any:
    """Wait until `condition` gives something true, and return it."""
    give_up = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < give_up, f"waited {seconds:.0f} s in vain for {what}"
        time.sleep(0.02)
    return found


@dataclass
class World:
    """A server and an aggregator over a real storage. Devices are whoever a test plays."""

    deployment: Deployment
    storage: LocalStorage
    services: Services
    server: Service
    aggregator: Service
    issuer: LocalIssuer
    environments: Mapping[str, Mapping[str, str]]
    clients: list[httpx.Client] = field(default_factory=list)

    @classmethod
    def start(
        cls,
        directory: Path,
        storage: LocalStorage,
        aggregator_settings: Mapping[str, str] | None = None,
        server_settings: Mapping[str, str] | None = None,
    ) -> "World":
        addresses = Addresses(free_port(), free_port(), storage.port)
        secrets = {role: storage.credentials(role) for role in ("server", "aggregator")}
        deployment = Deployment(directory, addresses, secrets)
        issuer = deployment.identities.prepare()
        services = Services()
        environments = {
            "server": {**deployment.server(), **_PATIENT, **(server_settings or {})},
            "aggregator": {**deployment.aggregator(), **_PATIENT, **(aggregator_settings or {})},
        }
        server, aggregator = (
            services.add(start_program(role, [role], environment, directory / f"{role}.log"))
            for role, environment in environments.items()
        )
        world = cls(deployment, storage, services, server, aggregator, issuer, environments)
        try:
            world.wait_until_ready()
        except BaseException:
            world.stop()
            raise
        return world

    def wait_until_ready(self) -> None:
        self.server.wait_until_answering(f"{self.server_url}/readyz")
        self.aggregator.wait_until_answering(f"{self.aggregator_url}/readyz")

    def kill(self, role: str) -> None:
        """SIGKILL for the server or the aggregator."""
        service: Service = getattr(self, role)
        os.kill(service.process.pid, signal.SIGKILL)
        assert service.process.wait(10)

    def restart(self, *roles: str, **settings: str) -> None:
        """Start the server or the aggregator again, with its environment and what `settings` change, and wait for it."""
        for role in roles:
            earlier: Service = getattr(self, role)
            log = earlier.log.with_name(f"{role}-{earlier.process.pid}.log")
            setattr(self, role, self.services.add(start_program(role, [role], {**self.environments[role], **settings}, log)))
        self.wait_until_ready()

    def logs(self, role: str) -> list[dict[str, Any]]:
        """All that a service has logged, in all its lives."""
        texts = [path.read_text() for path in sorted(self.deployment.directory.glob(f"{role}*.log"))]
        return [json.loads(line) for text in texts for line in text.splitlines()]

    @property
    def server_url(self) -> str:
        return self.deployment.addresses.server_url

    @property
    def aggregator_url(self) -> str:
        return self.deployment.addresses.aggregator_url

    def operator(self) -> OperatorClient:
        return OperatorClient(self.server_url, self.deployment.operator_token())

    def store(self, role: str, bucket: str) -> S3ObjectStore:
        access_key, secret_key = self.storage.credentials(role)
        settings = StorageSettings(endpoint_url=self.storage.endpoint_url, access_key=access_key, secret_key=secret_key)
        return object_store(settings, bucket)

    def updates_of(self, round_id: RoundId) -> list[str]:
        """The keys that lie in storage for a round."""
        prefix = f"{round_id.task}/{round_id.number:08d}/"
        return [stored.key for stored in self.store("aggregator", "fedlearn-updates").list(prefix)]

    def client(self, base_url: str, account: str, pod: str, audience: str) -> httpx.Client:
        """A client with a token of this service account and pod."""
        token = self.issuer.mint(account, pod, audience, 3600)
        client = httpx.Client(base_url=base_url, headers={"Authorization": f"Bearer {token}"}, timeout=60, trust_env=False)
        self.clients.append(client)
        return client

    def as_server(self) -> httpx.Client:
        """The server's identity at the aggregator."""
        return self.client(self.aggregator_url, "fedlearn-server", "server-0", AGGREGATOR_AUDIENCE)

    def as_aggregator(self) -> httpx.Client:
        """The aggregator's identity at the server."""
        return self.client(self.server_url, "fedlearn-aggregator", "aggregator-0", SERVER_AUDIENCE)

    def device(self, pod: str, slot: int | None = None, dataset: str = "mnist") -> "HandDevice":
        return HandDevice(self, pod, slot, dataset)

    def submit(
        self, task: str, plan: Plan, *, rounds: int | None = 1, target_accuracy: float | None = None, **policy: Any
    ) -> None:
        with self.operator() as operator:
            operator.submit(
                task, plan, random_model(plan), policy=Policy(**policy), rounds=rounds, target_accuracy=target_accuracy
            )

    def round(self, task: str, number: int) -> RoundView:
        with self.operator() as operator:
            return operator.round(task, number)

    def wait_for_phase(self, task: str, number: int, *phases: str) -> RoundView:
        def reached() -> RoundView | None:
            view = self.round(task, number)
            return view if view.phase in phases else None

        found: RoundView = wait_for(reached, f"round {task}/{number} to be {' or '.join(phases)}")
        return found

    def model(self, task: str, version: int, plan: Plan) -> np.ndarray:
        with self.operator() as operator:
            return decode_vector(operator.download(task, version), plan)

    def metric(self, url: str, sample: str) -> float:
        """One sample of a service's metrics, by its name and labels as they stand there."""
        lines = httpx.get(f"{url}/metrics", trust_env=False).text.splitlines()
        return next(float(line.rpartition(" ")[2]) for line in lines if line.rpartition(" ")[0] == sample)

    def stop(self) -> None:
        for client in self.clients:
            client.close()
        self.services.stop()


class HandDevice:
    """One device, each of its steps by hand."""

    def __init__(self, world: World, pod: str, slot: int | None, dataset: str) -> None:
        self.world, self.pod, self.slot, self.dataset = world, pod, slot, dataset
        self.id = DeviceId(pod if slot is None else f"{pod}/{slot}")
        self.server = world.client(world.server_url, "fedlearn-device", pod, SERVER_AUDIENCE)
        self.aggregator = world.client(world.aggregator_url, "fedlearn-device", pod, AGGREGATOR_AUDIENCE)

    def check_in(self, wait_seconds: float = 20.0, **changes: Any) -> httpx.Response:
        checkin = {"slot": self.slot, "dataset": self.dataset, "examples": 10, "wait_seconds": wait_seconds, **changes}
        return self.server.post("/v1/checkins", json=checkin)

    def assignment(self, wait_seconds: float = 20.0) -> Assignment:
        answer = self.check_in(wait_seconds)
        assert answer.is_success, answer.text
        return Assignment.model_validate_json(answer.content)

    def accept(self, assignment: Assignment) -> httpx.Response:
        path = f"/v1/rounds/{assignment.task}/{assignment.round}/acceptances"
        return self.server.post(path, json={"slot": self.slot})

    def wanted(self, assignment: Assignment, wait_seconds: float = 0.0) -> httpx.Response:
        path = f"/v1/rounds/{assignment.task}/{assignment.round}/wanted"
        slot = {} if self.slot is None else {"slot": self.slot}
        return self.server.get(path, params={"wait_seconds": wait_seconds, **slot})

    def drop_out(self, assignment: Assignment, code: Code) -> httpx.Response:
        path = f"/v1/rounds/{assignment.task}/{assignment.round}/dropouts"
        return self.server.post(path, json={"slot": self.slot, "code": code})

    def sealed(self, assignment: Assignment, update: Update, plan: Plan, **context: Any) -> bytes:
        """The update sealed to the round's key, verified as a device does; `context` replaces what it is sealed for."""
        round_id = RoundId(TaskId(assignment.task), assignment.round)
        answer = self.aggregator.get(f"/v1/rounds/{round_id}/sealing-key")
        identity = load_public_key(self.world.deployment.identities.aggregator_public_file)
        key = verify_sealing_key(SignedSealingKey.model_validate_json(answer.content), identity, round_id)
        given = {
            "task": assignment.task,
            "round": assignment.round,
            "device": self.id,
            "plan_digest": assignment.plan_digest,
            "base_sha256": assignment.model.sha256,
            **context,
        }
        return seal(update, key=key, context=UpdateContext(**given), format=plan.update)

    def ask(self, assignment: Assignment, body: bytes, *, ticket: str | None = None, **changes: Any) -> httpx.Response:
        """Ask for an upload URL; `changes` replace fields of the request, `ticket` the assignment's."""
        names = {"digest": name_of(body), "sha256": hashlib.sha256(body).hexdigest()}
        request = {"slot": self.slot, "size_bytes": len(body), **names, **changes}
        path = f"/v1/rounds/{assignment.task}/{assignment.round}/uploads"
        return self.aggregator.post(path, json=request, headers={TICKET_HEADER: ticket or assignment.ticket})

    def put(self, grant: httpx.Response, body: bytes) -> httpx.Response:
        given = grant.json()
        return httpx.put(given["url"], content=body, headers=given["headers"], trust_env=False, timeout=30)

    def done(self, assignment: Assignment, body: bytes) -> httpx.Response:
        path = f"/v1/rounds/{assignment.task}/{assignment.round}/uploads/done"
        hint = {"slot": self.slot, "digest": name_of(body)}
        return self.aggregator.post(path, json=hint, headers={TICKET_HEADER: assignment.ticket})

    def upload(self, assignment: Assignment, body: bytes) -> None:
        """The whole way of an update: ask, PUT, hint."""
        grant = self.ask(assignment, body)
        assert grant.is_success, grant.text
        assert self.put(grant, body).status_code in (200, 412)
        assert self.done(assignment, body).status_code == 202
