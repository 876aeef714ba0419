"""A process that hosts devices, put together from its settings; it serves health, readiness and metrics beside them."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager

from fastapi import FastAPI

from fedlearn.adapters.http import ServiceClient, TokenFile, spawn
from fedlearn.adapters.keyfiles import load_public_key
from fedlearn.adapters.listeners import listen
from fedlearn.adapters.web import make_app, serve
from fedlearn.config import DeviceSettings, addresses
from fedlearn.core.errors import Code
from fedlearn.device.agent import Agent, Home
from fedlearn.device.conditions import Probe
from fedlearn.device.learners import learner_factory
from fedlearn.device.peers import AggregatorClient, ServerClient
from fedlearn.device.residents import Resident, check_readiness, homes_of
from fedlearn.device.walkthrough import Hand, ManualAgent, step_routes
from fedlearn.device.workshop import Workshop
from fedlearn.telemetry.logs import set_up_logs


def build_app(settings: DeviceSettings) -> FastAPI:
    """The app of a device process; its agents run while it does."""
    make_learner, runtime = learner_factory(settings.learner, settings.synthetic_seconds)
    server = ServiceClient(
        settings.server_url, "server", token=TokenFile(settings.server_token_file), unreachable=Code.SERVER_UNREACHABLE
    )
    token = TokenFile(settings.aggregator_token_file)
    aggregators = [
        ServiceClient(url, "aggregator", token=token, unreachable=Code.AGGREGATOR_UNREACHABLE)
        for url in addresses(settings.aggregator_url)
    ]
    compute = ThreadPoolExecutor(1, thread_name_prefix="compute")
    workshop = Workshop(
        server=ServerClient(server),
        aggregator=AggregatorClient(*aggregators),
        identity=load_public_key(settings.aggregator_identity_file),
        make_learner=make_learner,
        compute=compute,
    )
    hand = Hand(settings.aggregator_url) if settings.manual else None
    seconds, probe = settings.checkin_seconds, Probe(settings.conditions_file)

    def settle(home: Home) -> Agent:
        aggregator = AggregatorClient(*aggregators)
        if hand is None:
            return Agent(home, workshop, aggregator, seconds, probe)
        return ManualAgent(home, workshop, aggregator, seconds, hand=hand)

    residents = [
        Resident(slot, read, settle, workshop.server, dataset=settings.dataset, runtime=runtime)
        for slot, read in homes_of(settings, runtime)
    ]

    async def ready() -> None:
        check_readiness(residents)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        running: set[asyncio.Task[None]] = set()
        async with AsyncExitStack() as clients:
            for client in (server, *aggregators):
                await clients.enter_async_context(client)
            for resident in residents:
                spawn(resident.run(), running)
            yield
            stopping = list(running)
            for task in stopping:
                task.cancel()
            await asyncio.gather(*stopping, return_exceptions=True)
        compute.shutdown(wait=False, cancel_futures=True)

    app = make_app(
        "fedlearn device",
        "Hosts devices: trains on shards that never leave them.",
        lifespan=lifespan,
        ready=ready,
        unready=Code.SERVER_UNREACHABLE,
        limits=settings.limits,
    )
    if hand is not None:
        app.include_router(step_routes(hand))
    return app


def main(settings: DeviceSettings) -> None:
    """Take part in rounds until SIGTERM.

    Raises:
        SetupError: `port_busy`, `setting_invalid`, `service_failed`.
    """
    set_up_logs("device", settings.log_level)
    listener = listen(settings.host, settings.port)
    serve(build_app(settings), listener)
