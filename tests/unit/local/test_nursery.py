import subprocess
import sys

PROGRAM = """
import gc, sys
from fedlearn.local.nursery import _import_all
_import_all()
print("keras" in sys.modules, "matplotlib" in sys.modules, gc.get_freeze_count() > 200_000, gc.isenabled())
import matplotlib
"""


def test_what_is_forked_has_keras_and_shares_its_memory_and_nothing_that_draws() -> None:
    """A collection that walked all that was imported would write to it, and each child had its own copy of it then."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout == "True False True True\n"
