"""Problems as answers."""

from fastapi import Response

from fedlearn.core.errors import Code, FedlearnError
from fedlearn.protocol.problems import MEDIA_TYPE, problem_of

_HEADERS = {
    Code.UNAUTHENTICATED: {"WWW-Authenticate": "Bearer"},
    Code.BUSY: {"Retry-After": "1"},
    Code.TOO_MANY_REQUESTS: {"Retry-After": "1"},
}


def problem_answer(error: FedlearnError, at_least: int = 0) -> Response:
    """The answer for an error.

    Args:
        at_least: the least status that it may have.
    """
    problem = problem_of(error)
    if problem.status < at_least:
        problem = problem.model_copy(update={"status": at_least})
    return Response(problem.model_dump_json(), problem.status, _HEADERS.get(error.code), MEDIA_TYPE)
