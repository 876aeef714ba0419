"""What a person may submit, and what is refused in which words."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fedlearn.core.errors import Code, Refusal
from fedlearn.learning import compiled
from fedlearn.learning.compiled import prepare
from fedlearn.learning.models import compile_model, get_weights, model_of, set_weights
from fedlearn.learning.runtime import keras
from fedlearn.learning.tasks import Task
from fedlearn.protocol.plans import Adam, LocalTraining
from fedlearn.protocol.tensors import decode_model

layers, losses, metrics = keras.layers, keras.losses, keras.metrics


def model(*inner: Any, last: Any = None, **compilation: Any) -> Any:
    given = {"optimizer": "adam", "loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"], **compilation}
    made = keras.Sequential([keras.Input((6,)), *inner, last or layers.Dense(3, activation="softmax")])
    made.compile(**given)
    return made


def refusal_of(made: Any, code: Code, **task: Any) -> str:
    with pytest.raises(Refusal) as refusal:
        prepare(Task(model=made, dataset="mine", **task))
    assert refusal.value.code is code
    assert refusal.value.detail.endswith(".")
    return refusal.value.detail


def test_a_plan_has_what_the_model_was_compiled_with_and_what_the_task_says() -> None:
    made = model(
        layers.Dense(5, activation="relu"),
        optimizer=keras.optimizers.AdamW(0.003, weight_decay=0.01, clipnorm=1.0),
        metrics=["acc", "sparse_top_k_categorical_accuracy"],
    )
    plan, _ = prepare(Task(model=made, dataset="mine", epochs=2, batch_size=16, proximal_mu=0.5, max_examples=99))
    clipping = {"by": "norm", "limit": 1.0}
    assert plan.training == LocalTraining(
        learning_rate=0.003, epochs=2, batch_size=16, optimizer=Adam(), weight_decay=0.01, clipping=clipping, proximal_mu=0.5
    )
    assert (plan.dataset, plan.loss, plan.metrics) == (
        "mine", "sparse_categorical_crossentropy", ("accuracy", "sparse_top_k_categorical_accuracy")
    )  # fmt: skip
    assert (plan.parameters, plan.max_examples) == (6 * 5 + 5 + 5 * 3 + 3, 99)
    assert "compile_config" not in json.dumps(plan.architecture)


def test_version_0_is_the_model_as_it_is_trained_so_far() -> None:
    made = model(layers.Dense(5, activation="relu"), layers.BatchNormalization())
    x = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    made.fit(x, np.argmax(x[:, :3], axis=1), epochs=2, verbose=0)
    plan, version_0 = prepare(Task(model=made, dataset="mine"))
    back = model_of(plan)
    set_weights(back, plan, decode_model(version_0, plan))
    np.testing.assert_array_equal(back(x), made(x))


def test_the_model_that_was_given_is_left_as_it_was() -> None:
    made = model(layers.Dropout(0.5))
    before = [variable.value.numpy().copy() for variable in made.variables]
    prepare(Task(model=made, dataset="mine"))
    for variable, value in zip(made.variables, before, strict=True):
        np.testing.assert_array_equal(variable.value.numpy(), value)


@pytest.mark.parametrize(
    ("loss", "name", "options"),
    [
        pytest.param("SparseCategoricalCrossentropy", "SparseCategoricalCrossentropy", {}, id="a class's name"),
        pytest.param(losses.SparseCategoricalCrossentropy(), "SparseCategoricalCrossentropy", {}, id="an object"),
        pytest.param(losses.sparse_categorical_crossentropy, "sparse_categorical_crossentropy", {}, id="a function of Keras"),
        pytest.param(
            losses.SparseCategoricalCrossentropy(from_logits=True), "SparseCategoricalCrossentropy", {"from_logits": True},
            id="from logits",
        ),
        pytest.param(losses.Huber(delta=0.5), "Huber", {"delta": 0.5}, id="Huber"),
        pytest.param(
            losses.CategoricalCrossentropy(label_smoothing=0.1), "CategoricalCrossentropy", {"label_smoothing": 0.1},
            id="smoothed",
        ),
    ],
)  # fmt: skip
def test_a_loss_may_be_given_in_any_of_keras_ways(loss: Any, name: str, options: dict[str, Any]) -> None:
    made = model(last=layers.Dense(3), loss=loss, metrics=[])
    plan, _ = prepare(Task(model=made, dataset="mine"))
    assert (plan.loss, plan.loss_options) == (name, options)


def test_a_device_scores_from_logits_as_keras_does() -> None:
    from fedlearn.core.learning import Examples
    from fedlearn.learning.training import KerasLearner

    made = model(last=layers.Dense(3), loss=losses.SparseCategoricalCrossentropy(from_logits=True))
    x = np.random.default_rng(0).normal(size=(30, 6)).astype(np.float32)
    y = np.argmax(x[:, :3], axis=1).astype(np.int32)
    plan, _ = prepare(Task(model=made, dataset="mine"))
    expected = made.evaluate(x, y, verbose=0, return_dict=True)
    assert KerasLearner(plan).evaluate(get_weights(made, plan), Examples(x, y)) == pytest.approx(expected, rel=1e-5)
    back = model_of(plan)
    compile_model(back, plan)
    set_weights(back, plan, get_weights(made, plan))
    assert back.evaluate(x, y, verbose=0, return_dict=True) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        pytest.param(metrics.SparseCategoricalAccuracy, "sparse_categorical_accuracy", id="an object"),
        pytest.param(lambda: "SparseCategoricalAccuracy", "sparse_categorical_accuracy", id="a class's name"),
        pytest.param(
            lambda: metrics.SparseTopKCategoricalAccuracy(name="top"), "sparse_top_k_categorical_accuracy", id="renamed"
        ),
        pytest.param(lambda: "sparse_categorical_crossentropy", "sparse_categorical_crossentropy", id="a function's name"),
    ],
)
def test_a_metric_may_be_given_in_keras_ways(given: Callable[[], Any], name: str) -> None:
    assert prepare(Task(model=model(metrics=[given()]), dataset="mine")).plan.metrics == (name,)


class Doubling(layers.Layer):
    def call(self, x: Any) -> Any:
        return 2 * x


class Secret(layers.Layer):
    def __init__(self, how: Callable[[Any], Any]) -> None:
        super().__init__()
        self.how = how

    def call(self, x: Any) -> Any:
        return self.how(x)


class Own(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.classes = layers.Dense(3, activation="softmax")

    def call(self, x: Any) -> Any:
        return self.classes(x)


def own() -> Any:
    made = Own()
    made.compile(loss="mse")
    made(np.zeros((1, 6), np.float32))
    return made


def twice(x: Any) -> Any:
    return 2 * x


@pytest.mark.parametrize(
    ("made", "named"),
    [
        pytest.param(lambda: model(layers.Lambda(lambda x: 2 * x)), "Lambda", id="a Lambda"),
        pytest.param(lambda: model(Doubling()), "Doubling", id="a layer of one's own"),
        pytest.param(lambda: model(Secret(twice)), "Secret", id="a layer that Keras cannot write down"),
        pytest.param(lambda: model(layers.Dense(4, activation=twice)), "twice", id="an activation of one's own"),
        pytest.param(lambda: model(layers.Dense(4, kernel_regularizer=twice)), "twice", id="a regularizer of one's own"),
        pytest.param(own, "Own", id="a model of one's own class"),
        pytest.param(lambda: model(layers.Discretization([0.0])), "Discretization", id="one that is not on the list"),
    ],
)
def test_code_of_ones_own_is_refused_by_its_name(made: Callable[[], Any], named: str) -> None:
    assert named in refusal_of(made(), Code.LAYER_NOT_ALLOWED)


class Further(losses.Loss):
    def call(self, y_true: Any, y_pred: Any) -> Any:
        return y_pred - y_true


def difference(y_true: Any, y_pred: Any) -> Any:
    return y_pred - y_true


@pytest.mark.parametrize(
    ("compilation", "named"),
    [
        pytest.param({"loss": None}, "without a loss", id="none"),
        pytest.param({"loss": difference}, "difference", id="a function"),
        pytest.param({"loss": lambda y, p: p}, "<lambda>", id="a function without a name"),
        pytest.param({"loss": Further()}, "Further", id="a class"),
        pytest.param({"loss": "no_such_loss"}, "no_such_loss", id="an unknown name"),
        pytest.param({"loss": losses.MeanSquaredError(reduction="sum")}, "reduction", id="another reduction"),
        pytest.param({"loss": losses.SparseCategoricalCrossentropy(ignore_class=0)}, "ignore_class", id="an ignored class"),
        pytest.param({"loss": ["mse", "mse"]}, "2 losses", id="two"),
        pytest.param({"loss_weights": [0.5]}, "loss_weights", id="weights"),
    ],
)
def test_a_loss_that_is_not_keras_own_is_refused(compilation: dict[str, Any], named: str) -> None:
    assert named in refusal_of(model(**compilation), Code.LOSS_NOT_ALLOWED)


class Mine(metrics.Mean):
    pass


@pytest.mark.parametrize(
    ("compilation", "named"),
    [
        pytest.param(lambda: {"metrics": ["AUC"]}, "AUC", id="no mean over examples, by name"),
        pytest.param(lambda: {"metrics": [metrics.AUC()]}, "AUC", id="no mean over examples"),
        pytest.param(lambda: {"metrics": [metrics.F1Score()]}, "F1Score", id="an F1 score"),
        pytest.param(lambda: {"metrics": [metrics.Accuracy()]}, "'accuracy'", id="Keras' equality of numbers"),
        pytest.param(lambda: {"metrics": [metrics.SparseTopKCategoricalAccuracy(k=2)]}, "without k", id="a setting"),
        pytest.param(lambda: {"metrics": [difference]}, "difference", id="a function"),
        pytest.param(lambda: {"metrics": [Mine()]}, "Mine", id="a class"),
        pytest.param(lambda: {"metrics": ["no_such"]}, "no_such", id="an unknown name"),
        pytest.param(lambda: {"weighted_metrics": ["accuracy"]}, "weighted_metrics", id="weighted"),
    ],
)
def test_a_metric_that_devices_do_not_have_is_refused(compilation: Callable[[], dict[str, Any]], named: str) -> None:
    assert named in refusal_of(model(**compilation()), Code.METRIC_NOT_ALLOWED)


def test_an_optimizer_that_devices_do_not_have_is_refused() -> None:
    assert "Lion" in refusal_of(model(optimizer="lion"), Code.OPTIMIZER_NOT_ALLOWED)


def test_more_parameters_than_allowed_are_refused_with_both_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "MAX_PARAMETERS", 20)
    detail = refusal_of(model(), Code.MODEL_TOO_LARGE)
    assert "21 parameters" in detail
    assert "20" in detail


def bare(*parts: Any) -> Any:
    return keras.Sequential([*parts, layers.Dense(3, activation="softmax")])


def of_no_shape() -> Any:
    made = bare(layers.Dense(4))
    made.compile(loss="sparse_categorical_crossentropy")
    return made


def with_two_inputs() -> Any:
    inputs = [keras.Input((6,)), keras.Input((6,))]
    made = keras.Model(inputs, layers.Dense(3, activation="softmax")(layers.Add()(inputs)))
    made.compile(loss="sparse_categorical_crossentropy")
    return made


def with_a_mask() -> Any:
    made = keras.Sequential([keras.Input((5,)), layers.Embedding(4, 3, mask_zero=True), layers.LSTM(3, return_sequences=True)])
    made.compile(loss="mse")
    return made


def of_half_precision() -> Any:
    made = bare(keras.Input((6,)), layers.Dense(4, dtype="float16"))
    made.compile(loss="sparse_categorical_crossentropy")
    return made


@pytest.mark.parametrize(
    ("made", "named"),
    [
        pytest.param(lambda: "a string", "not str", id="no model"),
        pytest.param(lambda: bare(keras.Input((6,))), "model.compile", id="not compiled"),
        pytest.param(of_no_shape, "keras.Input", id="of an unknown shape"),
        pytest.param(with_two_inputs, "2 inputs", id="of two inputs"),
        pytest.param(with_a_mask, "mask", id="whose mask reaches the loss"),
        pytest.param(of_half_precision, "float16", id="of half precision"),
        pytest.param(lambda: model(last=layers.Dense(1), loss="ctc", metrics=[]), "fit together", id="loss and model"),
        pytest.param(lambda: model(optimizer=keras.optimizers.SGD(1000.0)), "learning_rate", id="an absurd learning rate"),
    ],
)
def test_what_no_device_could_train_is_refused_before_it_is_sent(made: Callable[[], Any], named: str) -> None:
    assert named in refusal_of(made(), Code.PLAN_INVALID)


@pytest.mark.parametrize(
    ("field", "value"), [("epochs", 0), ("batch_size", 0), ("proximal_mu", -1), ("max_examples", 0), ("dataset", "")]
)
def test_a_setting_out_of_range_is_refused(field: str, value: Any) -> None:
    with pytest.raises(Refusal) as refusal:
        prepare(Task(**{"model": model(), "dataset": "mine", field: value}))
    assert refusal.value.code is Code.PLAN_INVALID
    assert field in refusal.value.detail
