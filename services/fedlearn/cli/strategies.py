"""The options by which a task names its strategy; docs/strategies.md lists what each takes."""

from typing import Annotated

import typer

from fedlearn.protocol.aggregations import Aggregation
from fedlearn.protocol.views import Policy

StrategyOption = Annotated[str, typer.Option("--strategy", help="fedavg, fedavgm, fedadagrad, fedadam or fedyogi.")]
RobustOption = Annotated[
    str | None,
    typer.Option(
        "--robust",
        help="median, trimmed_mean, multi_krum, geometric_median or norm_bound (krum: only where min_cohort is 1, so not "
        "here). Default: the weighted mean.",
        show_default=False,
    ),
]
StrategyOptions = Annotated[
    list[str] | None,
    typer.Option("--strategy-option", help="name=value, of the strategy or the rule; may be repeated.", show_default=False),
]
ProximalOption = Annotated[float, typer.Option("--proximal-mu", help="FedProx: holds devices near the global model. 0: off.")]


def min_fraction_for(aggregation: Aggregation, devices: int) -> float:
    """A policy's usual `min_fraction`, or a larger one if so many devices' rounds could close with too few for the rule."""
    return min(1.0, max(Policy().min_fraction, aggregation.least_reports / devices))
