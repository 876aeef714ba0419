"""The table of routes in docs/architecture.md: it is complete, and each route admits exactly whom the table names."""

import re
from collections.abc import Mapping
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from fedlearn.adapters.identity import LocalIssuer
from fedlearn.aggregator import app as aggregator
from fedlearn.config import AggregatorSettings, ServerSettings, load
from fedlearn.local.deployment import Addresses, Deployment
from fedlearn.server import app as server

PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"
_ROW = re.compile(r"^\| (?P<service>server|aggregator) \| `(?P<method>[A-Z]+) (?P<path>/v1/\S+)` \| (?P<who>[^|]+) \|")
Route = tuple[str, str, str]


def table() -> dict[Route, str]:
    rows = [match for line in PAGE.read_text().splitlines() if (match := _ROW.match(line))]
    return {(row["service"], row["method"], row["path"]): row["who"] for row in rows}


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    secrets = {"server": ("key", "secret"), "aggregator": ("key", "secret")}
    return Deployment(tmp_path_factory.mktemp("deployment"), Addresses(1, 2, 3), secrets)


@pytest.fixture(scope="module")
def apps(deployment: Deployment) -> Mapping[str, FastAPI]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**deployment.server(), **deployment.aggregator()}.items():
            patch.setenv(name, value)
        return {
            "server": server.build_app(load(ServerSettings)),
            "aggregator": aggregator.build_app(load(AggregatorSettings)),
        }


@pytest.fixture(scope="module")
def tokens(deployment: Deployment) -> Mapping[str, Mapping[str, str | None]]:
    """For each service: who may come, and with which token."""
    issuer: LocalIssuer = deployment.identities.prepare()
    roles = ("server", "aggregator", "device", "evaluator")

    def minted(service: str) -> dict[str, str | None]:
        return {role: issuer.mint(f"fedlearn-{role}", f"{role}-0", f"fedlearn-{service}", 600) for role in roles}

    common = {"operator": deployment.operator_token(), "nobody": None}
    return {service: {**minted(service), **common} for service in ("server", "aggregator")}


def test_the_table_has_every_route_and_none_besides(apps: Mapping[str, FastAPI]) -> None:
    found = {
        (service, method.upper(), path)
        for service, app in apps.items()
        for path, operations in app.openapi()["paths"].items()
        for method in operations
        if path.startswith("/v1/")
    }
    assert found == set(table())


@pytest.mark.parametrize(
    ("route", "who"), table().items(), ids=lambda value: value if isinstance(value, str) else " ".join(value)
)
async def test_a_route_admits_whom_the_table_names(
    route: Route, who: str, apps: Mapping[str, FastAPI], tokens: Mapping[str, Mapping[str, str | None]]
) -> None:
    service, method, path = route
    # a round 0 and a task of this name are refused before anything is done, but after the caller has been checked
    address = path.format(task="-", number=0, version=-1, digest="-", label="-")
    if path == "/v1/stream":
        address += f"?after={'-' * 101}"  # too long, and refused: what it answers has no end
    allowed = set(tokens[service]) if who == "anybody" else {name for name in tokens[service] if name in who}
    admitted: set[str] = set()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(apps[service]), base_url="http://service") as client:
        for name, token in tokens[service].items():
            headers = {} if token is None else {"Authorization": f"Bearer {token}"}
            answer = await client.request(method, address, headers=headers)
            if answer.status_code not in (401, 403):
                admitted.add(name)
    assert admitted == allowed
