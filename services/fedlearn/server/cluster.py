"""Kubernetes around the server: the devices' pods as it sees them, and the end of each round as one of its Events.

Import it only where the settings say that there is a cluster.
"""

import asyncio
from collections.abc import Callable, Mapping

from fedlearn.adapters.kubernetes.connection import connect
from fedlearn.adapters.kubernetes.events import EventRecorder, Happening
from fedlearn.adapters.kubernetes.pods import PodWatch
from fedlearn.config import ClusterSettings
from fedlearn.core.pods import Pod
from fedlearn.core.rounds import Phase, Round, Standing
from fedlearn.protocol.problems import CATALOGUE
from fedlearn.server.roster import Sight


class KubernetesCluster:
    """See `roster.Cluster`. Rounds go on in the same way while the cluster does not answer.

    Raises:
        SetupError: `setting_invalid` when there is no way to a cluster.
    """

    def __init__(self, settings: ClusterSettings) -> None:
        self._settings, self._connection = settings, connect()
        own_pod = settings.pod_name or "", settings.pod_uid or ""
        self._events = EventRecorder(self._connection.api, settings.namespace, own_pod, settings.statefulset)
        self._watch: PodWatch | None = None
        self.sight: Sight = "unavailable"
        self.pods: Mapping[str, Pod] = {}

    def start(self, on_change: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()

        def take() -> None:
            self.pods, self.sight = watch.pods, "watching" if watch.watching else "unavailable"
            on_change()

        def changed() -> None:
            loop.call_soon_threadsafe(take)  # a runner counts devices twice in one step, and wants the same ones

        settings = self._settings
        self._watch = watch = PodWatch(self._connection.api, settings.namespace, settings.device_selector, changed)
        watch.start()
        self._events.start()

    def stop(self) -> None:
        if self._watch is not None:
            self._watch.stop()
            self._events.stop()
        self._connection.close()

    def ended(self, round_: Round) -> None:
        self._events.record(happening(round_, self._settings.statefulset))


def happening(round_: Round, prefix: str) -> Happening:
    """How a round has ended, as an Event whose name nothing else of the namespace has that begins with `prefix`."""
    selected, reported = len(round_.participants), round_.count(Standing.REPORTED)
    devices = f"{reported} of {selected} devices reported" if selected else "no device was selected"
    seconds = f"{round_.phase_since - round_.opened_at:.1f} s"
    committed = round_.phase is Phase.COMMITTED
    if committed and round_.aggregate is not None:
        new = round_.aggregate
        accuracy = f", accuracy {new.metrics['accuracy']:.1%} on their hold-outs before it" if "accuracy" in new.metrics else ""
        note = f"committed version {new.model.version}: {devices}, {new.examples:,} examples{accuracy}, {seconds}."
    else:
        why = "" if round_.reason is None else f" {CATALOGUE[round_.reason].title} [{round_.reason}]"
        note = f"abandoned after {seconds}: {devices}.{why}"
    return Happening(
        # a task of this name may have had this round before, in an installation that is gone
        name=f"{prefix}.{round_.id.task}.{round_.id.number}.{int(round_.opened_at * 1000):x}",
        reason="RoundCommitted" if committed else "RoundAbandoned",
        action="Commit" if committed else "Abandon",
        note=f"{round_.id.task} round {round_.id.number} {note}",
        at=round_.phase_since,
        warning=not committed,
    )
