"""The server optimizer's state as a file: safetensors, one float32 vector for each moment.

It lies under a key that carries its digest, and the model file that it belongs to names that digest. So whoever knows a model
by its digest knows the state by its own, and no crash between the two can mix them up.
"""

import json
import struct
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from fedlearn.core.errors import Code, Refusal
from fedlearn.core.updates import Vector
from fedlearn.protocol.plans import Plan

_LENGTH = struct.Struct("<Q")  # what a safetensors file begins with: the length of its JSON header


class StateFile:
    """A state file whose vectors are read and written where they lie, so that the next state may take the place of the last.

    Args:
        names: the vectors', of which there is one at least.
    """

    def __init__(self, plan: Plan, names: tuple[str, ...]) -> None:
        size = 4 * plan.parameters
        spans = {name: [size * number, size * (number + 1)] for number, name in enumerate(sorted(names))}
        entries = {name: {"dtype": "F32", "shape": [plan.parameters], "data_offsets": span} for name, span in spans.items()}
        header = json.dumps(entries, separators=(",", ":")).encode()  # as safetensors' own `save` writes it
        header = header.ljust(-(-len(header) // 8) * 8)
        self._header = _LENGTH.pack(len(header)) + header
        start = len(self._header)
        memory: npt.NDArray[np.uint8] = np.empty(start + size * len(names), np.uint8)
        self.memory = memory.data
        """All of the file, to be read to from storage."""
        self.vectors: dict[str, Vector] = {
            name: memory[start + begin : start + end].view("<f4") for name, (begin, end) in spans.items()
        }
        """By name, shape (plan.parameters,) each, in that memory."""

    def read(self) -> Mapping[str, Vector]:
        """The vectors of a file that was read to `memory`.

        Raises:
            Refusal: `model_mismatch` when the file is no safetensors, or holds other vectors than these.
        """
        if self.memory[: len(self._header)] != self._header:
            raise Refusal(
                Code.MODEL_MISMATCH, f"The server optimizer's state is not {' and '.join(self.vectors)} of this plan."
            )
        return self.vectors

    def write(self, part: slice, state: Mapping[str, Vector]) -> None:
        """Write these coordinates of all vectors."""
        for name, vector in self.vectors.items():
            vector[part] = state[name]

    def finish(self) -> memoryview:
        """The file; the same vectors give the same bytes."""
        self.memory[: len(self._header)] = self._header
        return self.memory.toreadonly()
