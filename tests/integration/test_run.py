"""`fedlearn run` as a person types it: real processes, real data, Keras."""

import json
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from support.command import PORTS, Run
from support.world import wait_for


def test_a_run_trains_and_leaves_a_summary_a_model_and_nothing_running(tmp_path: Path) -> None:
    out, summary_file = tmp_path / "run", tmp_path / "summary.json"
    run = Run(
        "run",
        "--devices",
        "3",
        "--rounds",
        "2",
        "--batch-size",
        "100",
        "--out",
        str(out),
        "--summary",
        str(summary_file),
        *PORTS,
    )
    code, printed, errors = run.end()
    assert (code, errors) == (0, "")
    summary = json.loads(summary_file.read_text())
    assert [r["outcome"] for r in summary["rounds"]] == ["committed", "committed"]
    for figures in summary["rounds"]:
        assert (figures["selected"], figures["reported"], figures["rejected"], figures["examples"]) == (3, 3, 0, 54_000)
        assert f"round {figures['round']}/2 committed: 3 of 3 reported" in printed
    assert summary["final_accuracy"] == summary["rounds"][-1]["accuracy"] > 0.85
    # the hold-outs of round 2 score the version that round 1 made
    assert summary["rounds"][1]["federated_accuracy"] == pytest.approx(summary["rounds"][0]["accuracy"], abs=0.03)
    assert {k: summary[k] for k in ("dataset", "model", "devices", "partitioner", "seed", "model_version")} == {
        "dataset": "mnist", "model": "2nn", "devices": 3, "partitioner": "iid", "seed": 0, "model_version": 2
    }  # fmt: skip
    assert Path(summary["model_path"]).stat().st_size > 500_000
    assert sorted(path.name for path in out.iterdir()) == ["curves.png", "logs", "model.keras"]
    assert run.processes() == []


def selecting(out: Path) -> bool:
    log = out / "logs" / "server.log"
    return log.exists() and "selection" in log.read_text()


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "before anything": lambda _: True,
    "while the storage starts": lambda out: (out / "storage").exists(),
    "while services start": lambda out: (out / "logs" / "aggregator.log").exists(),
    "while devices start": lambda out: (out / "logs" / "device-0.log").exists(),
    "in the first round": selecting,
}


@pytest.mark.parametrize(
    ("moment", "signal_", "learner"),
    [
        *(pytest.param(moment, signal.SIGINT, "keras", id=moment) for moment in MOMENTS),
        # SIGTERM ends it in the same way, so that nothing needs to train
        pytest.param("in the first round", signal.SIGTERM, "synthetic", id="in the first round, by SIGTERM"),
    ],
)
def test_an_interruption_at_any_moment_leaves_no_process_behind(
    tmp_path: Path, moment: str, signal_: signal.Signals, learner: str
) -> None:
    out = tmp_path / "run"
    run = Run("run", "--devices", "2", "--rounds", "50", "--learner", learner, "--out", str(out), *PORTS)
    wait_for(lambda: MOMENTS[moment](out), moment, seconds=120)
    if moment == "before anything":
        time.sleep(0.05)
    run.process.send_signal(signal_)
    code, _, errors = run.end()
    assert code != 0
    # an interpreter that has not reached our code yet speaks for itself
    assert moment == "before anything" or errors == "Stopped.\n"
    assert run.processes() == []


def test_a_launcher_that_is_killed_takes_everything_with_it(tmp_path: Path) -> None:
    run = Run("run", "--devices", "2", "--rounds", "50", "--out", str(tmp_path / "run"), *PORTS)
    wait_for(lambda: selecting(tmp_path / "run"), "the first round", seconds=120)
    assert len(run.processes()) > 5
    run.process.kill()
    run.process.communicate()
    wait_for(lambda: run.processes() == [], "all processes to be gone", seconds=10)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        pytest.param(["--devices", "1"], "--devices", id="one device hides nothing"),
        pytest.param(["--dataset", "cifar"], "--dataset", id="an unknown dataset"),
        pytest.param(["--model", "resnet"], "--model", id="an unknown model"),
        pytest.param(["--partitioner", "magic"], "--partitioner", id="an unknown partitioner"),
        pytest.param(["--learning-rate", "0"], "--learning-rate", id="a learning rate of zero"),
        pytest.param(["--target-accuracy", "97"], "--target-accuracy", id="an accuracy in percent"),
        pytest.param(["--processes", "9"], "--processes", id="more processes than devices"),
        pytest.param(["--rounds", "many"], "--rounds", id="no number"),
        pytest.param(["--no-such-option"], "--no-such-option", id="an unknown option"),
        pytest.param(["--data-dir", "/nowhere"], "/nowhere", id="a directory without data"),
        pytest.param(["--out", "/proc/x"], "/proc/x", id="a directory that can't be made"),
    ],
)
def test_a_bad_option_is_one_sentence_that_names_it(arguments: list[str], named: str, tmp_path: Path) -> None:
    run = Run("run", "--out", str(tmp_path / "run"), *PORTS, *arguments)
    code, _, errors = run.end()
    assert code != 0
    assert named in errors
    assert "Traceback" not in errors
    assert run.processes() == []


@pytest.mark.parametrize("option", ["--server-port", "--aggregator-port", "--storage-port"])
def test_a_busy_port_is_one_sentence(option: str, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        run = Run("run", "--out", str(tmp_path / "run"), *PORTS, option, port)
        code, _, errors = run.end()
    assert code == 1
    assert errors.startswith(f"fedlearn: Port {port} on 127.0.0.1 is taken")
    assert errors.count("\n") == 1
    assert run.processes() == []


def test_a_directory_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    code, _, errors = Run("run", "--out", str(tmp_path), *PORTS).end()
    assert (code, "not empty" in errors) == (1, True)
    assert (tmp_path / "mine").read_text() == "precious"


def test_a_storage_that_does_not_start_is_one_sentence(tmp_path: Path) -> None:
    broken = tmp_path / "bin"
    broken.mkdir()
    (broken / "sitecustomize.py").write_text("import fedlearn.local.storage as s\ns._program = lambda: '/bin/false'\n")
    run = Run("run", "--out", str(tmp_path / "run"), *PORTS, PYTHONPATH=str(broken))
    code, _, errors = run.end()
    assert code == 1
    assert errors.startswith("fedlearn: The object storage")
    assert errors.count("\n") == 1
    assert run.processes() == []


def test_a_service_that_dies_ends_the_run_with_its_name(tmp_path: Path) -> None:
    run = Run("run", "--devices", "2", "--rounds", "50", "--learner", "synthetic", "--out", str(tmp_path / "run"), *PORTS)
    wait_for(lambda: selecting(tmp_path / "run"), "the first round", seconds=120)
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            mine = run.mark.encode() in (entry / "environ").read_bytes()
            if mine and (entry / "cmdline").read_bytes().endswith(b"fedlearn\0aggregator\0"):
                os.kill(int(entry.name), signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    code, _, errors = run.end()
    assert (code, errors.startswith("fedlearn: The aggregator has ended by itself")) == (1, True)
    assert run.processes() == []
