"""A real Prometheus that scrapes what it is told to; Debian's package `prometheus` has it and `promtool`."""

import json
import math
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import pytest
import yaml

from fedlearn.local.ports import free_port
from support.world import wait_for

NAMESPACE = "learning"


def program(name: str) -> str:
    """Where `prometheus` or `promtool` is; skips the test where they are not installed."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: apt-get install prometheus")
    return found


def promtool(*arguments: str, directory: Path) -> str:
    """Run promtool, which has to be content; what it says."""
    command = [program("promtool"), *arguments]
    run = subprocess.run(command, check=False, cwd=directory, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


@dataclass(frozen=True)
class Target:
    component: str
    pod: str
    url: str


class Prometheus:
    """It scrapes the targets once a second, from when the block begins to its end."""

    def __init__(self, directory: Path, targets: Sequence[Target]) -> None:
        self._directory, self._targets = directory, targets
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{free_port()}", trust_env=False, timeout=10)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        jobs = [
            {
                "targets": [target.url.removeprefix("http://")],
                "labels": {"namespace": NAMESPACE, "component": target.component, "pod": target.pod},
            }
            for target in self._targets
        ]
        configuration = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "scrape_configs": [{"job_name": "fedlearn", "static_configs": jobs}],
        }
        (self._directory / "prometheus.yml").write_text(yaml.safe_dump(configuration))
        arguments = [
            program("prometheus"),
            f"--config.file={self._directory / 'prometheus.yml'}",
            f"--storage.tsdb.path={self._directory / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{self._client.base_url.port}",
        ]
        with (self._directory / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(arguments, stdout=log, stderr=log, cwd=self._directory)
        wait_for(self._scrapes_all, "Prometheus to scrape all targets", 60)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(20)
        self._client.close()

    def ask(self, expression: str) -> list[tuple[Mapping[str, str], float]]:
        """The samples that an expression gives now; it fails for one that Prometheus does not take."""
        answer = self._client.get("/api/v1/query", params={"query": expression}).json()
        assert answer["status"] == "success", f"{expression}: {answer}"
        return [(sample["metric"], float(sample["value"][1])) for sample in answer["data"]["result"]]

    def numbers(self, expression: str) -> list[tuple[Mapping[str, str], float]]:
        """As `ask`, without what is no number."""
        return [(labels, value) for labels, value in self.ask(expression) if not math.isnan(value)]

    def values_of(self, label: str, selector: str) -> list[str]:
        """The values of a label among the series of a selector, as a dashboard's variable asks for them."""
        answer: Any = self._client.get(f"/api/v1/label/{label}/values", params={"match[]": selector}).json()
        found: list[str] = answer["data"]
        return found

    def url_of(self, component: str) -> str:
        """Where the first target of a component is."""
        return next(target.url for target in self._targets if target.component == component)

    def _scrapes_all(self) -> bool:
        try:
            return len(self.ask("up == 1")) == len(self._targets)
        except (httpx.HTTPError, json.JSONDecodeError):
            time.sleep(0.1)
            return False
