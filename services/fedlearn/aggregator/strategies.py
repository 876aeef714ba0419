"""From a plan's words to the strategy and the rule that it names."""

from fedlearn.core.robust import GeometricMedian, Median, MultiKrum, NormBound, Rule, TrimmedMean
from fedlearn.core.strategies import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedYogi, ServerOptimizer
from fedlearn.protocol import aggregations as plans


def optimizer_of(plan: plans.Aggregation) -> ServerOptimizer:
    """The server optimizer of a plan's `aggregation`."""
    rate = plan.server_learning_rate
    match plan:
        case plans.FedAvgMPlan():
            return FedAvgM(rate, plan.momentum)
        case plans.FedAdagradPlan():
            return FedAdagrad(rate, plan.beta_1, plan.tau)
        case plans.FedYogiPlan():
            return FedYogi(rate, plan.beta_1, plan.beta_2, plan.tau)
        case plans.FedAdamPlan():
            return FedAdam(rate, plan.beta_1, plan.beta_2, plan.tau)
        case _:
            return FedAvg(rate)


def rule_of(plan: plans.Rule) -> Rule:
    """The robust rule of a plan's `aggregation`."""
    match plan:
        case plans.MedianPlan():
            return Median()
        case plans.TrimmedMeanPlan():
            return TrimmedMean(plan.trim_fraction)
        case plans.KrumPlan():
            return MultiKrum(plan.byzantine, keep=1)
        case plans.MultiKrumPlan():
            return MultiKrum(plan.byzantine, plan.keep)
        case plans.GeometricMedianPlan():
            return GeometricMedian(plan.smoothing, plan.iterations, weighted=plan.weighted)
        case plans.NormBoundPlan():
            return NormBound(plan.max_norm, weighted=plan.weighted)
