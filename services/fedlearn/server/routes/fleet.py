"""The fleet: who has checked in, and what the cluster knows of the devices' pods."""

from fastapi import APIRouter

from fedlearn.protocol.views import FleetView
from fedlearn.server.coordinator import Coordinator
from fedlearn.server.roster import Cluster, Roster
from fedlearn.server.views import fleet_view


def fleet_routes(coordinator: Coordinator, roster: Roster, cluster: Cluster) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["operators"])

    @router.get("/devices", summary="All devices: what they do, and where their pods are.")
    async def devices() -> FleetView:
        return fleet_view(coordinator, roster, cluster)

    return router
