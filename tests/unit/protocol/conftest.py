"""A small plan, a round's keys and an update that fits them; sealing keys are slow to make, so they are shared."""

from collections.abc import Callable

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import settings

from fedlearn.core.ids import RoundId, TaskId
from fedlearn.core.updates import Update
from fedlearn.protocol.envelope import UpdateContext
from fedlearn.protocol.plans import Plan, TensorSpec, UpdateFormat
from fedlearn.protocol.sealing import SealingKey

# other processes share the machine: a slow example is no failure
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

ROUND = RoundId(TaskId("mnist"), 7)


def small_plan(encoding: str = "float32", shapes: tuple[tuple[int, ...], ...] = ((30, 50), (50,), (), (1000,))) -> Plan:
    """A plan of 2,551 parameters in three windows, unless `shapes` says otherwise."""
    return Plan(
        dataset="mnist",
        architecture={},
        weights=tuple(TensorSpec(shape=shape) for shape in shapes),
        update=UpdateFormat(encoding=encoding, window_elements=1024),
    )


@pytest.fixture(scope="session")
def plan() -> Plan:
    return small_plan()


@pytest.fixture(scope="session")
def identity() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.generate()


@pytest.fixture(scope="session")
def key() -> SealingKey:
    return SealingKey.generate(ROUND)


@pytest.fixture(scope="session")
def context(plan: Plan) -> UpdateContext:
    return UpdateContext("mnist", 7, "fedlearn-device-0/3", plan.digest, "b" * 64)


@pytest.fixture(scope="session")
def update(plan: Plan) -> Update:
    delta = np.random.default_rng(1).normal(0, 0.01, plan.parameters).astype(np.float32)
    return Update(delta, examples=540, holdout_examples=60, metrics={"loss": 0.25, "accuracy": 0.9})


@pytest.fixture
def make_plan() -> Callable[..., Plan]:
    return small_plan
