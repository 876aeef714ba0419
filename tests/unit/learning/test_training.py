from typing import Any

import numpy as np
import pytest

from fedlearn.core.errors import Code, Refusal
from fedlearn.core.learning import Examples, Weights
from fedlearn.learning.models import build, get_weights, make_plan, model_of, set_weights
from fedlearn.learning.runtime import keras
from fedlearn.learning.training import KerasLearner
from fedlearn.protocol.plans import LocalTraining, Plan

layers = keras.layers


def sequential(*parts: Any) -> Any:
    return keras.Sequential(list(parts))


def plain() -> Any:
    return sequential(keras.Input((6,)), layers.Dense(5, activation="relu"), layers.Dense(3, activation="softmax"))


def with_moving_statistics() -> Any:
    return sequential(
        keras.Input((6,)), layers.Dense(5), layers.BatchNormalization(momentum=0.5), layers.Dense(3, activation="softmax")
    )


def with_a_regularizer_and_a_constraint() -> Any:
    return sequential(
        keras.Input((6,)),
        layers.Dense(5, activation="relu", kernel_regularizer=keras.regularizers.L2(0.1)),
        layers.Dense(3, activation="softmax", kernel_constraint=keras.constraints.MaxNorm(0.5)),
    )


def with_a_frozen_layer() -> Any:
    model = plain()
    model.layers[0].trainable = False
    return model


def with_dropout() -> Any:
    return sequential(
        keras.Input((6,)),
        layers.Dense(16, activation="relu"),
        layers.Dropout(0.5),
        layers.GaussianNoise(0.3),
        layers.Dense(3, activation="softmax"),
    )


def some_examples(count: int = 23, seed: int = 0, features: int = 6, classes: int = 3) -> Examples:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, features)).astype(np.float32)
    return Examples(x, np.argmax(x[:, :classes], axis=1).astype(np.int32))


def prepared(model: Any, **settings: Any) -> tuple[Plan, list[np.ndarray]]:
    """A plan, and weights for it that differ from layer to layer."""
    training = LocalTraining(**settings.pop("training", {}))
    plan = make_plan(model, dataset="mine", training=training, **settings)
    return plan, [weight.copy() for weight in get_weights(model_of(plan), plan)]


def by_keras(plan: Plan, weights: Weights, examples: Examples, epochs: int) -> list[np.ndarray]:
    """The same by `train_on_batch`, one batch an epoch."""
    model, training = model_of(plan), plan.training
    set_weights(model, plan, weights)
    model.compile(optimizer=keras.optimizers.SGD(training.learning_rate, momentum=training.momentum), loss=plan.loss)
    for _ in range(epochs):
        model.train_on_batch(examples.features, examples.labels)
    return get_weights(model, plan)


@pytest.mark.parametrize("momentum", [0.0, 0.9], ids=["plain", "momentum"])
@pytest.mark.parametrize(
    "model", [plain, with_moving_statistics, with_a_regularizer_and_a_constraint, with_a_frozen_layer], ids=lambda f: f.__name__
)
def test_it_trains_as_keras_does(model: Any, momentum: float) -> None:
    examples = some_examples()
    settings = {"learning_rate": 0.3, "momentum": momentum, "epochs": 4, "batch_size": 100}
    plan, weights = prepared(model(), training=settings)
    trained, expected = KerasLearner(plan).train(weights, examples, 1), by_keras(plan, weights, examples, 4)
    assert not np.allclose(trained[-1], weights[-1], atol=1e-3)
    for ours, theirs in zip(trained, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.9], ids=["plain", "momentum"])
def test_the_proximal_term_pulls_each_step_towards_where_it_began(momentum: float) -> None:
    rate, mu, epochs = 0.05, 0.7, 6
    model = sequential(keras.Input((4,)), layers.Dense(1, use_bias=False))
    training = {"learning_rate": rate, "momentum": momentum, "epochs": epochs, "batch_size": 100, "proximal_mu": mu}
    plan, (begin,) = prepared(model, training=training, loss="mean_squared_error", metrics=())
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 4)).astype(np.float32), rng.normal(size=(20, 1)).astype(np.float32)
    direct, velocity = begin.astype(np.float64), 0.0
    for _ in range(epochs):
        gradient = 2 / len(x) * x.T @ (x @ direct - y) + mu * (direct - begin)
        velocity = momentum * velocity + rate * gradient
        direct = direct - velocity
    (trained,) = KerasLearner(plan).train([begin], Examples(x, y), 1)
    np.testing.assert_allclose(trained, direct, rtol=1e-4, atol=1e-6)


