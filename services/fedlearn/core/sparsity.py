"""What a device sends of a delta when it sends only the largest values, and what it keeps for later.

Error feedback: Stich et al. 2018, algorithm 1. Whatever is not sent, by choice or by rounding, is added to the next delta.
"""

import numpy as np

from fedlearn.core.errors import Code, Refusal
from fedlearn.core.updates import Vector


def split(delta: Vector, keep: int) -> Vector:
    """Take the `keep` values of the largest magnitude out of `delta`, which is left with what is not sent.

    Args:
        delta: float32, changed in place: afterwards it is `delta` before minus what is returned.
        keep: at least 1; of equal magnitudes the first ones go.

    Returns:
        A new vector of the same shape, 0 wherever nothing is sent, the rest rounded to float16. A value beyond float16 is cut
        to its largest number, and what is cut off stays.

    Raises:
        Refusal: `update_not_finite`, before anything is changed: a NaN would stay in all later rounds.
    """
    if not np.isfinite(delta).all():
        raise Refusal(Code.UPDATE_NOT_FINITE, "The delta holds NaN or infinity.")
    sent = np.zeros_like(delta)
    places = _largest(delta, keep)
    largest = float(np.finfo(np.float16).max)
    sent[places] = np.clip(delta[places], -largest, largest).astype(np.float16)
    delta[places] -= sent[places]
    return sent


def _largest(delta: Vector, keep: int) -> np.ndarray:
    """Where the `keep` largest magnitudes are, in order."""
    if keep >= len(delta):
        return np.arange(len(delta))
    magnitudes = np.abs(delta)
    magnitudes.partition(len(delta) - keep)
    threshold = magnitudes[len(delta) - keep]
    np.abs(delta, out=magnitudes)
    above = np.flatnonzero(magnitudes > threshold)
    equal = np.flatnonzero(magnitudes == threshold)[: keep - len(above)]
    return np.sort(np.concatenate((above, equal)))
