"""Which learner a device uses, by its setting. Keras is imported only by the process that trains with it."""

from functools import partial
from typing import Literal

from fedlearn import __version__
from fedlearn.device.workshop import LearnerFactory


def learner_factory(kind: Literal["keras", "synthetic"], synthetic_seconds: float = 0.0) -> tuple[LearnerFactory, str]:
    """How to make a learner of a plan, and what runs it, in words."""
    if kind == "synthetic":
        from fedlearn.learning.synthetic import SyntheticLearner  # noqa: PLC0415

        return partial(SyntheticLearner, seconds=synthetic_seconds), f"fedlearn {__version__}, synthetic"
    from fedlearn.learning.models import framework, use_one_core  # noqa: PLC0415 - seconds, and 500 MB
    from fedlearn.learning.training import KerasLearner  # noqa: PLC0415

    use_one_core()
    return KerasLearner, f"fedlearn {__version__}, {framework()}"
