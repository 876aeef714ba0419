"""Server optimizers: how the mean delta becomes the next model."""

from typing import Protocol

import numpy as np
import numpy.typing as npt

from fedlearn.core.updates import Vector


class ServerOptimizer(Protocol):
    def step(self, weights: Vector, mean_delta: npt.NDArray[np.float64]) -> Vector:
        """The next weights, float32, of the same shape as `weights`."""
        ...


class FedAvg:
    """w_{t+1} = w_t + eta * mean delta; McMahan et al. 2017 is eta = 1.

    Args:
        learning_rate: eta, the server's learning rate.
    """

    def __init__(self, learning_rate: float = 1.0) -> None:
        self.learning_rate = learning_rate

    def step(self, weights: Vector, mean_delta: npt.NDArray[np.float64]) -> Vector:
        moved = np.empty_like(weights)
        step = mean_delta if self.learning_rate == 1.0 else self.learning_rate * mean_delta
        # added in float64 and rounded once, without a float64 vector in between
        return np.add(weights, step, out=moved, dtype=np.float64, casting="unsafe")
