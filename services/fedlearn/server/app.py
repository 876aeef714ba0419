"""The server, put together from its settings."""

import asyncio
import secrets
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import numpy as np
from fastapi import Depends, FastAPI

from fedlearn.adapters.database import AdvisoryLock, DatabaseRoundStore
from fedlearn.adapters.garbage import seldom_full_collections
from fedlearn.adapters.gate import make_gate
from fedlearn.adapters.http import ServiceClient, TokenFile
from fedlearn.adapters.listeners import listen
from fedlearn.adapters.objects import object_store
from fedlearn.adapters.web import make_app, serve
from fedlearn.config import ClusterSettings, ServerSettings, addresses
from fedlearn.core.errors import Code
from fedlearn.core.replicas import LeaderLock
from fedlearn.core.selection import Pace
from fedlearn.protocol.tickets import TicketSigner, make_signing_key
from fedlearn.server.console.feed import Feed, Gathered
from fedlearn.server.console.overview import Console
from fedlearn.server.coordinator import Coordinator
from fedlearn.server.fleet import Fleet
from fedlearn.server.forwarding import Answered, give_back
from fedlearn.server.peers import AggregatorClient
from fedlearn.server.replica import Replica
from fedlearn.server.roster import Cluster, NoCluster, Roster
from fedlearn.server.routes.aggregator import aggregator_routes
from fedlearn.server.routes.console import console_routes, page_routes
from fedlearn.server.routes.devices import device_routes
from fedlearn.server.routes.evaluator import evaluator_routes
from fedlearn.server.routes.fleet import fleet_routes
from fedlearn.server.routes.operators import operator_routes
from fedlearn.server.scrape import show_fleet
from fedlearn.server.surroundings import Surroundings
from fedlearn.server.walkthrough import Held, Walkthrough, step_routes
from fedlearn.telemetry.logs import set_up_logs

AUDIENCE = "fedlearn-server"


def build_app(settings: ServerSettings, address: str = "") -> FastAPI:
    """The server's app; its database is migrated here, its rounds go on when the app starts.

    Args:
        address: how other replicas reach this one.
    """
    store = DatabaseRoundStore(settings.database_url)
    store.migrate()
    pass_ = TokenFile(settings.aggregator_token_file)
    aggregators = [
        ServiceClient(url, "aggregator", token=pass_, unreachable=Code.AGGREGATOR_UNREACHABLE)
        for url in addresses(settings.aggregator_url)
    ]
    cluster = _join(settings.cluster)
    roster = Roster(time.time, cluster)
    around = Surroundings(
        store=store,
        models=object_store(settings.storage, settings.storage.models_bucket),
        fleet=Fleet(is_leaving=roster.is_leaving),
        aggregator=AggregatorClient(*aggregators),
        signer=TicketSigner(*store.signing_key(make_signing_key, time.time())),
        clock=time.time,
        rng=np.random.default_rng(),
        ticket_grace_seconds=settings.ticket_grace_seconds,
        pace=Pace(checkins_per_second=settings.max_checkins_per_second, longest_seconds=settings.max_away_seconds),
        listeners=(cluster,),
    )
    coordinator = Coordinator(around)
    replica = None
    if not store.database.is_sqlite:
        replica = _join_replicas(coordinator, store, roster, settings, address)
    console = Console(coordinator, roster, cluster, shows_labels=settings.show_labels)
    _connect(around.feed, console, roster)

    def fleet_changed() -> None:
        around.fleet.on_change()
        around.feed.fleet()

    def let_go() -> None:
        coordinator.let_go()
        around.feed.close()

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as clients, seldom_full_collections():
            for client in aggregators:
                await clients.enter_async_context(client)
            cluster.start(fleet_changed)
            await (coordinator if replica is None else replica).start()
            yield
            await (coordinator if replica is None else replica).stop()
            await asyncio.to_thread(cluster.stop)

    async def ready() -> None:
        await coordinator.ready()
        if replica is not None:
            replica.check()

    app = make_app(
        "fedlearn server",
        "Runs the rounds: tasks, fleet, model versions. It never sees a device's update.",
        lifespan=lifespan,
        ready=ready,
        unready=Code.DATABASE_UNAVAILABLE,
        on_stop=let_go,
        limits=settings.limits,
        on_scrape=lambda: show_fleet(coordinator, roster, cluster),
    )
    if replica is not None:
        app.state.forwarder = replica.forwarder
        app.add_exception_handler(Answered, give_back)
    gate = make_gate(settings.identity, AUDIENCE, settings.limits)
    app.include_router(device_routes(coordinator, roster, gate, settings))
    held = Held(coordinator) if settings.manual else None
    app.include_router(aggregator_routes(coordinator, gate, settings, held))
    app.include_router(evaluator_routes(coordinator, gate, settings))
    by_address = [Depends(gate.rates.by_address)]
    app.include_router(fleet_routes(coordinator, roster, cluster), dependencies=by_address)
    token = TokenFile(settings.operator_token_file)
    app.include_router(operator_routes(coordinator, token, gate.rates), dependencies=by_address)
    if held is not None:
        app.include_router(step_routes(Walkthrough(coordinator, held)))
    app.include_router(console_routes(console, around.feed, store, token, gate.rates), dependencies=by_address)
    app.include_router(page_routes())
    return app


def _connect(feed: Feed, console: Console, roster: Roster) -> None:
    """Let pages hear of what changes."""

    async def overview() -> str:
        return (await console.overview()).model_dump_json(exclude_none=True)

    async def changes(gathered: Gathered) -> str:
        return (await console.changes(gathered)).model_dump_json(exclude_none=True)

    feed.overview, feed.changes = overview, changes
    roster.on_visit = feed.device


def _join_replicas(
    coordinator: Coordinator, store: DatabaseRoundStore, roster: Roster, settings: ServerSettings, address: str
) -> Replica:
    """Make this server one of those on its database."""
    given, cluster = settings.replica, settings.cluster
    lock: LeaderLock
    if given.lease is None:
        name = f"{socket.gethostname()}-{secrets.token_hex(4)}"
        lock = AdvisoryLock(store.database, given.lease_seconds)
    else:
        from fedlearn.adapters.kubernetes.connection import connect  # noqa: PLC0415 - one machine does without the client
        from fedlearn.adapters.kubernetes.lease import LeaseLock  # noqa: PLC0415

        # a container that starts again in its pod is another holder: its predecessor's lease is not its own
        name = f"{cluster.pod_name}-{secrets.token_hex(4)}"
        lock = LeaseLock(connect().api, cluster.namespace, given.lease, name, lease_seconds=given.lease_seconds)
    return Replica(coordinator, store, lock, roster, name=name, address=(given.address or address).rstrip("/"))


def _own_address(settings: ServerSettings, port: int) -> str:
    host = socket.gethostname() if settings.host == "0.0.0.0" else settings.host  # noqa: S104 - a comparison
    return f"http://{host}:{port}"


def _join(settings: ClusterSettings) -> Cluster:
    if not settings.enabled:
        return NoCluster()
    from fedlearn.server.cluster import KubernetesCluster  # noqa: PLC0415 - one machine does without the client

    return KubernetesCluster(settings)


def main(settings: ServerSettings) -> None:
    """Serve until SIGTERM.

    Raises:
        SetupError: `port_busy`, `setting_invalid`, `service_failed`.
    """
    set_up_logs("server", settings.log_level)
    listener = listen(settings.host, settings.port)
    serve(build_app(settings, _own_address(settings, listener.getsockname()[1])), listener)
