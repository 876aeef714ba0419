"""The plan's `aggregation`: by which rule the updates of a round become one delta, and by which strategy that delta a model.

Each strategy and each rule has fields of its own, so that an option of another one is refused like any unknown field.
docs/strategies.md is the table of all, with their sources.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from fedlearn.core.errors import Code, Refusal
from fedlearn.core.faults import describe
from fedlearn.core.policy import RoundPolicy
from fedlearn.protocol.messages import MAX_DEVICES_A_ROUND

Decay = Annotated[float, Field(ge=0, lt=1)]
LearningRate = Annotated[float, Field(gt=0, le=100)]
Tau = Annotated[float, Field(ge=1e-12, le=1)]  # its square is where v begins, which is kept in float32

MOST_BY_DISTANCE = 4096
"""Updates that a rule can take whose memory grows with their square: 8 bytes for each pair, 128 MiB in all."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


# --- rules: how many updates become one


class _Rule(Strict):
    @property
    def least_reports(self) -> int:
        """With fewer updates the rule says nothing, and the round has no result."""
        return 1

    @property
    def most_reports(self) -> int | None:
        """Of more updates the rule would need more memory than it may have; None if their number doesn't matter."""
        return None

    def mixed(self, reports: int) -> int:
        """How many devices' updates are mixed in the result of so many."""
        return reports


class _ByDistance(_Rule):
    """What looks at the distance of each two updates."""

    @property
    def most_reports(self) -> int | None:
        return MOST_BY_DISTANCE


class MedianPlan(_Rule):
    name: Literal["median"]


class TrimmedMeanPlan(_Rule):
    name: Literal["trimmed_mean"]
    trim_fraction: Annotated[float, Field(ge=1 / MAX_DEVICES_A_ROUND, lt=0.5)] = 0.2

    @property
    def least_reports(self) -> int:
        """With fewer, not one would be trimmed."""
        return math.ceil(1 / self.trim_fraction)


class _Krum(_ByDistance):
    byzantine: Annotated[int, Field(ge=0, le=10_000)] = 1

    @property
    def least_reports(self) -> int:
        return 2 * self.byzantine + 3


class KrumPlan(_Krum):
    name: Literal["krum"]

    def mixed(self, reports: int) -> int:  # noqa: ARG002 - of any number it takes one
        return 1


class MultiKrumPlan(_Krum):
    name: Literal["multi_krum"]
    keep: Annotated[int | None, Field(ge=2, le=1_000_000)] = None

    @property
    def least_reports(self) -> int:
        return max(2 * self.byzantine + 3, self.byzantine + (self.keep or 0))

    def mixed(self, reports: int) -> int:
        return self.keep or reports - self.byzantine


class GeometricMedianPlan(_ByDistance):
    name: Literal["geometric_median"]
    smoothing: Annotated[float, Field(ge=1e-12, le=1)] = 1e-6
    iterations: Annotated[int, Field(ge=1, le=10_000)] = 100
    weighted: bool = False


class NormBoundPlan(_Rule):
    name: Literal["norm_bound"]
    max_norm: Annotated[float | None, Field(gt=0, le=1e9)] = None
    weighted: bool = False


Rule = Annotated[
    MedianPlan | TrimmedMeanPlan | KrumPlan | MultiKrumPlan | GeometricMedianPlan | NormBoundPlan, Field(discriminator="name")
]

# --- strategies: how one delta becomes a model


class _Strategy(Strict):
    # None is the weighted mean; it is left out of the plan, so that such a plan has the digest that it always had
    rule: Annotated[Rule | None, Field(exclude_if=lambda rule: rule is None)] = None

    @property
    def least_reports(self) -> int:
        return 1 if self.rule is None else self.rule.least_reports

    @property
    def most_reports(self) -> int | None:
        """Of more updates the rule gives no result; None if there is no such number."""
        return None if self.rule is None else self.rule.most_reports

    def mixed(self, reports: int) -> int:
        """How many devices' updates are mixed in the result of so many."""
        return reports if self.rule is None else self.rule.mixed(reports)


class FedAvgPlan(_Strategy):
    strategy: Literal["fedavg"] = "fedavg"
    server_learning_rate: LearningRate = 1.0


class FedAvgMPlan(_Strategy):
    strategy: Literal["fedavgm"]
    server_learning_rate: LearningRate = 0.3
    momentum: Decay = 0.9


class FedAdagradPlan(_Strategy):
    strategy: Literal["fedadagrad"]
    server_learning_rate: LearningRate = 0.1
    beta_1: Decay = 0.0
    tau: Tau = 1e-2


class _Adam(_Strategy):
    server_learning_rate: LearningRate = 0.003
    beta_1: Decay = 0.9
    beta_2: Decay = 0.99
    tau: Tau = 1e-4


class FedAdamPlan(_Adam):
    strategy: Literal["fedadam"]


class FedYogiPlan(_Adam):
    strategy: Literal["fedyogi"]


