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
        return (weights + self.learning_rate * mean_delta).astype(np.float32)
