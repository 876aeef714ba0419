"""The secure aggregator, put together from its settings."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from fedlearn.adapters.gate import make_gate
from fedlearn.adapters.http import ServiceClient, TokenFile, get_json, spawn
from fedlearn.adapters.keyfiles import load_private_key
from fedlearn.adapters.listeners import listen
from fedlearn.adapters.objects import object_store
from fedlearn.adapters.web import make_app, serve
from fedlearn.aggregator.peers import ServerClient
from fedlearn.aggregator.rounds import Rounds
from fedlearn.aggregator.routes import device_routes, server_routes
from fedlearn.aggregator.walkthrough import ByHand, Walkthrough, step_routes
from fedlearn.config import AggregatorSettings
from fedlearn.core import kernels
from fedlearn.core.errors import Code
from fedlearn.protocol.tickets import TicketVerifier
from fedlearn.telemetry.logs import log, set_up_logs

_log = log(__name__)
AUDIENCE = "fedlearn-aggregator"


def build_app(settings: AggregatorSettings) -> FastAPI:
    """The aggregator's app; its rounds are recovered from storage when it starts."""
    client = ServiceClient(
        settings.server_url, "server", token=TokenFile(settings.server_token_file), unreachable=Code.SERVER_UNREACHABLE
    )
    server, hand = ServerClient(client), ByHand() if settings.manual else None
    rounds = Rounds(
        models=object_store(settings.storage, settings.storage.models_bucket),
        updates=object_store(settings.storage, settings.storage.updates_bucket),
        identity=load_private_key(settings.identity_key_file),
        server=server,
        min_cohort=settings.min_cohort,
        upload_seconds=settings.upload_seconds,
        workers=settings.workers,
        pace=hand,
        save_every=settings.save_every,
        shard=settings.number,
    )

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with client:
            recovery = spawn(rounds.recover(), set())
            yield
            recovery.cancel()
            await rounds.stop()

    app = make_app(
        "fedlearn aggregator",
        "Signs upload URLs, opens and folds updates, publishes models. It alone ever sees a device's update.",
        lifespan=lifespan,
        ready=rounds.ready,
        unready=Code.STORAGE_UNAVAILABLE,
        limits=settings.limits,
    )
    gate = make_gate(settings.identity, AUDIENCE, settings.limits)
    app.include_router(server_routes(rounds, gate, settings))
    app.include_router(
        device_routes(
            rounds,
            gate,
            TicketVerifier(lambda: get_json(f"{settings.server_url}/v1/keys", "server", Code.SERVER_UNREACHABLE)),
            settings,
        )
    )
    if hand is not None:
        app.include_router(step_routes(Walkthrough(rounds, hand, server, settings.server_url)))
    return app


def main(settings: AggregatorSettings) -> None:
    """Serve until SIGTERM.

    Raises:
        SetupError: `port_busy`, `setting_invalid`, `service_failed`.
    """
    set_up_logs("aggregator", settings.log_level)
    listener = listen(settings.host, settings.port)
    _log.info("updates are added", by="compiled loops" if kernels.compiled() else "numpy")
    serve(build_app(settings), listener)
