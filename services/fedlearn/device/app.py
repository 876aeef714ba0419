"""A process that hosts devices, put together from its settings; it serves health, readiness and metrics beside them."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI

from fedlearn.adapters.http import ServiceClient, TokenFile, spawn
from fedlearn.adapters.keyfiles import load_public_key
from fedlearn.adapters.web import listen, make_app, serve
from fedlearn.config import DeviceSettings
from fedlearn.core.errors import Code, Outage
from fedlearn.data.shards import label_counts, read_shard
from fedlearn.device.agent import Agent, Home
from fedlearn.device.learners import learner_factory
from fedlearn.device.peers import AggregatorClient, ServerClient
from fedlearn.device.walkthrough import Hand, ManualAgent, step_routes
from fedlearn.device.workshop import Workshop
from fedlearn.telemetry.logs import set_up_logs


def read_homes(settings: DeviceSettings, runtime: str) -> list[Home]:
    """The devices of this process, each with its shard.

    Raises:
        SetupError: `shard_invalid`.
    """
    places: list[tuple[int | None, Path]]
    if settings.count is None:
        places = [(None, settings.shards)]
    else:
        places = [(slot, settings.shards / str(settings.first_shard + slot)) for slot in range(settings.count)]
    return [_home(settings, slot, place, runtime) for slot, place in places]


def _home(settings: DeviceSettings, slot: int | None, place: Path, runtime: str) -> Home:
    shard = read_shard(place)
    labels = label_counts(shard.train) if settings.tells_labels else None
    return Home(slot, settings.dataset, shard, settings.seed, seed_name=place.name, runtime=runtime, labels=labels)


def build_app(settings: DeviceSettings) -> FastAPI:
    """The app of a device process; its agents run while it does."""
    make_learner, runtime = learner_factory(settings.learner)
    homes = read_homes(settings, runtime)
    server = ServiceClient(
        settings.server_url, "server", token=TokenFile(settings.server_token_file), unreachable=Code.SERVER_UNREACHABLE
    )
    aggregator = ServiceClient(
        settings.aggregator_url,
        "aggregator",
        token=TokenFile(settings.aggregator_token_file),
        unreachable=Code.AGGREGATOR_UNREACHABLE,
    )
    compute = ThreadPoolExecutor(1, thread_name_prefix="compute")
    workshop = Workshop(
        server=ServerClient(server),
        aggregator=AggregatorClient(aggregator),
        identity=load_public_key(settings.aggregator_identity_file),
        make_learner=make_learner,
        compute=compute,
    )
    hand = Hand(settings.aggregator_url) if settings.manual else None
    agents = [_agent(home, workshop, AggregatorClient(aggregator), settings.checkin_seconds, hand) for home in homes]

    async def ready() -> None:
        if not all(agent.connected for agent in agents):
            raise Outage(Code.SERVER_UNREACHABLE, "Not all devices of this process could check in last time.")

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        running: set[asyncio.Task[None]] = set()
        async with server, aggregator:
            for agent in agents:
                spawn(agent.run(), running)
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
    )
    if hand is not None:
        app.include_router(step_routes(hand))
    return app


def _agent(home: Home, workshop: Workshop, aggregator: AggregatorClient, checkin_seconds: float, hand: Hand | None) -> Agent:
    if hand is None:
        return Agent(home, workshop, aggregator, checkin_seconds)
    return ManualAgent(home, workshop, aggregator, checkin_seconds, hand=hand)


def main(settings: DeviceSettings) -> None:
    """Take part in rounds until SIGTERM.

    Raises:
        SetupError: `shard_invalid`, `port_busy`, `setting_invalid`, `service_failed`.
    """
    set_up_logs("device", settings.log_level)
    listener = listen(settings.host, settings.port)
    serve(build_app(settings), listener)
