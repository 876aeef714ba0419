"""Each optimizer of a plan against Keras' own of that name."""

from typing import Any

import numpy as np
import pytest

from fedlearn.core.errors import Code, Refusal
from fedlearn.core.learning import Examples
from fedlearn.learning.models import get_weights, make_plan
from fedlearn.learning.optimizers import describe_optimizer, keras_optimizer
from fedlearn.learning.runtime import keras
from fedlearn.learning.training import KerasLearner
from fedlearn.protocol.plans import LocalTraining

optimizers, layers = keras.optimizers, keras.layers

OPTIMIZERS = {
    "SGD": lambda: optimizers.SGD(0.3),
    "SGD with momentum": lambda: optimizers.SGD(0.1, momentum=0.9),
    "SGD by Nesterov": lambda: optimizers.SGD(0.1, momentum=0.9, nesterov=True),
    "SGD with decay": lambda: optimizers.SGD(0.1, weight_decay=0.05),
    "SGD clipped by norm": lambda: optimizers.SGD(0.5, momentum=0.5, clipnorm=0.1),
    "SGD clipped by value": lambda: optimizers.SGD(0.5, clipvalue=0.02),
    "SGD clipped by the norm of all": lambda: optimizers.SGD(0.5, global_clipnorm=0.1),
    "Adam": lambda: optimizers.Adam(0.05),
    "Adam with its own constants": lambda: optimizers.Adam(0.05, beta_1=0.5, beta_2=0.9, epsilon=0.01),
    "Adam clipped": lambda: optimizers.Adam(0.05, clipnorm=0.1),
    "AdamW": lambda: optimizers.AdamW(0.05, weight_decay=0.1),
    "RMSprop": lambda: optimizers.RMSprop(0.02, rho=0.7),
    "Adagrad": lambda: optimizers.Adagrad(0.2),
}


def classifier() -> Any:
    layers_ = [keras.Input((6,)), layers.Dense(5, activation="relu"), layers.Dense(3, activation="softmax")]
    return keras.Sequential(layers_)


def examples(count: int = 23) -> Examples:
    x = np.random.default_rng(0).normal(size=(count, 6)).astype(np.float32)
    return Examples(x, np.argmax(x[:, :3], axis=1).astype(np.int32))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_device_steps_as_keras_does(name: str) -> None:
    steps, data = 5, examples()
    training = LocalTraining(epochs=steps, batch_size=100, **describe_optimizer(OPTIMIZERS[name]()))
    theirs = classifier()
    plan = make_plan(theirs, dataset="mine", training=training)
    weights = get_weights(theirs, plan)
    ours = KerasLearner(plan).train(weights, data, 1)
    theirs.compile(optimizer=OPTIMIZERS[name](), loss=plan.loss)
    for _ in range(steps):
        theirs.train_on_batch(data.features, data.labels)
    assert not np.allclose(ours[0], weights[0], atol=1e-3)
    for our, their in zip(ours, get_weights(theirs, plan), strict=True):
        np.testing.assert_allclose(our, their, rtol=1e-3, atol=2e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_comes_back_from_a_plan_as_it_was(name: str) -> None:
    given, described = OPTIMIZERS[name](), describe_optimizer(OPTIMIZERS[name]())
    back = keras_optimizer(LocalTraining(**described))
    assert describe_optimizer(back) == described
    assert {**back.get_config(), "name": ""} == pytest.approx({**given.get_config(), "name": ""})


def test_every_round_begins_anew() -> None:
    """One round after another from the same weights gives the same: nothing is left of momentum or of Adam's moments."""
    theirs = classifier()
    training = LocalTraining(batch_size=5, **describe_optimizer(optimizers.Adam(0.05)))
    plan = make_plan(theirs, dataset="mine", training=training)
    learner, weights = KerasLearner(plan), get_weights(theirs, plan)
    first, second = (learner.train(weights, examples(), 1) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("optimizer", "named"),
    [
        pytest.param(optimizers.Nadam, "Nadam", id="one that devices do not have"),
        pytest.param(type("Mine", (optimizers.SGD,), {}), "Mine", id="one of the user's own"),
        pytest.param(lambda: optimizers.Adam(amsgrad=True), "amsgrad", id="amsgrad"),
        pytest.param(lambda: optimizers.RMSprop(momentum=0.5), "momentum", id="RMSprop with momentum"),
        pytest.param(lambda: optimizers.RMSprop(centered=True), "centered", id="centered RMSprop"),
        pytest.param(lambda: optimizers.SGD(use_ema=True), "use_ema", id="averaged weights"),
        pytest.param(lambda: optimizers.SGD(gradient_accumulation_steps=4), "gradient_accumulation_steps", id="accumulation"),
        pytest.param(
            lambda: optimizers.SGD(optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)), "schedule", id="a schedule"
        ),
    ],
)  # fmt: skip
def test_what_a_device_does_not_do_is_refused_by_name(optimizer: Any, named: str) -> None:
    with pytest.raises(Refusal) as refusal:
        describe_optimizer(optimizer())
    assert refusal.value.code is Code.OPTIMIZER_NOT_ALLOWED
    assert named in refusal.value.detail
