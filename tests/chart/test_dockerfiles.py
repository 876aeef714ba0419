"""The images' recipes."""

import re
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROLES = ("server", "aggregator", "device")


def recipe(role: str) -> str:
    return (ROOT / f"Dockerfile.{role}").read_text()


@pytest.mark.parametrize("role", ROLES)
def test_hadolint_finds_nothing(role: str) -> None:
    program = Path(sysconfig.get_path("scripts")) / "hadolint"
    done = subprocess.run([program, f"Dockerfile.{role}"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("role", ROLES)
def test_the_base_is_named_once_with_its_tag_and_no_host(role: str) -> None:
    bases = re.findall(r"^FROM (\S+)", recipe(role), re.MULTILINE)
    assert set(bases) == {"${BASE}"}
    (base,) = re.findall(r"^ARG BASE=(\S+)$", recipe(role), re.MULTILINE)
    assert re.fullmatch(r"python:3\.\d+-slim-\w+", base)


@pytest.mark.parametrize("role", ROLES)
def test_what_runs_is_a_numeric_user_s_and_takes_signals_itself(role: str) -> None:
    final = recipe(role).rpartition("\nFROM ")[2]
    assert "USER 10001:10001" in final
    assert 'ENTRYPOINT ["fedlearn"]' in final
    assert f'CMD ["{role}"]' in final
    assert not re.search(r"^RUN", final, re.MULTILINE)  # what was built is copied, and nothing is built there


@pytest.mark.parametrize("role", ROLES)
def test_what_is_installed_is_what_was_tested(role: str) -> None:
    assert "--constraint constraints.txt" in recipe(role)


def test_only_devices_have_tensorflow() -> None:
    assert [role for role in ROLES if "learning]" in recipe(role)] == ["device"]
