"""The server optimizer's state as a file: safetensors, one float32 vector for each moment.

It lies under a key that carries its digest, and the model file that it belongs to names that digest. So whoever knows a model
by its digest knows the state by its own, and no crash between the two can mix them up.
"""

from collections.abc import Mapping

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fedlearn.core.errors import Code, Refusal
from fedlearn.core.updates import Vector
from fedlearn.protocol.plans import Plan


def encode_state(state: Mapping[str, Vector]) -> bytes:
    """The same state gives the same bytes."""
    return save(dict(state))


def decode_state(body: bytes, plan: Plan, names: tuple[str, ...]) -> dict[str, Vector]:
    """The state's vectors, shape (plan.parameters,) each.

    Raises:
        Refusal: `model_mismatch` when the file is no safetensors, or holds other vectors than these.
    """
    try:
        state = load(body)
    except SafetensorError as error:
        raise Refusal(Code.MODEL_MISMATCH, f"The server optimizer's state is no safetensors file: {error}.") from error
    fits = all(vector.shape == (plan.parameters,) and vector.dtype == np.float32 for vector in state.values())
    if set(state) != set(names) or not fits:
        raise Refusal(Code.MODEL_MISMATCH, f"The server optimizer's state is not {' and '.join(names)} of this plan.")
    return state
