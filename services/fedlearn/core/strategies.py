"""Server optimizers: how the mean delta becomes the next model.

FedAvgM, FedAdagrad, FedAdam and FedYogi are those of Reddi et al. 2021, "Adaptive Federated Optimization", algorithm 2: the
mean delta stands in for a gradient. As there, moments are not corrected for their bias, and the second one begins at tau^2.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fedlearn.core.updates import Vector

Delta = npt.NDArray[np.float64]
State = Mapping[str, Vector]
"""The vectors that an optimizer keeps from round to round, by name; empty before its first step."""

_WINDOW = 1 << 16  # elements; what a step reads and writes of one window stays in the cache
_FIRST, _SECOND = "first_moment", "second_moment"


@dataclass(frozen=True, slots=True)
class Step:
    """What a step gives: the next weights, float32, and the state that the next step begins with."""

    weights: Vector
    state: State = field(default_factory=dict)


class ServerOptimizer(Protocol):
    keeps: tuple[str, ...]
    """The names of its state's vectors."""

    def step(self, weights: Vector, mean_delta: Delta, state: State) -> Step:
        """The next weights and state, of the same shape as `weights`; nothing that is given is changed.

        The same arguments give the same bits, so that a step that is repeated after a crash gives the same model.
        """
        ...


class FedAvg:
    """w_{t+1} = w_t + eta * mean delta; McMahan et al. 2017, algorithm 1, is eta = 1.

    Args:
        learning_rate: eta, the server's learning rate.
    """

    keeps: tuple[str, ...] = ()

    def __init__(self, learning_rate: float = 1.0) -> None:
        self.learning_rate = learning_rate

    def step(self, weights: Vector, mean_delta: Delta, state: State) -> Step:  # noqa: ARG002 - it keeps nothing
        moved = np.empty_like(weights)
        step = mean_delta if self.learning_rate == 1.0 else self.learning_rate * mean_delta
        # added in float64 and rounded once, without a float64 vector in between
        return Step(np.add(weights, step, out=moved, dtype=np.float64, casting="unsafe"))


class FedAvgM:
    """m_t = beta * m_{t-1} + mean delta;  w_{t+1} = w_t + eta * m_t.

    Hsu et al. 2019, "Measuring the Effects of Non-Identical Data Distribution", section 4.3; in Reddi et al. 2021 it is the
    server's SGD with momentum.

    Args:
        learning_rate: eta.
        momentum: beta, from 0 to below 1.
    """

    keeps: tuple[str, ...] = (_FIRST,)

    def __init__(self, learning_rate: float, momentum: float) -> None:
        self.learning_rate, self.momentum = learning_rate, momentum

    def step(self, weights: Vector, mean_delta: Delta, state: State) -> Step:
        moved, first = np.empty_like(weights), _begin(state, _FIRST, weights, 0.0)
        for part in _windows(len(weights)):
            first[part] = m = self.momentum * first[part].astype(np.float64) + mean_delta[part]
            moved[part] = weights[part] + self.learning_rate * m
        return Step(moved, {_FIRST: first})


class Adaptive(ABC):
    """m_t = beta_1 * m_{t-1} + (1 - beta_1) * mean delta;  w_{t+1} = w_t + eta * m_t / (sqrt(v_t) + tau).

    Reddi et al. 2021, algorithm 2; `_second` makes v_t of v_{t-1} and the squared mean delta, d_t^2.

    Args:
        learning_rate: eta.
        beta_1: how much of the first moment stays, from 0 to below 1.
        tau: how adaptive it is: the smaller, the more; v_{-1} = tau^2.
    """

    keeps: tuple[str, ...] = (_FIRST, _SECOND)

    def __init__(self, learning_rate: float, beta_1: float, tau: float) -> None:
        self.learning_rate, self.beta_1, self.tau = learning_rate, beta_1, tau

    def step(self, weights: Vector, mean_delta: Delta, state: State) -> Step:
        moved = np.empty_like(weights)
        first, second = _begin(state, _FIRST, weights, 0.0), _begin(state, _SECOND, weights, self.tau**2)
        for part in _windows(len(weights)):
            delta = mean_delta[part]
            first[part] = m = self.beta_1 * first[part].astype(np.float64) + (1 - self.beta_1) * delta
            second[part] = v = self._second(second[part].astype(np.float64), delta * delta)
            moved[part] = weights[part] + self.learning_rate * m / (np.sqrt(v) + self.tau)
        return Step(moved, {_FIRST: first, _SECOND: second})

    @abstractmethod
    def _second(self, v: Delta, square: Delta) -> Delta: ...


class FedAdagrad(Adaptive):
    """v_t = v_{t-1} + d_t^2; else as `Adaptive`, algorithm 2 of Reddi et al. 2021."""

    def _second(self, v: Delta, square: Delta) -> Delta:
        return v + square


class FedAdam(Adaptive):
    """v_t = beta_2 * v_{t-1} + (1 - beta_2) * d_t^2; else as `Adaptive`, algorithm 2 of Reddi et al. 2021.

    Args:
        beta_2: how much of the second moment stays, from 0 to below 1.
    """

    def __init__(self, learning_rate: float, beta_1: float, beta_2: float, tau: float) -> None:
        super().__init__(learning_rate, beta_1, tau)
        self.beta_2 = beta_2

    def _second(self, v: Delta, square: Delta) -> Delta:
        return self.beta_2 * v + (1 - self.beta_2) * square


class FedYogi(FedAdam):
    """v_t = v_{t-1} - (1 - beta_2) * d_t^2 * sign(v_{t-1} - d_t^2); else as `FedAdam`."""

    def _second(self, v: Delta, square: Delta) -> Delta:
        return v - (1 - self.beta_2) * square * np.sign(v - square)


def _begin(state: State, name: str, like: Vector, first: float) -> Vector:
    return state[name].copy() if state else np.full_like(like, first)


def _windows(length: int) -> list[slice]:
    return [slice(start, start + _WINDOW) for start in range(0, length, _WINDOW)]
