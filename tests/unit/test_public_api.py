"""`import fedlearn`: what notebooks and task files may rely on."""

import subprocess
import sys
from pathlib import Path

import pytest

import fedlearn
from fedlearn.protocol.plans import ALLOWED_CLASSES

PAGE = Path(__file__).parents[2] / "docs" / "bring-your-own-model.md"


@pytest.mark.parametrize("name", fedlearn.__all__)
def test_every_public_name_is_there_and_says_what_it_is(name: str) -> None:
    found = getattr(fedlearn, name)
    assert name == "__version__" or found.__doc__


def test_nothing_else_is() -> None:
    assert dir(fedlearn) == sorted(fedlearn.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        fedlearn.no_such_name  # noqa: B018


def test_the_guide_lists_every_public_name() -> None:
    page = PAGE.read_text()
    assert [name for name in fedlearn.__all__ if f"`{name}`" not in page] == []


def test_the_guide_lists_every_layer_that_a_plan_may_have() -> None:
    page = PAGE.read_text()
    assert [name for name in sorted(ALLOWED_CLASSES) if f"`{name}`" not in page] == []


def test_importing_it_brings_nothing_but_itself_and_a_client_no_tensorflow() -> None:
    program = (
        "import sys, fedlearn\n"
        "print(sorted(name for name in sys.modules if name.startswith('fedlearn')))\n"
        "fedlearn.connect().close(); fedlearn.Task; fedlearn.Policy(goal=2); fedlearn.make_partitioner('iid', 2)\n"
        "print(sorted({'tensorflow', 'keras'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "['fedlearn']\n[]\n"
