import copy

import pytest

from fedlearn.core.errors import Code, Refusal
from fedlearn.protocol.envelope import Metadata
from fedlearn.protocol.messages import Model, RoundResult
from fedlearn.protocol.plans import (
    MAX_EXACT,
    MAX_METRICS,
    MAX_PARAMETERS,
    LocalTraining,
    Plan,
    TensorSpec,
    exact_ranges,
    read_plan,
)
from support.world import small_plan

DENSE = {
    "module": "keras.layers",
    "class_name": "Dense",
    "config": {
        "units": 10,
        "activation": "softmax",
        "kernel_initializer": {
            "module": "keras.initializers",
            "class_name": "GlorotUniform",
            "config": {"seed": None},
            "registered_name": None,
        },
    },
    "registered_name": None,
}
PLAN = {
    "dataset": "mnist",
    "architecture": {
        "module": "keras",
        "class_name": "Sequential",
        "config": {"layers": [DENSE]},
        "registered_name": "Sequential",
    },
    "weights": [{"shape": [784, 10]}, {"shape": [10]}],
}


def plan_with(**changes: object) -> dict[str, object]:
    return {**copy.deepcopy(PLAN), **changes}


def architecture_with(**changes: object) -> dict[str, object]:
    changed = copy.deepcopy(PLAN)
    changed["architecture"]["config"]["layers"][0].update(changes)
    return changed


def refusal_of(plan: dict[str, object]) -> Refusal:
    import json

    with pytest.raises(Refusal) as refusal:
        read_plan(json.dumps(plan))
    assert refusal.value.code is Code.PLAN_INVALID
    return refusal.value


def test_a_plan_without_the_fields_that_came_later_keeps_the_digest_it_had_before_them() -> None:
    """Tasks that run when fedlearn is upgraded are known by it, at the server and on every device. What is stored names its
    encoding, whatever the default has become.
    """
    stored = plan_with(update={"encoding": "float32", "window_elements": 262_144})
    assert Plan.model_validate(stored).digest == "8455743a89312f9f883c78f166a8aaa07c6fe7c75e5fe18bb17f23f98c8a371f"


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        pytest.param({"training": {"optimizer": {"name": "adam", "beta_1": 0.5}}}, ("training", "optimizer"), id="optimizer"),
        pytest.param({"training": {"weight_decay": 0.1}}, ("training", "weight_decay"), id="decay"),
        pytest.param({"training": {"clipping": {"by": "norm", "limit": 1.0}}}, ("training", "clipping"), id="clipping"),
        pytest.param({"training": {"nesterov": True, "momentum": 0.9}}, ("training", "nesterov"), id="nesterov"),
        pytest.param({"loss_options": {"from_logits": True}}, ("loss_options",), id="loss options"),
    ],
)
def test_what_differs_from_the_default_is_in_the_plan_and_comes_back(changes: dict[str, object], kept: tuple[str, ...]) -> None:
    import json

    plan = read_plan(json.dumps(plan_with(**changes)))
    assert read_plan(plan.canonical) == plan
    node = json.loads(plan.canonical)
    for key in kept:
        node = node[key]
    assert plan.digest != Plan.model_validate(PLAN).digest


@pytest.mark.parametrize(
    "training",
    [
        pytest.param({"optimizer": {"name": "adam"}, "momentum": 0.9}, id="momentum for Adam"),
        pytest.param({"optimizer": {"name": "lbfgs"}}, id="an unknown optimizer"),
        pytest.param({"optimizer": {"name": "rmsprop", "beta_1": 0.9}}, id="another one's constant"),
        pytest.param({"weight_decay": -0.1}, id="growth"),
        pytest.param({"clipping": {"by": "norm", "limit": 0}}, id="no limit"),
    ],
)
def test_an_optimizer_that_no_device_has_is_refused(training: dict[str, object]) -> None:
    assert "training" in refusal_of(plan_with(training=training)).detail


def test_a_plan_knows_its_parameters_and_keeps_its_digest_through_json() -> None:
    plan = Plan.model_validate(PLAN)
    assert plan.parameters == 7850
    assert read_plan(plan.canonical).digest == plan.digest
    assert plan.digest != Plan.model_validate(plan_with(dataset="fashion-mnist")).digest


@pytest.mark.parametrize(
    ("plan", "named"),
    [
        pytest.param(architecture_with(class_name="Lambda"), "Lambda", id="a Lambda layer"),
        pytest.param(architecture_with(registered_name="mine>Dense"), "mine>Dense", id="a custom layer under a known name"),
        pytest.param(architecture_with(module="mine.layers"), "Dense", id="a known name from another module"),
        pytest.param(architecture_with(module="kerasevil"), "Dense", id="a module that only begins like Keras"),
        pytest.param(
            architecture_with(config={"activation": {"class_name": "function", "config": "f", "registered_name": "f"}}),
            "f",
            id="a custom activation",
        ),
    ],
)
def test_an_architecture_of_foreign_classes_is_refused_by_name(plan: dict[str, object], named: str) -> None:
    assert named in refusal_of(plan).detail


