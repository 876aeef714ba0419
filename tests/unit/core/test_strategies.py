"""Each server optimizer against its equation, written down once more in plain numpy and float64."""

from collections.abc import Callable

import numpy as np
import pytest

from fedlearn.core.strategies import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedYogi, ServerOptimizer

PARAMETERS = 70_001  # more than one window, and not a multiple of it
ETA, BETA_1, BETA_2, TAU = 0.1, 0.9, 0.99, 1e-3
OPTIMIZERS: dict[str, ServerOptimizer] = {
    "fedavg": FedAvg(0.5),
    "fedavgm": FedAvgM(ETA, BETA_1),
    "fedadagrad": FedAdagrad(ETA, 0.0, TAU),
    "fedadam": FedAdam(ETA, BETA_1, BETA_2, TAU),
    "fedyogi": FedYogi(ETA, BETA_1, BETA_2, TAU),
}


def some_deltas(count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).normal(0, 0.01, (count, PARAMETERS)))


def begin() -> np.ndarray:
    return np.random.default_rng(1).normal(size=PARAMETERS).astype(np.float32)


def walk(optimizer: ServerOptimizer, deltas: list[np.ndarray]) -> np.ndarray:
    weights, state = begin(), {}
    for delta in deltas:
        weights, state = (step := optimizer.step(weights, delta, state)).weights, step.state
    return weights


@pytest.mark.parametrize("learning_rate", [1.0, 0.5])
def test_fedavg_adds_the_mean_delta_times_its_learning_rate(learning_rate: float) -> None:
    deltas = some_deltas(3)
    direct = begin() + learning_rate * sum(deltas)
    np.testing.assert_allclose(walk(FedAvg(learning_rate), deltas), direct, atol=1e-6)


def test_fedavgm_adds_a_velocity() -> None:
    deltas, direct, velocity = some_deltas(4), begin().astype(np.float64), 0.0
    for delta in deltas:
        velocity = BETA_1 * velocity + delta
        direct = direct + ETA * velocity
    np.testing.assert_allclose(walk(OPTIMIZERS["fedavgm"], deltas), direct, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "beta_1", "second"),
    [
        pytest.param("fedadagrad", 0.0, lambda v, d: v + d**2, id="FedAdagrad"),
        pytest.param("fedadam", BETA_1, lambda v, d: BETA_2 * v + (1 - BETA_2) * d**2, id="FedAdam"),
        pytest.param("fedyogi", BETA_1, lambda v, d: v - (1 - BETA_2) * d**2 * np.sign(v - d**2), id="FedYogi"),
    ],
)
def test_the_adaptive_ones_are_algorithm_2_of_reddi_et_al(
    name: str, beta_1: float, second: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> None:
    deltas, direct = some_deltas(4), begin().astype(np.float64)
    m, v = np.zeros(PARAMETERS), np.full(PARAMETERS, TAU**2)
    for delta in deltas:
        m = beta_1 * m + (1 - beta_1) * delta
        v = second(v, delta)
        direct = direct + ETA * m / (np.sqrt(v) + TAU)
    np.testing.assert_allclose(walk(OPTIMIZERS[name], deltas), direct, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_that_is_repeated_gives_the_same_bits_and_leaves_what_it_was_given(name: str) -> None:
    optimizer, deltas = OPTIMIZERS[name], some_deltas(2)
    first = optimizer.step(begin(), deltas[0], {})
    kept = {key: vector.copy() for key, vector in first.state.items()}
    one, other = (optimizer.step(first.weights, deltas[1], first.state) for _ in range(2))
    assert one.weights.dtype == np.float32
    assert one.weights.tobytes() == other.weights.tobytes()
    assert set(first.state) == set(optimizer.keeps)
    for key, vector in kept.items():
        assert first.state[key].tobytes() == vector.tobytes()
        assert one.state[key].tobytes() == other.state[key].tobytes()
