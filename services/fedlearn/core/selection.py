"""Who takes part: the choice of a cohort among the devices that wait, and when the others come back."""

from collections.abc import Collection

import numpy as np

from fedlearn.core.ids import DeviceId


def choose(waiting: Collection[DeviceId], size: int, rng: np.random.Generator) -> tuple[DeviceId, ...]:
    """Choose `size` of the `waiting` devices uniformly without replacement (McMahan et al. 2017, algorithm 1: S_t)."""
    ordered = sorted(waiting)
    if size >= len(ordered):
        return tuple(ordered)
    picks = rng.choice(len(ordered), size=size, replace=False)
    return tuple(ordered[i] for i in sorted(picks))
