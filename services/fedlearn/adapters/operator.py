"""The operator's way to a server: submit and start tasks, read rounds and versions, download models. Synchronous."""

import hashlib
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, TypeAdapter, ValidationError

from fedlearn.adapters.http import error_in
from fedlearn.adapters.transfer import SignedTransfer
from fedlearn.core.errors import Code, Outage, Refusal
from fedlearn.core.ports import UploadGrant
from fedlearn.protocol.plans import Plan, read_plan
from fedlearn.protocol.views import (
    Download,
    FleetView,
    Policy,
    RollBack,
    RoundView,
    TaskAccepted,
    TaskSubmission,
    TaskView,
    VersionView,
)

Answer = TypeVar("Answer")


class OperatorClient:
    """A client of the server at `base_url`; each call raises the server's own refusal, or an outage `server_unreachable`.

    Args:
        token: the operators' bearer token; without it only reading is allowed.
    """

    def __init__(self, base_url: str, token: str | None = None) -> None:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._client = httpx.Client(base_url=base_url, headers=headers, timeout=90, trust_env=False)
        self._transfer = SignedTransfer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._client.close()

    def submit(
        self,
        task: str,
        plan: Plan,
        model: bytes,
        *,
        policy: Policy,
        rounds: int | None = None,
        target_accuracy: float | None = None,
    ) -> TaskView:
        """Submit a task, upload its version 0 (a model file) and start it; one that runs already in these words stays as it is.

        Raises:
            Refusal: the server's own, `task_exists` for another task of this name among them.
        """
        submission = TaskSubmission(
            task=task,
            plan=plan.model_dump(mode="json"),
            policy=policy,
            rounds=rounds,
            target_accuracy=target_accuracy,
            model_size_bytes=len(model),
            model_sha256=hashlib.sha256(model).hexdigest(),
        )
        try:
            accepted = self._call("POST", "/v1/tasks", TaskAccepted, submission)
        except Refusal as refusal:
            if refusal.code is not Code.TASK_EXISTS:
                raise
            known = self.task(task)
            differing = [
                what
                for what, theirs, ours in (
                    ("plan", known.plan_digest, plan.digest),
                    ("policy", known.policy, policy),
                    ("number of rounds", known.rounds, rounds),
                    ("target accuracy", known.target_accuracy, target_accuracy),
                )
                if theirs != ours
            ]
            if differing:
                detail = f"There is a task {task} already, with another {' and another '.join(differing)}: choose another name."
                raise Refusal(Code.TASK_EXISTS, detail) from refusal
            return known
        self._transfer.store(UploadGrant(accepted.upload.url, accepted.upload.headers), model)
        return self._call("POST", f"/v1/tasks/{task}/start", TaskView)

    def cancel(self, task: str) -> TaskView:
        return self._call("POST", f"/v1/tasks/{task}/cancel", TaskView)

    def pause(self, task: str) -> TaskView:
        return self._call("POST", f"/v1/tasks/{task}/pause", TaskView)

    def resume(self, task: str) -> TaskView:
        return self._call("POST", f"/v1/tasks/{task}/resume", TaskView)

    def tasks(self) -> list[TaskView]:
        return self._call("GET", "/v1/tasks", list[TaskView])

    def task(self, task: str) -> TaskView:
        return self._call("GET", f"/v1/tasks/{task}", TaskView)

    def plan(self, task: str) -> Plan:
        return read_plan(self._send("GET", f"/v1/tasks/{task}/plan").content)

    def rounds(self, task: str) -> list[RoundView]:
        return self._call("GET", f"/v1/tasks/{task}/rounds", list[RoundView])

    def round(self, task: str, number: int) -> RoundView:
        return self._call("GET", f"/v1/tasks/{task}/rounds/{number}", RoundView)

    def current_round(self, task: str, wait_seconds: float = 0.0) -> RoundView:
        """The latest round; with `wait_seconds` after its next change, or when that time is over."""
        return self._call("GET", f"/v1/tasks/{task}/rounds/current?wait_seconds={wait_seconds}", RoundView)

    def devices(self) -> FleetView:
        return self._call("GET", "/v1/devices", FleetView)

    def models(self, task: str) -> list[VersionView]:
        return self._call("GET", f"/v1/tasks/{task}/models", list[VersionView])

    def roll_back(self, task: str, version: int, current: int | None = None) -> VersionView:
        """Make `version` the task's model again; `current` is the version that it takes the place of, None for any."""
        return self._call("POST", f"/v1/tasks/{task}/models/{version}/rollback", VersionView, RollBack(current=current))

    def pin(self, task: str, version: int, label: str) -> VersionView:
        return self._call("PUT", f"/v1/tasks/{task}/models/{version}/labels/{quote(label, safe='')}", VersionView)

    def unpin(self, task: str, label: str) -> None:
        self._send("DELETE", f"/v1/tasks/{task}/labels/{quote(label, safe='')}")

    def download(self, task: str, version: int) -> bytes:
        """A version's model file, checked by its digest.

        It comes by way of the server: who reaches a cluster's server by a port-forward doesn't reach its object storage.
        """
        model = self._call("GET", f"/v1/tasks/{task}/models/{version}/download", Download).model
        body = self._send("GET", f"/v1/tasks/{task}/models/{version}/file").content
        if len(body) != model.size_bytes or hashlib.sha256(body).hexdigest() != model.sha256:
            raise Refusal(Code.MODEL_MISMATCH, f"The model's {len(body)} bytes do not have the promised length and digest.")
        return body

    def ready(self) -> None:
        self._send("GET", "/readyz")

    def _call(self, method: str, path: str, answer: type[Answer], body: BaseModel | None = None) -> Answer:
        response = self._send(method, path, body)
        try:
            return TypeAdapter(answer).validate_json(response.content)
        except ValidationError as error:
            raise Outage(Code.SERVER_UNREACHABLE, f"The server answered {method} {path} in an unknown form.") from error

    def _send(self, method: str, path: str, body: BaseModel | None = None) -> httpx.Response:
        sent: dict[str, Any] = {}
        if body is not None:
            sent = {"content": body.model_dump_json().encode(), "headers": {"Content-Type": "application/json"}}
        try:
            response = self._client.request(method, path, **sent)
        except httpx.HTTPError as error:
            address = self._client.base_url
            raise Outage(Code.SERVER_UNREACHABLE, f"The server at {address} does not answer ({error}): is it up?") from error
        if response.is_success:
            return response
        raise error_in(response.content, f"{method} {path}", response.status_code, "server", Code.SERVER_UNREACHABLE)


def read_token(path: Path) -> str | None:
    """The operators' token in a file, None if there is no such file."""
    return path.read_text().strip() if path.is_file() else None
