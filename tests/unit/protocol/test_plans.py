import copy

import pytest

from fedlearn.core.errors import Code, Refusal
from fedlearn.protocol.plans import MAX_PARAMETERS, Plan, read_plan

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
    ],
)
def test_a_faulty_plan_is_refused_with_the_place_of_its_fault(plan: dict[str, object], place: str) -> None:
    assert place in refusal_of(plan).detail


def test_what_is_no_json_is_refused() -> None:
    with pytest.raises(Refusal) as refusal:
        read_plan(b"{")
    assert refusal.value.code is Code.PLAN_INVALID
