"""Kubernetes, by its own Python client: nothing outside of this package imports that.

Import it only where a cluster is used: it takes a fifth of a second and 11 MB, and one machine does without the client.

Raises:
    SetupError: on import, `setting_invalid` when the client is not installed.
"""

from fedlearn.core.errors import Code, SetupError

try:
    import kubernetes  # noqa: F401 - to say so here when it is missing
except ModuleNotFoundError as error:
    missing = "A cluster needs Kubernetes' Python client: install fedlearn[kubernetes]."
    raise SetupError(Code.SETTING_INVALID, missing) from error