def test_moving_statistics_are_among_the_new_weights() -> None:
    plan, weights = prepared(with_moving_statistics(), training={"batch_size": 5})
    trained = KerasLearner(plan).train(weights, some_examples(), 1)
    changed = [not np.array_equal(a, b) for a, b in zip(weights, trained, strict=True)]
    assert all(changed)


def visits(count: int, batch_size: int, epochs: int = 1, seeds: tuple[int, ...] = (0,)) -> list[np.ndarray]:
    """For each seed how much each example moved its own weight: one over the size of its batch, each time it was seen.

    The model is w . x with one-hot x and a far target, whose absolute error has the gradient -1 for the example's weight.
    """
    model = sequential(keras.Input((count,)), layers.Dense(1, use_bias=False, kernel_initializer="zeros"))
    training = {"learning_rate": 1.0, "batch_size": batch_size, "epochs": epochs}
    plan, weights = prepared(model, training=training, loss="mean_absolute_error", metrics=())
    examples = Examples(np.eye(count, dtype=np.float32), np.full((count, 1), 1e6, np.float32))
    learner = KerasLearner(plan)
    return [learner.train(weights, examples, seed)[0][:, 0] for seed in seeds]


def test_each_example_is_seen_once_an_epoch_and_the_last_batch_is_smaller() -> None:
    (moved,) = visits(7, 3)
    np.testing.assert_allclose(sorted(moved), [1 / 3] * 6 + [1.0], rtol=1e-6)


def test_a_batch_larger_than_the_shard_is_the_shard() -> None:
    np.testing.assert_allclose(visits(4, 100)[0], 0.25, rtol=1e-6)


def test_every_epoch_has_an_order_of_its_own() -> None:
    (moved,) = visits(7, 3, epochs=5)
    assert moved.sum() == pytest.approx(5 * 3, rel=1e-6)  # three batches an epoch
    assert len(np.unique(moved.round(3))) > 2  # one order for all would leave one example alone five times


def test_the_order_depends_on_the_seed() -> None:
    lone = {int(np.argmax(moved)) for moved in visits(7, 3, seeds=tuple(range(6)))}
    assert len(lone) > 1


@pytest.mark.parametrize("model", [plain, with_dropout], ids=lambda f: f.__name__)
def test_the_same_seed_gives_the_same_weights_to_the_bit_and_another_does_not(model: Any) -> None:
    plan, weights = prepared(model(), training={"batch_size": 4, "epochs": 2})
    learner, other = KerasLearner(plan), KerasLearner(plan)
    first = learner.train(weights, some_examples(), 5)
    for again in (learner.train(weights, some_examples(), 5), other.train(weights, some_examples(), 5)):
        assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], learner.train(weights, some_examples(), 6)[0])


def test_dropout_draws_anew_each_step_and_by_the_seed() -> None:
    training = {"batch_size": 100, "epochs": 1}  # one batch: the order plays no part beyond rounding
    plan, weights = prepared(with_dropout(), training=training)
    learner = KerasLearner(plan)
    one, other = (learner.train(weights, some_examples(), seed) for seed in (1, 2))
    assert not np.allclose(one[0], other[0], atol=1e-4)


def test_dropout_is_off_when_scoring() -> None:
    plan, weights = prepared(with_dropout())
    learner = KerasLearner(plan)
    assert learner.evaluate(weights, some_examples()) == learner.evaluate(weights, some_examples())


