"""The steps of the walk-through as routes: by GET, so that a browser can take them, and by POST; each tells what comes next.

They ask for no token, so services mount them only where they are told to, on one machine.
"""

import html
import re
from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict

from fedlearn.adapters.openapi import Responses, problems
from fedlearn.core.errors import Code, Refusal

_ADDRESS = re.compile(r"(https?://|/)[^\s<>,]*[^\s<>,.:;]")
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>fedlearn: {title}</title>
<style>body{{font:1.1rem/1.6 system-ui,sans-serif;max-width:44rem;margin:3rem auto;padding:0 1rem}}</style></head>
<body><h1>{title}</h1><p>{happened}</p><p><strong>Next:</strong> {next}</p></body></html>
"""


class Told(BaseModel):
    """What a step has done, and what comes next, in plain words; `figures` says it for programs."""

    model_config = ConfigDict(frozen=True)

    happened: str
    next: str
    figures: dict[str, str | int | float | None] = {}


def out_of_order(first: str) -> Refusal:
    """The refusal of a step that is not the next one; `first` is a sentence on what is."""
    return Refusal(Code.STEP_OUT_OF_ORDER, first)


def add_step(router: APIRouter, path: str, summary: str, take: Callable[[], Awaitable[Told]], *codes: Code) -> None:
    """Mount a step by GET and by POST: as plain text, for browsers as a page, with `Accept: application/json` as JSON."""

    async def step(request: Request) -> Response:
        if request.headers.get("sec-purpose", "").startswith("prefetch"):
            raise out_of_order("A browser that loads pages in advance takes no step: open the page itself.")
        return _render(await take(), path, request.headers.get("accept", ""))

    answers: Responses = {
        200: {"content": {"text/plain": {}, "text/html": {}, "application/json": {"schema": Told.model_json_schema()}}}
    }
    for method in ("GET", "POST"):
        router.add_api_route(
            path,
            step,
            methods=[method],
            summary=summary,
            response_class=Response,
            responses={**answers, **problems(Code.STEP_OUT_OF_ORDER, *codes)},
        )


def _render(told: Told, path: str, accept: str) -> Response:
    headers = {"Cache-Control": "no-store"}
    if "text/html" in accept:
        body = _PAGE.format(title=path.strip("/"), happened=html.escape(told.happened), next=_linked(told.next))
        return Response(body, headers=headers, media_type="text/html")
    if "application/json" in accept:
        return Response(told.model_dump_json(), headers=headers, media_type="application/json")
    return Response(f"{told.happened}\nNext: {told.next}\n", headers=headers, media_type="text/plain")


def _linked(text: str) -> str:
    return _ADDRESS.sub(lambda found: f'<a href="{found[0]}">{found[0]}</a>', html.escape(text))
