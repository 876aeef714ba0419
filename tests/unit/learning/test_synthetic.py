import subprocess
import sys

import numpy as np
import pytest

from fedlearn.core.errors import Code, Refusal
from fedlearn.core.learning import Examples
from fedlearn.learning.models import build, make_plan
from fedlearn.learning.synthetic import SyntheticLearner
from fedlearn.protocol.plans import Plan

SOME = Examples(np.zeros((5, 2), np.float32), np.zeros(5, np.int32))
NONE = Examples(np.zeros((0, 2), np.float32), np.zeros(0, np.int32))


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(build("2nn", 0), dataset="mnist")


@pytest.fixture
def weights() -> list[np.ndarray]:
    return [weight.copy() for weight in build("2nn", 0).get_weights()]


def test_the_same_seed_gives_the_same_delta_and_another_does_not(plan: Plan, weights: list[np.ndarray]) -> None:
    first, again, other = (SyntheticLearner(plan).learn(weights, SOME, seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_deltas_are_small_float32_and_without_drift(plan: Plan, weights: list[np.ndarray]) -> None:
    delta = SyntheticLearner(plan, scale=0.01).learn(weights, SOME, 0)
    assert (delta.dtype, delta.shape) == (np.float32, (plan.parameters,))
    assert delta.std() == pytest.approx(0.01, rel=0.01)
    assert abs(delta.mean()) < 1e-4


def test_the_weights_it_is_given_stay_as_they_are(plan: Plan, weights: list[np.ndarray]) -> None:
    before = [weight.copy() for weight in weights]
    SyntheticLearner(plan).learn(weights, SOME, 0)
    assert all(np.array_equal(a, b) for a, b in zip(weights, before, strict=True))


def test_its_figures_are_plausible_and_follow_from_the_weights(plan: Plan, weights: list[np.ndarray]) -> None:
    learner = SyntheticLearner(plan)
    figures = learner.evaluate(weights, SOME)
    assert figures == learner.evaluate(weights, SOME)
    assert set(figures) == {"loss", "accuracy"}
    assert all(0 <= figure <= 1 for figure in figures.values())
    assert figures != learner.evaluate([weight + 1 for weight in weights], SOME)


def test_there_are_no_figures_of_no_examples(plan: Plan, weights: list[np.ndarray]) -> None:
    assert SyntheticLearner(plan).evaluate(weights, NONE) == {}


def test_no_examples_and_foreign_weights_are_refused_as_by_the_real_one(plan: Plan, weights: list[np.ndarray]) -> None:
    learner = SyntheticLearner(plan)
    for code, arguments in ((Code.TRAINING_FAILED, (weights, NONE, 0)), (Code.MODEL_MISMATCH, (weights[1:], SOME, 0))):
        with pytest.raises(Refusal) as caught:
            learner.learn(*arguments)
        assert caught.value.code is code


def test_it_needs_no_tensorflow() -> None:
    program = "import sys, fedlearn.learning, fedlearn.learning.synthetic; print({'tensorflow', 'keras'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
