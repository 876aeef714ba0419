"""A Kubernetes API that keeps Leases as a real one does: a write of an older revision is refused."""

import itertools
from pathlib import Path
from typing import Any

from support.played_api import Answer, Asked, PlayedApi, failure


class LeaseApi(PlayedApi):
    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.leases: dict[str, Any] = {}
        self.available = True
        self._revisions = itertools.count(1)

    def take(self, asked: Asked) -> Answer:
        with self.changed:
            self.asked.append(asked)
            if not self.available:
                return failure(503, "not now")
            name = asked.body["metadata"]["name"] if asked.body else asked.path.rpartition("/")[2]
            stored = self.leases.get(name)
            if asked.method == "GET":
                return failure(404, "no such lease") if stored is None else Answer(200, stored)
            if asked.method == "POST" and stored is not None:
                return failure(409, "it exists already")
            if asked.method == "PUT":
                if stored is None:
                    return failure(404, "no such lease")
                if asked.body["metadata"]["resourceVersion"] != stored["metadata"]["resourceVersion"]:
                    return failure(409, "it has been changed")
            metadata = {**asked.body["metadata"], "resourceVersion": str(next(self._revisions))}
            self.leases[name] = {**asked.body, "metadata": metadata}
            return Answer(200, self.leases[name])