@pytest.mark.parametrize(
    ("plan", "place"),
    [
        pytest.param(plan_with(plan_version=2), "plan_version", id="another version"),
        pytest.param(plan_with(surprise=1), "surprise", id="an unknown field"),
        pytest.param(plan_with(weights=[]), "weights", id="no weights"),
        pytest.param(plan_with(weights=[{"shape": [-1]}]), "weights", id="a negative dimension"),
        pytest.param(plan_with(weights=[{"shape": [MAX_PARAMETERS + 1]}]), "parameters", id="an absurd width"),
        pytest.param(plan_with(training={"learning_rate": 0}), "learning_rate", id="a learning rate of zero"),
        pytest.param(plan_with(training={"batch_size": 0}), "batch_size", id="empty batches"),
        pytest.param(plan_with(max_examples=0), "max_examples", id="no examples"),
        pytest.param(plan_with(metrics=["m"] * (MAX_METRICS + 1)), "metrics", id="more metrics than a result has"),
        pytest.param(plan_with(metrics=["m" * 101]), "metrics", id="a metric with a name that no update can say"),
    ],
)
def test_a_faulty_plan_is_refused_with_the_place_of_its_fault(plan: dict[str, object], place: str) -> None:
    assert place in refusal_of(plan).detail


def test_what_a_plan_of_the_most_metrics_measures_fits_an_update_and_a_result() -> None:
    plan = Plan.model_validate(plan_with(metrics=[f"{number:0>100}" for number in range(MAX_METRICS)]))
    measured = dict.fromkeys(plan.figures, 0.5)
    assert len(measured) == MAX_METRICS + 1
    Metadata(base="0" * 64, examples=1, holdout_examples=1, metrics=measured)
    RoundResult(
        model=Model(version=1, key="k", sha256="0" * 64, size_bytes=1), contributors=("a",), examples=1, metrics=measured
    )


def test_what_is_no_json_is_refused() -> None:
    with pytest.raises(Refusal) as refusal:
        read_plan(b"{")
    assert refusal.value.code is Code.PLAN_INVALID


@pytest.mark.parametrize(("examples", "steps"), [(1, 3), (10, 3), (95, 30), (100, 30), (101, 33)])
def test_a_training_has_as_many_steps_as_its_epochs_have_batches(examples: int, steps: int) -> None:
    assert LocalTraining(batch_size=10, epochs=3).steps(examples) == steps


@pytest.mark.parametrize(("steps", "processed"), [(0, 0), (1, 10), (9, 90), (10, 95), (11, 105), (30, 285)])
def test_some_steps_process_whole_batches_and_the_short_one_at_each_epochs_end(steps: int, processed: int) -> None:
    assert LocalTraining(batch_size=10, epochs=3).processed(steps, 95) == processed


def test_a_plan_that_gives_everybody_all_steps_keeps_its_digest() -> None:
    assert b"min_steps_fraction" not in small_plan().canonical
    assert small_plan(training=LocalTraining(min_steps_fraction=0.5)).digest != small_plan().digest


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"update": {"encoding": "float64"}}, id="the aggregator's own encoding"),
        pytest.param({"update": {"encoding": "int8", "keep_fraction": 0.1}}, id="another encoding's option"),
        pytest.param({"update": {"encoding": "top_k", "keep_fraction": 0.6}}, id="more than half"),
        pytest.param({"update": {"encoding": "float16", "exact": [[0, 1]]}}, id="exact values of float16"),
        pytest.param({"update": {"encoding": "int8", "exact": [[3, 5], [0, 2]]}}, id="exact ranges out of order"),
        pytest.param({"update": {"encoding": "int8", "exact": [[0, 2], [2, 4]]}}, id="exact ranges that touch"),
        pytest.param({"update": {"encoding": "int8", "exact": [[1, 1]]}}, id="an empty exact range"),
        pytest.param({"update": {"encoding": "int8", "exact": [[0, 10**8]]}}, id="an exact range beyond the model"),
        pytest.param({"update": {"encoding": "top_k"}, "aggregation": {"rule": {"name": "median"}}}, id="top_k and a median"),
        pytest.param({"update": {"encoding": "top_k"}, "aggregation": {"rule": {"name": "multi_krum"}}}, id="top_k and Krum"),
        pytest.param({"model_encoding": "int8"}, id="an encoding that models do not have"),
    ],
)
def test_codecs_that_do_not_fit_are_refused(changes: dict[str, object]) -> None:
    refusal_of(plan_with(**changes))


def test_a_plan_says_what_its_codec_is_and_nothing_of_what_others_take() -> None:
    assert Plan.model_validate(PLAN).update.encoding == "int8"
    sparse = Plan.model_validate(plan_with(update={"encoding": "top_k"}, model_encoding="float16"))
    assert sparse.update.keep_fraction == 0.01
    assert sparse.update.keep(7850) == 78
    assert sparse.update.keep(10) == 1
    assert read_plan(sparse.canonical) == sparse
    assert b"keep_fraction" not in Plan.model_validate(PLAN).canonical
    assert b"model_encoding" not in Plan.model_validate(PLAN).canonical


@pytest.mark.parametrize("rule", ["median", "norm_bound", "multi_krum"])
def test_int8_goes_with_every_rule(rule: str) -> None:
    given = plan_with(aggregation={"rule": {"name": rule}})
    assert Plan.model_validate(given).update.encoding == "int8"


def test_biases_and_statistics_are_what_int8_leaves_alone() -> None:
    shapes = [(30,), (30,), (30, 16), (16,), (), (16, 16), (MAX_EXACT + 1,), (0,), (3,)]
    kernels = 30 * 16, 16 * 16 + MAX_EXACT + 1
    first = 60 + kernels[0]
    assert exact_ranges([TensorSpec(shape=shape) for shape in shapes]) == (
        (0, 60),
        (first, first + 17),
        (first + 17 + kernels[1], first + 17 + kernels[1] + 3),
    )


def test_a_plan_of_int8_from_before_exact_values_keeps_its_digest() -> None:
    assert b"exact" not in Plan.model_validate(plan_with(update={"encoding": "int8"})).canonical
