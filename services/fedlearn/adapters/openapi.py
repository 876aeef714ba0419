"""What `/docs` and `/openapi.json` say of problems: each route's codes by status, each with an example."""

from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI

from fedlearn.core.errors import Code, Refusal
from fedlearn.protocol.problems import CATALOGUE, MEDIA_TYPE, Problem, problem_of

BY_TOKEN = (Code.UNAUTHENTICATED, Code.FORBIDDEN, Code.IDENTITY_UNAVAILABLE)
"""What every route gives that a service account may call."""

BY_OPERATOR = (Code.UNAUTHENTICATED, Code.SETTING_INVALID)
"""What every route gives that only an operator may call."""

EVERYWHERE = (Code.BAD_REQUEST, Code.BODY_TOO_LARGE, Code.TOO_MANY_REQUESTS, Code.BUSY, Code.INTERNAL)

Responses = dict[int | str, dict[str, Any]]


def problems(*codes: Code) -> Responses:
    """The OpenAPI answers of a route that may refuse with these codes."""
    answers: Responses = {}
    for code in codes:
        _add(answers, CATALOGUE[code].status, code)
    return answers


def _add(answers: dict[Any, Any], status: int | str, code: Code) -> None:
    known = answers.setdefault(status, {"description": "", "content": {MEDIA_TYPE: {}}})
    content = known["content"][MEDIA_TYPE]
    content["schema"] = {"$ref": "#/components/schemas/Problem"}
    examples = content.setdefault("examples", {})
    if code not in examples:
        example = problem_of(Refusal(code, "One sentence about this very case."))
        examples[code.value] = {"summary": CATALOGUE[code].title, "value": example.model_dump(mode="json")}
        known["description"] = "; ".join(f"`{name}`" for name in examples)


class DocumentedApp(FastAPI):
    """A FastAPI app whose document names the problems that any of its routes may give.

    Args:
        common: codes that every route under `/v1` gives beside `EVERYWHERE` and its own.
    """

    def __init__(self, *, common: Iterable[Code] = (), **settings: Any) -> None:
        self._common = (*EVERYWHERE, *common)
        # statuses only: without one for 422, FastAPI would claim an answer of its own
        super().__init__(responses=problems(*EVERYWHERE), **settings)

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            document = super().openapi()
            problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            schemas.update({**problem.pop("$defs"), "Problem": problem})
            for path, operations in document["paths"].items():
                for operation in operations.values():
                    self._complete(path, operation["responses"])
        assert self.openapi_schema is not None
        return self.openapi_schema

    def _complete(self, path: str, answers: dict[str, Any]) -> None:
        for code in self._common if path.startswith("/v1/") else ():
            _add(answers, str(CATALOGUE[code].status), code)
