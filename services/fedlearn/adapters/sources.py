"""An object's bytes piece by piece, where all of them are in memory already."""

from fedlearn.core.errors import Code, Outage


class Held:
    """See `core.ports.Source`."""

    def __init__(self, body: bytes) -> None:
        self.size = len(body)
        self._left = memoryview(body)

    def fill(self, out: memoryview) -> None:
        if len(out) > len(self._left):
            raise Outage(Code.STORAGE_UNAVAILABLE, f"The object ends {len(out) - len(self._left)} bytes too early.")
        out[:], self._left = self._left[: len(out)], self._left[len(out) :]
