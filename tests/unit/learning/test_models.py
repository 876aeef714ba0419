import json
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlearn.core.errors import Code, Refusal, SetupError
from fedlearn.learning.models import (
    build,
    framework,
    get_weights,
    make_plan,
    model_of,
    plan_weights,
    save_keras,
    set_weights,
)
from fedlearn.learning.runtime import keras
from fedlearn.protocol.plans import LocalTraining, Plan, TensorSpec, read_plan


def a_model_with_state() -> Any:
    """Moving statistics, which are weights, and a generator of dropout, which is none; seven weights."""
    inputs = keras.Input((4,))
    x = keras.layers.Dense(8)(inputs)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Dropout(0.5)(x)
    return keras.Model(inputs, keras.layers.Dense(2, activation="softmax", use_bias=False)(x))


def altered(plan: Plan, **changes: Any) -> Plan:
    return read_plan(json.dumps({**json.loads(plan.canonical), **changes}))


@pytest.mark.parametrize(("name", "parameters"), [("2nn", 199_210), ("cnn", 1_663_370)])
def test_mcmahans_models_have_the_parameters_of_the_paper(name: str, parameters: int) -> None:
    model = build(name, 0)
    assert model.count_params() == parameters
    assert model.input_shape == (None, 28, 28, 1)
    assert model.output_shape == (None, 10)
    assert make_plan(model, dataset="mnist").parameters == parameters


def test_the_same_seed_builds_the_same_weights_and_another_does_not() -> None:
    first, again, other = (build("2nn", seed).get_weights() for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])


def test_kernels_start_as_glorot_says() -> None:
    bounds = [np.abs(weight).max() for weight in build("2nn", 0).get_weights() if weight.ndim == 2]
    np.testing.assert_allclose(bounds, [np.sqrt(6 / (784 + 200)), np.sqrt(6 / 400), np.sqrt(6 / 210)], rtol=0.01)


def test_building_draws_nothing_from_the_global_generators() -> None:
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    build("2nn", 1)
    np.testing.assert_array_equal(np.random.get_state()[1], before)


def test_a_plan_does_not_depend_on_what_was_built_before_it() -> None:
    assert make_plan(build("cnn", 3), dataset="mnist").digest == make_plan(build("cnn", 3), dataset="mnist").digest


def test_an_unknown_model_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(SetupError, match="2nn or cnn") as caught:
        build("resnet", 0)
    assert caught.value.code is Code.SETTING_INVALID


def test_the_framework_is_named() -> None:
    assert framework().startswith("Keras 3")


# --- plans


def test_the_manifest_counts_moving_statistics_and_no_seeds() -> None:
    plan = make_plan(a_model_with_state(), dataset="mine")
    assert sorted(spec.shape for spec in plan.weights) == [(4, 8), *[(8,)] * 5, (8, 2)]
    assert plan.parameters == 4 * 8 + 5 * 8 + 8 * 2


def test_the_manifest_is_the_one_of_the_model_that_the_plan_gives() -> None:
    plan = read_plan(make_plan(a_model_with_state(), dataset="mine").canonical)
    assert tuple(TensorSpec(shape=tuple(v.shape)) for v in plan_weights(model_of(plan))) == plan.weights


def test_how_a_model_was_compiled_is_left_out() -> None:
    bare = make_plan(build("2nn", 0), dataset="mnist")
    model = build("2nn", 0)
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy")
    assert make_plan(model, dataset="mnist").digest == bare.digest


def test_a_lambda_is_refused() -> None:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Lambda(lambda x: x), keras.layers.Dense(1)])
    with pytest.raises(Refusal) as caught:
        make_plan(model, dataset="mine")
    assert caught.value.code is Code.PLAN_INVALID


def test_weights_of_another_precision_are_refused() -> None:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, dtype="float16")])
    with pytest.raises(Refusal, match="float16") as caught:
        make_plan(model, dataset="mine")
    assert caught.value.code is Code.PLAN_INVALID


def test_a_model_without_an_input_shape_is_refused() -> None:
    with pytest.raises(Refusal, match="input shape") as caught:
        make_plan(keras.Sequential([keras.layers.Dense(1)]), dataset="mine")
    assert caught.value.code is Code.PLAN_INVALID


