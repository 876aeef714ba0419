"""Who holds what: how many examples of each class every device has."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Holdings:
    """Examples by device and class.

    Args:
        devices: their names, in order.
        classes: the class numbers, ascending; none where labels are no class numbers.
        counts: shape (devices, classes), or (devices, 1) where there are no classes.
    """

    devices: tuple[str, ...]
    classes: tuple[int, ...]
    counts: npt.NDArray[np.intp]

    @property
    def totals(self) -> npt.NDArray[np.intp]:
        """Examples by device."""
        totals: npt.NDArray[np.intp] = self.counts.sum(axis=1)
        return totals


def holdings_of(labels: Mapping[str, npt.NDArray[Any]]) -> Holdings:
    """Count the labels of each device, by its name."""
    numbered = all(array.ndim == 1 and np.issubdtype(array.dtype, np.integer) for array in labels.values())
    if not numbered:
        return Holdings(tuple(labels), (), np.array([[len(array)] for array in labels.values()], dtype=np.intp))
    classes = np.unique(np.concatenate(list(labels.values()))) if labels else np.array([], dtype=np.intp)
    counts = np.zeros((len(labels), len(classes)), dtype=np.intp)
    for row, array in enumerate(labels.values()):
        found, times = np.unique(array, return_counts=True)
        counts[row, np.searchsorted(classes, found)] = times
    return Holdings(tuple(labels), tuple(int(label) for label in classes), counts)