def test_what_it_is_given_stays_as_it_is() -> None:
    plan, weights = prepared(plain(), training={"batch_size": 4})
    examples = some_examples()
    before = [array.copy() for array in (*weights, examples.features, examples.labels)]
    KerasLearner(plan).train(weights, examples, 0)
    for array, copy in zip((*weights, examples.features, examples.labels), before, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_read_only_arrays_will_do() -> None:
    plan, weights = prepared(plain())
    examples = some_examples()
    for array in (*weights, examples.features, examples.labels):
        array.setflags(write=False)
    learner = KerasLearner(plan)
    learner.evaluate(learner.train(weights, examples, 0), examples)


def test_shards_of_any_size_share_one_compilation() -> None:
    plan, weights = prepared(plain(), training={"batch_size": 4})
    learner = KerasLearner(plan)
    for count in (1, 3, 4, 9, 50):
        examples = some_examples(count)
        learner.evaluate(learner.train(weights, examples, count), examples)
    assert learner._train.experimental_get_tracing_count() == 1
    assert learner._evaluate.experimental_get_tracing_count() == 1


def test_training_learns() -> None:
    plan, weights = prepared(plain(), training={"epochs": 30, "learning_rate": 0.3})
    learner, examples = KerasLearner(plan), some_examples(400)
    trained = learner.train(weights, examples, 0)
    assert learner.evaluate(trained, some_examples(400, seed=1))["accuracy"] > 0.9


@pytest.mark.parametrize("name", ["2nn", "cnn"])
def test_mcmahans_models_learn_a_simple_picture(name: str) -> None:
    model = build(name, 0)
    plan = make_plan(model, dataset="mine", training=LocalTraining(learning_rate=0.05, epochs=3))
    labels = np.arange(100, dtype=np.int32) % 10
    images = np.zeros((100, 28, 28, 1), dtype=np.float32)
    images[np.arange(100), 2 * labels + 3] = 1.0  # a line at a height of its own for each class
    learner = KerasLearner(plan)
    trained = learner.train(get_weights(model, plan), Examples(images, labels), 0)
    assert learner.evaluate(trained, Examples(images, labels))["accuracy"] == 1.0


# --- models of other kinds


def test_an_embedding_and_a_recurrent_layer_learn() -> None:
    model = sequential(
        keras.Input((5,), dtype="int32"), layers.Embedding(4, 3), layers.LSTM(6), layers.Dense(2, activation="softmax")
    )
    plan, weights = prepared(model, training={"learning_rate": 1.0, "epochs": 40})
    tokens = np.random.default_rng(0).integers(0, 4, (60, 5)).astype(np.int32)
    examples = Examples(tokens, (tokens[:, -1] > 1).astype(np.int32))
    learner = KerasLearner(plan)
    assert learner.evaluate(learner.train(weights, examples, 0), examples)["accuracy"] == 1.0


@pytest.mark.parametrize("shape", [(40,), (40, 1)], ids=["(n,)", "(n, 1)"])
def test_one_output_for_one_label_is_never_paired_with_all_others(shape: tuple[int, ...]) -> None:
    plan, weights = prepared(
        sequential(keras.Input((6,)), layers.Dense(1, activation="sigmoid")),
        loss="binary_crossentropy",
        training={"learning_rate": 1.0, "epochs": 60},
    )
    features = some_examples(40).features
    examples = Examples(features, (features[:, 0] > 0).astype(np.float32).reshape(shape))
    learner = KerasLearner(plan)
    assert learner.evaluate(learner.train(weights, examples, 0), examples)["accuracy"] > 0.95


def test_one_hot_labels_go_with_a_dense_loss() -> None:
    sparse = some_examples(40)
    dense = Examples(sparse.features, np.eye(3, dtype=np.float32)[sparse.labels])
    plan, weights = prepared(plain())
    other, _ = prepared(plain(), loss="CategoricalCrossentropy")
    ours, theirs = KerasLearner(plan).evaluate(weights, sparse), KerasLearner(other).evaluate(weights, dense)
    assert ours == pytest.approx(theirs)


# --- scoring


@pytest.mark.parametrize("batch_size", [7, 23, 1000])
@pytest.mark.parametrize(
    "model", [plain, with_moving_statistics, with_a_regularizer_and_a_constraint], ids=lambda f: f.__name__
)
def test_it_scores_as_keras_does_whatever_the_batches(model: Any, batch_size: int) -> None:
    metrics = ("accuracy", "sparse_top_k_categorical_accuracy")
    plan, weights = prepared(model(), evaluation_batch_size=batch_size, metrics=metrics)
    theirs = model_of(plan)
    set_weights(theirs, plan, weights)
    theirs.compile(loss=plan.loss, metrics=list(metrics))
    examples = some_examples()
    expected = theirs.evaluate(examples.features, examples.labels, verbose=0, return_dict=True)
    assert KerasLearner(plan).evaluate(weights, examples) == pytest.approx(expected, rel=1e-5)


def test_there_are_no_means_over_no_examples() -> None:
    plan, weights = prepared(plain())
    assert KerasLearner(plan).evaluate(weights, some_examples(0)) == {}


# --- refusals


def refused(code: Code, call: Any, *words: str) -> None:
    with pytest.raises(Refusal) as caught:
        call()
    assert caught.value.code is code
    for word in words:
        assert word in caught.value.detail


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_fewer_steps_are_the_beginning_of_the_whole_training(optimizer: str) -> None:
    rule: dict[str, Any] = {"momentum": 0.9} if optimizer == "sgd" else {"optimizer": {"name": "adam"}}
    training = {"learning_rate": 0.05, "epochs": 3, "batch_size": 5, **rule}
    plan, weights = prepared(plain(), training=training)
    learner, examples = KerasLearner(plan), some_examples()  # 23 of them: 5 steps an epoch
    whole = learner.train(weights, examples, 4)
    for given in (15, 1000):
        for one, other in zip(learner.train(weights, examples, 4, steps=given), whole, strict=True):
            np.testing.assert_array_equal(one, other)
    one_epoch = KerasLearner(prepared(plain(), training={**training, "epochs": 1})[0])
    for one, other in zip(learner.train(weights, examples, 4, steps=5), one_epoch.train(weights, examples, 4), strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(learner.train(weights, examples, 4, steps=0), weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_another_number_of_steps_or_examples_traces_nothing_again() -> None:
    plan, weights = prepared(plain())
    learner = KerasLearner(plan)
    for steps, count in ((1, 23), (2, 23), (3, 7), (None, 11)):
        learner.train(weights, some_examples(count), 0, steps=steps)
    assert learner._train.experimental_get_tracing_count() == 1


def test_training_that_diverges_is_refused() -> None:
    plan, weights = prepared(sequential(keras.Input((6,)), layers.Dense(3)), loss="mean_squared_error", metrics=(),
                             training={"learning_rate": 100.0, "epochs": 30})  # fmt: skip
    examples = Examples(some_examples().features, np.ones((23, 3), np.float32))
    refused(Code.TRAINING_FAILED, lambda: KerasLearner(plan).train(weights, examples, 0), "learning rate")


def test_features_that_are_not_finite_are_refused() -> None:
    plan, weights = prepared(plain())
    examples = some_examples()
    examples.features[3, 2] = np.nan
    refused(Code.TRAINING_FAILED, lambda: KerasLearner(plan).train(weights, examples, 0), "not finite")


def test_no_examples_are_refused() -> None:
    plan, weights = prepared(plain())
    refused(Code.TRAINING_FAILED, lambda: KerasLearner(plan).train(weights, some_examples(0), 0), "no examples")


def test_a_label_out_of_range_is_refused() -> None:
    plan, weights = prepared(plain())
    examples = some_examples()
    examples.labels[5] = 3
    learner = KerasLearner(plan)
    refused(Code.SHARD_INVALID, lambda: learner.train(weights, examples, 0), "The labels go from 0 to 3")
    refused(Code.SHARD_INVALID, lambda: learner.evaluate(weights, examples), "classes from 0 to 2")


def test_fractions_for_a_model_of_whole_numbers_are_refused() -> None:
    model = sequential(keras.Input((4,), dtype="int32"), layers.Embedding(9, 2), layers.Flatten(), layers.Dense(3))
    plan, weights = prepared(model)
    examples = Examples(np.zeros((5, 4), np.float32), np.zeros(5, np.int32))
    refused(Code.SHARD_INVALID, lambda: KerasLearner(plan).train(weights, examples, 0), "whole numbers")


@pytest.mark.parametrize(
    ("features", "labels"), [((9, 7), (9,)), ((9, 6, 1), (9,)), ((9, 6), (9, 3)), ((9, 6), (8,))],
    ids=["width", "axes", "one-hot for a sparse loss", "lengths"],
)  # fmt: skip
def test_examples_of_another_shape_are_refused(features: tuple[int, ...], labels: tuple[int, ...]) -> None:
    plan, weights = prepared(plain())
    learner, examples = KerasLearner(plan), Examples(np.zeros(features, np.float32), np.zeros(labels, np.int32))
    refused(Code.SHARD_INVALID, lambda: learner.train(weights, examples, 0))
    refused(Code.SHARD_INVALID, lambda: learner.evaluate(weights, examples))


def test_weights_of_another_model_are_refused() -> None:
    plan, weights = prepared(plain())
    learner = KerasLearner(plan)
    refused(Code.MODEL_MISMATCH, lambda: learner.train(weights[:-1], some_examples(), 0))
    refused(Code.MODEL_MISMATCH, lambda: learner.evaluate([weights[0].T, *weights[1:]], some_examples()))


@pytest.mark.parametrize(
    "settings",
    [{"loss": "no_such_loss"}, {"metrics": ("no_such_metric",)}, {"metrics": ("AUC",)}, {"metrics": ("get",)}],
    ids=["loss", "metric", "no mean over examples", "no metric"],
)
def test_a_name_that_keras_does_not_know_as_such_is_refused(settings: dict[str, Any]) -> None:
    plan, _ = prepared(plain(), **settings)
    refused(Code.PLAN_INVALID, lambda: KerasLearner(plan))


def test_a_model_of_two_inputs_is_refused() -> None:
    inputs = [keras.Input((2,)), keras.Input((2,))]
    plan, _ = prepared(keras.Model(inputs, layers.Dense(3, activation="softmax")(layers.Add()(inputs))))
    refused(Code.PLAN_INVALID, lambda: KerasLearner(plan), "2 inputs")


def test_a_loss_that_does_not_fit_the_model_is_refused_at_once() -> None:
    plan, _ = prepared(sequential(keras.Input((6,)), layers.Dense(3)), loss="ctc")
    refused(Code.PLAN_INVALID, lambda: KerasLearner(plan), "fit together")
