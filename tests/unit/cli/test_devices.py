import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.text import Text
from typer.testing import CliRunner, Result

from fedlearn.cli.app import build
from fedlearn.core.errors import Code, FedlearnError
from fedlearn.protocol.messages import Unfit
from fedlearn.protocol.views import DevicePart, DevicePod, DeviceView, FleetView
from support.played_api import Answer, PlayedApi, failure, played_api

DEVICE = DeviceView(
    device="fedlearn-device-0",
    waiting=False,
    part=DevicePart(task="mnist-2nn", round=4, standing="accepted"),
    dataset="mnist",
    examples=5400,
    runtime="fedlearn 0.1.0",
    last_seen=None,
    pod=DevicePod(state="ready", node="node1"),
)


@pytest.fixture
def api(tmp_path: Path) -> Iterator[PlayedApi]:
    with played_api(tmp_path) as api:
        yield api


def fedlearn(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(build(), arguments)


def failed(*arguments: str) -> FedlearnError:
    error = fedlearn(*arguments).exception
    assert isinstance(error, FedlearnError)
    return error


class TestTheList:
    def serve(self, api: PlayedApi, *devices: DeviceView, cluster: Any = "watching") -> list[str]:
        """The lines that are printed for this fleet."""
        api.answer("GET devices", Answer(body=FleetView(cluster=cluster, devices=devices).model_dump(mode="json")))
        result = fedlearn("devices", "--server", api.url)
        assert result.exit_code == 0
        return [" ".join(line.split()) for line in result.output.splitlines()]

    def test_says_what_each_device_does_and_where_its_pod_is(self, api: PlayedApi) -> None:
        heading, line = self.serve(api, DEVICE)
        assert heading == "device does pod node examples seen runtime"
        assert line == "fedlearn-device-0 accepted in mnist-2nn/4 ready node1 5,400 never fedlearn 0.1.0"

    @pytest.mark.parametrize(("waiting", "word"), [(True, "waits"), (False, "–")])
    def test_says_which_devices_wait(self, api: PlayedApi, waiting: bool, word: str) -> None:
        _, line = self.serve(api, DEVICE.model_copy(update={"part": None, "waiting": waiting}))
        assert line.split()[1] == word

    def test_says_why_a_device_is_unfit(self, api: PlayedApi) -> None:
        unfit = Unfit(code=Code.SHARD_INVALID, detail="train.npz holds no example.")
        _, line = self.serve(api, DEVICE.model_copy(update={"part": None, "examples": None, "unfit": unfit}))
        assert line.startswith("fedlearn-device-0 unfit: train.npz holds no example. ready")

    @pytest.mark.parametrize(
        ("seconds", "words"), [(0.2, r" \d s ago"), (100, r" 10\d s ago"), (600, " 10 min ago"), (7300, " 2 h ago")]
    )
    def test_says_when_a_device_was_heard_of_last(self, api: PlayedApi, seconds: float, words: str) -> None:
        then = datetime.now(UTC) - timedelta(seconds=seconds)
        _, line = self.serve(api, DEVICE.model_copy(update={"last_seen": then}))
        assert re.search(words, line)

    def test_is_a_line_for_each_device_where_nobody_s_terminal_is_narrow(self, api: PlayedApi) -> None:
        api.answer("GET devices", Answer(body=FleetView(cluster="watching", devices=(DEVICE,)).model_dump(mode="json")))
        result = CliRunner(env={"COLUMNS": "40"}).invoke(build(), ["devices", "--server", api.url])
        assert len(result.output.splitlines()) == 2

    def test_breaks_no_name_on_a_narrow_terminal(self, api: PlayedApi) -> None:
        api.answer("GET devices", Answer(body=FleetView(cluster="watching", devices=(DEVICE,)).model_dump(mode="json")))
        result = CliRunner(env={"COLUMNS": "80", "FORCE_COLOR": "1"}).invoke(build(), ["devices", "--server", api.url])
        lines = Text.from_ansi(result.output).plain.splitlines()
        assert max(map(len, lines)) <= 80
        assert lines[1].startswith("fedlearn-device-0 ")

    def test_has_no_pods_where_there_is_no_cluster(self, api: PlayedApi) -> None:
        heading, _ = self.serve(api, DEVICE.model_copy(update={"pod": None}), cluster="none")
        assert heading == "device does examples seen runtime"

    def test_shows_a_pod_that_has_not_checked_in(self, api: PlayedApi) -> None:
        pod = DevicePod(state="pending", node=None)
        nothing = dict.fromkeys(("part", "dataset", "examples", "runtime"))
        _, line = self.serve(api, DEVICE.model_copy(update={**nothing, "pod": pod}))
        assert line == "fedlearn-device-0 – pending – – never –"

    def test_warns_when_the_cluster_is_out_of_sight(self, api: PlayedApi) -> None:
        assert "seen last" in self.serve(api, DEVICE, cluster="unavailable")[-1]

    def test_is_json_for_programs(self, api: PlayedApi) -> None:
        fleet = FleetView(cluster="watching", devices=(DEVICE,))
        api.answer("GET devices", Answer(body=fleet.model_dump(mode="json")))
        result = fedlearn("devices", "--server", api.url, "--json")
        assert FleetView.model_validate(json.loads(result.output)) == fleet

    def test_needs_a_server(self) -> None:
        assert failed("devices", "--server", "http://127.0.0.1:9").code is Code.SERVER_UNREACHABLE


class TestScale:
    @pytest.fixture
    def kubeconfig(self, api: PlayedApi) -> str:
        return str(api.kubeconfig())

    @staticmethod
    def statefulsets(*names: str) -> Answer:
        selector: dict[str, Any] = {"matchLabels": {"a": "b"}}
        template = {"metadata": {}, "spec": {"containers": [{"name": "c"}]}}
        items = [{"metadata": {"name": name}, "spec": {"selector": selector, "template": template}} for name in names]
        return Answer(body={"kind": "StatefulSetList", "apiVersion": "apps/v1", "metadata": {}, "items": items})

    @staticmethod
    def scaled(before: int, wanted: int) -> Answer:
        return Answer(body={"kind": "Scale", "spec": {"replicas": wanted}, "status": {"replicas": before}, "metadata": {}})

    def test_asks_for_so_many_replicas_of_the_releases_devices(self, api: PlayedApi, kubeconfig: str) -> None:
        api.answer("GET statefulsets", self.statefulsets("my-fedlearn-device"))
        api.answer("PATCH scale", self.scaled(3, 8))
        result = fedlearn("devices", "scale", "8", "--kubeconfig", kubeconfig, "--release", "my")
        assert (result.exit_code, result.output) == (0, "StatefulSet fl/my-fedlearn-device: 3 → 8 devices.\n")
        listed, patched = api.asked
        assert listed.query["labelSelector"] == "app.kubernetes.io/instance=my,app.kubernetes.io/component=device"
        assert patched.path == "/apis/apps/v1/namespaces/fl/statefulsets/my-fedlearn-device/scale"
        assert patched.body == {"spec": {"replicas": 8}}

    def test_takes_the_statefulset_and_the_namespace_that_are_named(self, api: PlayedApi, kubeconfig: str) -> None:
        api.answer("PATCH scale", self.scaled(3, 0))
        named = ("--statefulset", "mine", "--namespace", "elsewhere")
        assert fedlearn("devices", "scale", "0", "--kubeconfig", kubeconfig, *named).exit_code == 0
        (patched,) = api.asked
        assert patched.path == "/apis/apps/v1/namespaces/elsewhere/statefulsets/mine/scale"

    def test_names_the_release_that_is_not_there(self, api: PlayedApi, kubeconfig: str) -> None:
        api.answer("GET statefulsets", self.statefulsets())
        error = failed("devices", "scale", "8", "--kubeconfig", kubeconfig, "--release", "typo")
        assert error.code is Code.NOT_FOUND
        assert "instance=typo" in error.detail

    def test_does_not_choose_among_several(self, api: PlayedApi, kubeconfig: str) -> None:
        api.answer("GET statefulsets", self.statefulsets("b", "a"))
        assert "a, b" in failed("devices", "scale", "8", "--kubeconfig", kubeconfig).detail
        assert not api.of("PATCH")

    def test_says_what_is_not_allowed(self, api: PlayedApi, kubeconfig: str) -> None:
        api.answer("PATCH scale", failure(403, 'cannot patch resource "statefulsets/scale"'))
        error = failed("devices", "scale", "8", "--kubeconfig", kubeconfig, "--statefulset", "mine")
        assert (error.code, error.detail) == (
            Code.CLUSTER_DENIED,
            'The Kubernetes API refuses to scale fl/mine: cannot patch resource "statefulsets/scale".',
        )

    @pytest.mark.parametrize("wrong", ["-1", "many", "100001"])
    def test_takes_a_sensible_number_alone(self, kubeconfig: str, api: PlayedApi, wrong: str) -> None:
        assert fedlearn("devices", "scale", "--kubeconfig", kubeconfig, "--", wrong).exit_code == 2
        assert not api.asked

    def test_names_a_kubeconfig_that_is_no_file(self, tmp_path: Path) -> None:
        error = failed("devices", "scale", "8", "--kubeconfig", str(tmp_path / "typo"))
        assert (error.code, "typo" in error.detail) == (Code.SETTING_INVALID, True)

    def test_needs_a_cluster(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "typo"))
        assert "no way to a cluster" in failed("devices", "scale", "8").detail