def test_an_absurd_width_is_refused_before_it_is_allocated() -> None:
    plan = make_plan(build("2nn", 0), dataset="mnist")
    architecture = json.loads(json.dumps(plan.architecture).replace("200", "2000000"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(Refusal, match="parameters") as caught:
        model_of(altered(plan, architecture=architecture))
    assert caught.value.code is Code.PLAN_INVALID
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB; the model has 16 TB
    assert model_of(plan).count_params() == 199_210  # nothing of it is left over for the next one


def test_an_architecture_that_is_not_the_manifests_is_refused() -> None:
    plan = make_plan(build("2nn", 0), dataset="mnist")
    swapped = [spec.model_dump() for spec in (plan.weights[1], plan.weights[0], *plan.weights[2:])]
    with pytest.raises(Refusal, match="manifest") as caught:
        model_of(altered(plan, weights=swapped))
    assert caught.value.code is Code.PLAN_INVALID


@pytest.mark.parametrize(
    "architecture",
    [
        {},
        {"class_name": "Dense"},
        {"module": "keras.layers", "class_name": "Dense", "config": {"units": 3}, "registered_name": None},
        {
            "module": "keras",
            "class_name": "Sequential",
            "config": {"layers": [{"class_name": "Dense"}]},
            "registered_name": None,
        },
        {"module": "keras", "class_name": "Sequential", "config": {"layers": 5}, "registered_name": None},
    ],
    ids=["nothing", "a name alone", "a layer", "a layer without its settings", "layers that are none"],
)
def test_an_architecture_that_keras_cannot_build_is_refused(architecture: dict[str, Any]) -> None:
    plan = make_plan(build("2nn", 0), dataset="mnist")
    with pytest.raises(Refusal) as caught:
        model_of(altered(plan, architecture=architecture))
    assert caught.value.code is Code.PLAN_INVALID


# --- weights and files


def test_weights_come_back_as_they_were_given() -> None:
    plan = make_plan(a_model_with_state(), dataset="mine")
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=spec.shape).astype(np.float32) for spec in plan.weights]
    model = model_of(plan)
    set_weights(model, plan, weights)
    for given, back in zip(weights, get_weights(model, plan), strict=True):
        np.testing.assert_array_equal(given, back)


def test_weights_that_are_read_are_copies() -> None:
    model = build("2nn", 0)
    plan = make_plan(model, dataset="mnist")
    get_weights(model, plan)[0][:] = 7
    assert get_weights(model, plan)[0].max() < 1


@pytest.mark.parametrize("fault", ["one less", "another shape"])
def test_weights_that_do_not_fit_are_refused(fault: str) -> None:
    model = build("2nn", 0)
    plan = make_plan(model, dataset="mnist")
    weights = get_weights(model, plan)
    wrong = weights[:-1] if fault == "one less" else [weights[0].T, *weights[1:]]
    with pytest.raises(Refusal) as caught:
        set_weights(model, plan, wrong)
    assert caught.value.code is Code.MODEL_MISMATCH


def test_a_model_that_is_not_the_plans_is_refused() -> None:
    plan = make_plan(build("2nn", 0), dataset="mnist")
    for use in (lambda m: get_weights(m, plan), lambda m: set_weights(m, plan, build("2nn", 0).get_weights())):
        with pytest.raises(Refusal) as caught:
            use(build("cnn", 0))
        assert caught.value.code is Code.MODEL_MISMATCH


# Keras itself makes an array of a TensorFlow variable, whose __array__ is older than NumPy 2
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
def test_a_saved_model_loads_in_plain_keras_scores_and_trains_on(tmp_path: Path) -> None:
    plan = make_plan(build("2nn", 0), dataset="mnist", training=LocalTraining(learning_rate=0.25, momentum=0.5))
    weights = build("2nn", 5).get_weights()
    save_keras(plan, weights, tmp_path / "out" / "model.keras")
    loaded = keras.models.load_model(tmp_path / "out" / "model.keras")
    for expected, weight in zip(weights, loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, expected)
    x, y = np.random.default_rng(0).random((20, 28, 28, 1), dtype=np.float32), np.arange(20) % 10
    scores = loaded.evaluate(x, y, verbose=0, return_dict=True)
    assert set(scores) == {"loss", "accuracy"}
    assert float(loaded.optimizer.learning_rate) == 0.25
    loaded.fit(x, y, epochs=3, verbose=0)
    assert loaded.evaluate(x, y, verbose=0, return_dict=True)["loss"] < scores["loss"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.keras"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    model = build("2nn", 0)
    plan = make_plan(model, dataset="mnist")
    with pytest.raises(SetupError, match="taken") as caught:
        save_keras(plan, get_weights(model, plan), tmp_path / "taken" / "model.keras")
    assert caught.value.code is Code.SETTING_INVALID
