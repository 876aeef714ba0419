"""All metrics of fedlearn, declared in this package and nowhere else: `fedlearn_<noun>_<what>_<unit>`.

A process shows the modules that it imports: its role's, and those of what it stands on. Label values are enums and exist from
the start, so that a rate over them is never absent. No label grows without bound: none names a round or a device, and only
`fedlearn_task_…` name a task (see `tasks`).
"""

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, Gauge, generate_latest

from fedlearn import __version__

BUILD = Gauge("fedlearn_build_info", "1, with the version as a label.", ["version"])
BUILD.labels(__version__).set(1)


def render() -> tuple[bytes, str]:
    """The body and the content type of `/metrics`."""
    return generate_latest(REGISTRY), CONTENT_TYPE_LATEST
