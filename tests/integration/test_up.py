"""`fedlearn up` as a person types it: it says where everything is, stays, and ends with Ctrl-C."""

import json
import signal
import socket
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from fedlearn.adapters.operator import OperatorClient
from fedlearn.core.learning import Examples, Shard
from fedlearn.data.shards import write_shard
from fedlearn.protocol.aggregations import name_aggregation
from support.command import PORTS, Run
from support.world import wait_for

FREE = [*PORTS, "--device-port", "0", "--learner", "synthetic"]


def up(out: Path, *options: str) -> tuple[Run, dict[str, Any]]:
    """A run that is up, and its addresses."""
    mark = out / "up.json"
    before = mark.stat().st_mtime_ns if mark.exists() else None
    run = Run("up", "--out", str(out), *FREE, *options)

    def is_up() -> bool:
        return mark.exists() and mark.stat().st_mtime_ns != before

    wait_for(lambda: is_up() or run.process.poll() is not None, "everything to be up", seconds=60)
    if not is_up():
        pytest.fail(str(run.end()))
    return run, json.loads(mark.read_text())


def stop(run: Run) -> str:
    """End it by Ctrl-C; what it has printed."""
    run.process.send_signal(signal.SIGINT)
    code, printed, errors = run.end(30)
    assert (code, errors) == (0, "")
    assert run.processes() == []
    return printed


def test_it_says_where_everything_is_and_has_no_task(tmp_path: Path) -> None:
    run, places = up(tmp_path / "up", "--devices", "3", "--processes", "2")
    with OperatorClient(places["server"]) as client:
        assert [device.device for device in client.devices().devices] == ["device-0/0", "device-0/1", "device-1/0"]
        assert client.tasks() == []
    for place in (f"{places['server']}/docs", f"{places['aggregator']}/docs", f"{places['devices']['device-1']}/healthz"):
        assert httpx.get(place, trust_env=False).is_success
    assert httpx.get(f"{places['server']}/send_model_clients", trust_env=False).status_code == 404
    printed = stop(run)
    logs = str(tmp_path / "up" / "logs")
    for place in (places["server"], places["aggregator"], *places["devices"].values(), places["storage"], logs):
        assert place in printed
    token = printed[printed.index("cat ") :].partition(")")[0].removeprefix("cat ")
    assert token == places["operator_token_file"]


def test_with_a_model_it_trains_and_stays_and_a_later_one_goes_on_with_its_models(tmp_path: Path) -> None:
    out = tmp_path / "up"
    strategy = ["--strategy", "fedadam", "--strategy-option", "tau=0.01", "--proximal-mu", "0.1"]
    encodings = ["--codec", "top_k", "--keep-fraction", "0.05", "--model-encoding", "float16"]
    run, places = up(out, "--devices", "2", "--model", "2nn", "--rounds", "2", *strategy, *encodings)
    with OperatorClient(places["server"]) as client:
        wait_for(lambda: client.task("mnist-2nn").state == "completed", "the rounds to end", seconds=60)
        versions = client.models("mnist-2nn")
        plan = client.plan("mnist-2nn")
    assert (plan.aggregation, plan.training.proximal_mu) == (name_aggregation("fedadam", tau=0.01), 0.1)
    assert (plan.update.encoding, plan.update.keep_fraction, plan.model_encoding) == ("top_k", 0.05, "float16")
    assert [version.round for version in versions] == [None, 1, 2]
    assert run.process.poll() is None
    stop(run)
    again, places = up(out, "--devices", "2")
    token = Path(places["operator_token_file"]).read_text()
    with OperatorClient(places["server"], token) as client:
        assert [version.model for version in client.models("mnist-2nn")] == [version.model for version in versions]
        assert len(client.download("mnist-2nn", 2)) == versions[2].model.size_bytes
    stop(again)


def test_each_directory_of_shards_is_one_devices_own_data(tmp_path: Path) -> None:
    for name, examples in (("ward-b", 30), ("ward-a", 20)):
        made = Examples(np.zeros((examples, 28, 28), np.uint8), np.zeros(examples, np.uint8))
        write_shard(tmp_path / "wards" / name, Shard(made, made))
    run, places = up(tmp_path / "up", "--shards", str(tmp_path / "wards"), "--dataset", "wards")
    with OperatorClient(places["server"]) as client:
        found = [(device.examples, device.dataset) for device in client.devices().devices]
    assert sorted(found) == [(20, "wards"), (30, "wards")]
    assert "evaluator" not in stop(run), "nobody has a test set"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        pytest.param(["--dataset", "wards"], "--dataset wards", id="a dataset that nobody has"),
        pytest.param(["--shards", "/nowhere"], "--shards /nowhere", id="no directory"),
        pytest.param(["--shards", "."], "--devices", id="a directory without two devices' data"),
        pytest.param(["--manual", "--devices", "3", "--processes", "2"], "--manual", id="by hand in few processes"),
        pytest.param(["--model", "resnet"], "--model", id="an unknown model"),
        pytest.param(["--model", "2nn", "--rounds", "0"], "--rounds", id="no rounds"),
        pytest.param(["--epochs", "0"], "--epochs", id="no epochs"),
        pytest.param(["--model", "2nn", "--robust", "krum"], "--robust krum", id="a rule that publishes one update"),
    ],
)
def test_a_bad_option_is_one_sentence_that_names_it(options: list[str], named: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    options = [str(tmp_path / "empty") if option == "." else option for option in options]
    run = Run("up", "--out", str(tmp_path / "up"), *FREE, *options)
    code, _, errors = run.end()
    assert (code, errors.count("\n")) == (1, 1), errors
    assert named in errors
    assert run.processes() == []


def test_a_busy_device_port_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        run = Run("up", "--out", str(tmp_path / "up"), *FREE, "--device-port", port)
        code, _, errors = run.end()
    assert (code, f"Port {port} on 127.0.0.1 is taken" in errors, errors.count("\n")) == (1, True, 1)
    assert run.processes() == []