def _named(given: object) -> object:
    return {"strategy": "fedavg", **given} if isinstance(given, dict) else given


Aggregation = Annotated[
    FedAvgPlan | FedAvgMPlan | FedAdagradPlan | FedAdamPlan | FedYogiPlan,
    Field(discriminator="strategy"),
    BeforeValidator(_named),
]

_AGGREGATION: TypeAdapter[Aggregation] = TypeAdapter(Aggregation)
_STRATEGIES: dict[str, type[_Strategy]] = {
    "fedavg": FedAvgPlan, "fedavgm": FedAvgMPlan, "fedadagrad": FedAdagradPlan, "fedadam": FedAdamPlan, "fedyogi": FedYogiPlan
}  # fmt: skip
_RULES: dict[str, type[_Rule]] = {
    "median": MedianPlan, "trimmed_mean": TrimmedMeanPlan, "krum": KrumPlan, "multi_krum": MultiKrumPlan,
    "geometric_median": GeometricMedianPlan, "norm_bound": NormBoundPlan
}  # fmt: skip
_RULE_OPTIONS = frozenset(
    {"trim_fraction", "byzantine", "keep", "smoothing", "iterations", "weighted", "max_norm"}
)  # no strategy has an option of one of these names


def name_aggregation(strategy: str = "fedavg", rule: str | None = None, **options: object) -> Aggregation:
    """A plan's `aggregation`, by the names that docs/strategies.md lists.

    Args:
        rule: a robust rule; None for the weighted mean.
        options: of the strategy or of the rule, as numbers or as text.

    Raises:
        Refusal: `plan_invalid`, naming what does not fit.
    """
    if strategy == "fedprox":
        raise Refusal(Code.PLAN_INVALID, "FedProx is what devices do, with any strategy: give proximal_mu, and leave fedavg.")
    _check_name("strategy", strategy, _STRATEGIES)
    if rule is not None:
        _check_name("robust rule", rule, _RULES)
    given = {"strategy": strategy, **{name: value for name, value in options.items() if name not in _RULE_OPTIONS}}
    of_rule = {name: value for name, value in options.items() if name in _RULE_OPTIONS}
    if rule is not None:
        given["rule"] = {"name": rule, **of_rule}
    elif of_rule:
        raise Refusal(
            Code.PLAN_INVALID, f"{' and '.join(of_rule)}: no strategy has such an option; name the robust rule as well."
        )
    try:
        return _AGGREGATION.validate_python(given)
    except ValidationError as error:
        faults = "; ".join(_fault(fault) for fault in error.errors())
        raise Refusal(Code.PLAN_INVALID, f"The strategy is not valid: {faults}.") from error


def _check_name(noun: str, name: str, known: Mapping[str, object]) -> None:
    if name not in known:
        raise Refusal(Code.PLAN_INVALID, f"There is no {noun} {name!r}: use {', '.join(known)}.")


def _fault(error: Mapping[str, Any]) -> str:
    *place, name = error["loc"] or ("",)
    if error["type"] != "extra_forbidden" or not place:
        return describe(error)
    fields = [field for field in {**_STRATEGIES, **_RULES}[place[-1]].model_fields if field not in ("strategy", "name", "rule")]
    return f"{place[-1]} has no option {name}; it has {', '.join(fields) or 'none'}"


def check_reports(aggregation: Aggregation, policy: RoundPolicy) -> None:
    """Whether every round that the policy lets close has as many updates as the plan's rule takes: or devices would train for
    nothing.

    Raises:
        Refusal: `plan_invalid`.
    """
    needed, most, selected = aggregation.least_reports, aggregation.most_reports, policy.selection.goal
    if most is not None and selected > most:
        raise Refusal(
            Code.PLAN_INVALID,
            f"The plan's aggregation takes {most} updates or fewer; the policy's goal times its over_selection is {selected}: "
            "lower one of them.",
        )
    if needed > policy.goal:
        raise Refusal(
            Code.PLAN_INVALID,
            f"The plan's aggregation needs {needed} updates or more; the policy's goal is {policy.goal}: raise it.",
        )
    if needed > policy.minimum:
        raise Refusal(
            Code.PLAN_INVALID,
            f"The plan's aggregation needs {needed} updates or more, and by the policy's goal of {policy.goal} and its "
            f"min_fraction of {policy.min_fraction:g} a round may close with {policy.minimum}: raise min_fraction to "
            f"{math.ceil(100 * needed / policy.goal) / 100:g} or more, or the goal.",
        )


def read_options(texts: Sequence[str]) -> dict[str, object]:
    """Options as a command line has them, `name=value`.

    Raises:
        Refusal: `plan_invalid`.
    """
    options: dict[str, object] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier() or name in ("strategy", "rule"):
            raise Refusal(Code.PLAN_INVALID, f"{text!r} is no option of a strategy: write name=value.")
        options[name] = value
    return options
