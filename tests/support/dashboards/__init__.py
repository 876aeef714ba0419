"""The three dashboards, as Grafana's own types; `python tests/support/write_dashboards.py` writes them into the chart."""

from support.dashboards.fleet import fleet
from support.dashboards.services import services
from support.dashboards.training import training

DASHBOARDS = {"training": training, "fleet": fleet, "services": services}

__all__ = ["DASHBOARDS"]
