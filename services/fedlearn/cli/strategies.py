"""The options by which a task names its strategy; docs/strategies.md lists what each takes."""

from typing import Annotated

import typer

StrategyOption = Annotated[str, typer.Option("--strategy", help="fedavg, fedavgm, fedadagrad, fedadam or fedyogi.")]
RobustOption = Annotated[
    str | None,
    typer.Option(
        "--robust",
        help="median, trimmed_mean, krum, multi_krum, geometric_median or norm_bound. Default: the weighted mean.",
        show_default=False,
    ),
]
StrategyOptions = Annotated[
    list[str] | None,
    typer.Option("--strategy-option", help="name=value, of the strategy or the rule; may be repeated.", show_default=False),
]
ProximalOption = Annotated[float, typer.Option("--proximal-mu", help="FedProx: holds devices near the global model. 0: off.")]
