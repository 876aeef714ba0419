"""Each kind of layer that a person's model has goes through a round: compiled, prepared, trained on devices with Keras, sealed,
opened, folded and published.
"""

import base64
import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedlearn.adapters.memory import MemoryObjectStore
from fedlearn.aggregator.folding import Folding
from fedlearn.aggregator.layout import Descriptor, update_key
from fedlearn.aggregator.publishing import Publisher
from fedlearn.core.ids import DeviceId, RoundId, TaskId
from fedlearn.core.learning import Examples
from fedlearn.core.rounds import ModelRef
from fedlearn.core.updates import Update
from fedlearn.learning.compiled import Prepared, prepare
from fedlearn.learning.models import get_weights, model_of, plan_weights, set_weights
from fedlearn.learning.runtime import keras
from fedlearn.learning.tasks import Task
from fedlearn.learning.training import KerasLearner
from fedlearn.protocol.envelope import UpdateContext, digest_of, seal
from fedlearn.protocol.messages import Model, RoundResult
from fedlearn.protocol.plans import name_codec as codec
from fedlearn.protocol.sealing import SealingKey
from fedlearn.protocol.tensors import decode_model, flatten

pytestmark = pytest.mark.slow
layers = keras.layers
ROUND, IDENTITY = RoundId(TaskId("layers"), 1), Ed25519PrivateKey.generate()
SIZES = (24, 40, 9)  # the last one ends with a batch of its own size


def sequence(*inner: Any) -> Any:
    return keras.Sequential([keras.Input((8, 4)), *inner, layers.Dense(3, activation="softmax")])


def pictures(*inner: Any) -> Any:
    return keras.Sequential([keras.Input((8, 4)), layers.Reshape((8, 4, 1)), *inner, layers.Dense(3, activation="softmax")])


def tokens(*inner: Any) -> Any:
    return keras.Sequential([keras.Input((8,), dtype="int32"), *inner, layers.Dense(3, activation="softmax")])


def residual() -> Any:
    features = keras.Input((8, 4))
    x = layers.Conv1D(6, 3, padding="same", activation="relu")(features)
    inner = layers.BatchNormalization()(layers.Conv1D(6, 3, padding="same")(x))
    x = layers.ReLU()(layers.Add()([x, inner]))
    joined = layers.Concatenate()([layers.GlobalAveragePooling1D()(x), layers.GlobalMaxPooling1D()(x)])
    return keras.Model(features, layers.Dense(3, activation="softmax")(joined))


def with_a_shared_layer() -> Any:
    features, shared = keras.Input((8, 4)), layers.Dense(4, activation="tanh")
    return keras.Model(features, layers.Dense(3, activation="softmax")(layers.Flatten()(shared(shared(features)))))


def attention() -> Any:
    features = keras.Input((8, 4))
    seen = layers.MultiHeadAttention(2, 4)(features, features)
    x = layers.LayerNormalization()(layers.Add()([features, seen]))
    return keras.Model(features, layers.Dense(3, activation="softmax")(layers.GlobalAveragePooling1D()(x)))


def nested() -> Any:
    inner = keras.Sequential([keras.Input((8, 4)), layers.Conv1D(6, 3, activation="relu"), layers.GlobalMaxPooling1D()])
    return sequence(inner, layers.Dropout(0.1))


MODELS: dict[str, Callable[[], Any]] = {
    "BatchNormalization": lambda: sequence(layers.Flatten(), layers.Dense(8), layers.BatchNormalization(momentum=0.6)),
    "Dropout": lambda: sequence(layers.Flatten(), layers.Dense(24, activation="relu"), layers.Dropout(0.3)),
    "GaussianNoise": lambda: sequence(layers.GaussianNoise(0.2), layers.Flatten(), layers.Dense(12, activation="relu")),
    "Embedding": lambda: tokens(layers.Embedding(5, 4), layers.Flatten()),
    "Embedding with a mask": lambda: tokens(layers.Embedding(5, 4, mask_zero=True), layers.LSTM(8)),
    "LSTM": lambda: tokens(layers.Embedding(5, 4), layers.LSTM(8)),
    "LSTM with dropout": lambda: sequence(layers.LSTM(8, dropout=0.1, recurrent_dropout=0.1)),
    "stacked LSTM": lambda: sequence(layers.LSTM(6, return_sequences=True), layers.LSTM(6)),
    "GRU": lambda: sequence(layers.GRU(8)),
    "SimpleRNN": lambda: sequence(layers.SimpleRNN(8)),
    "Bidirectional": lambda: sequence(layers.Bidirectional(layers.LSTM(4))),
    "TimeDistributed": lambda: sequence(layers.TimeDistributed(layers.Dense(6, activation="relu")), layers.Flatten()),
    "Conv1D": lambda: sequence(layers.Conv1D(6, 3, activation="relu"), layers.MaxPooling1D(2), layers.Flatten()),
    "SeparableConv1D": lambda: sequence(layers.SeparableConv1D(6, 3, activation="relu"), layers.Flatten()),
    "DepthwiseConv1D": lambda: sequence(layers.DepthwiseConv1D(3, activation="relu"), layers.Flatten()),
    "Conv1DTranspose": lambda: sequence(layers.Conv1DTranspose(4, 3, activation="relu"), layers.Flatten()),
    "Conv2D": lambda: pictures(layers.Conv2D(4, 3, activation="relu"), layers.MaxPooling2D(2), layers.Flatten()),
    "SeparableConv2D": lambda: pictures(layers.SeparableConv2D(4, 3, activation="relu"), layers.Flatten()),
    "DepthwiseConv2D": lambda: pictures(layers.DepthwiseConv2D(3, activation="relu"), layers.Flatten()),
    "Conv2DTranspose": lambda: pictures(layers.Conv2DTranspose(2, 3, activation="relu"), layers.Flatten()),
    "LayerNormalization": lambda: sequence(layers.Dense(6), layers.LayerNormalization(), layers.Flatten()),
    "GroupNormalization": lambda: sequence(layers.Dense(6), layers.GroupNormalization(2), layers.Flatten()),
    "PReLU": lambda: sequence(layers.Dense(6), layers.PReLU(), layers.Flatten()),
    "MultiHeadAttention": attention,
    "a residual model": residual,
    "a shared layer": with_a_shared_layer,
    "a model in a model": nested,
}


def shards(model: Any) -> list[Examples]:
    """Three classes that every model above can tell apart: which third of the features is the largest."""
    rng, found = np.random.default_rng(7), []
    for size in SIZES:
        labels = rng.integers(0, 3, size).astype(np.int32)
        features = rng.normal(0, 0.3, (size, 8, 4)).astype(np.float32)
        features[np.arange(size), :, labels] += 1.5
        if model.inputs[0].dtype == "int32":
            features = (np.argmax(features, axis=2) + 1).astype(np.int32)
        found.append(Examples(features, labels))
    return found


class Round:
    """What passes between devices, storage and aggregator in one round."""

    def __init__(self, prepared: Prepared) -> None:
        self.plan, self.models, self.updates = prepared.plan, MemoryObjectStore(), MemoryObjectStore()
        digest = hashlib.sha256(prepared.version_0).hexdigest()
        self.base = ModelRef(0, "layers/0", digest, len(prepared.version_0))
        self.models.put(self.base.key, prepared.version_0)
        self.key = SealingKey.generate(ROUND)
        self.descriptor = Descriptor(
            task=ROUND.task,
            round=ROUND.number,
            plan=self.plan.model_dump(mode="json"),
            base=Model.of(self.base),
            kid=self.key.kid,
            wrapped_key=base64.b64encode(self.key.wrap(IDENTITY)).decode(),
        )

    def bring(self, device: DeviceId, update: Update) -> str:
        context = UpdateContext(
            task=ROUND.task, round=ROUND.number, device=device, plan_digest=self.plan.digest, base_sha256=self.base.sha256
        )
        body = seal(update, key=self.key.public, context=context, format=self.plan.update)
        digest = digest_of(body)
        self.updates.put(update_key(ROUND, device, digest), body)
        return digest

    def publish(self, brought: dict[DeviceId, str]) -> tuple[list[np.ndarray], RoundResult]:
        folding = Folding(self.descriptor, self.plan, self.key, self.updates)
        for device, digest in brought.items():
            folding.consider(device, digest)
        result = Publisher(self.models).publish(self.descriptor, self.plan, folding.total(brought), list(brought))
        return decode_model(self.models.get(result.model.key), self.plan), result


@pytest.mark.parametrize("name", MODELS)
def test_a_round_trains_it_and_the_aggregate_is_numpys(name: str) -> None:
    keras.utils.set_random_seed(3)
    model = MODELS[name]()
    metrics = ["accuracy", "sparse_top_k_categorical_accuracy", "sparse_categorical_crossentropy"]
    model.compile(keras.optimizers.Adam(0.02), "sparse_categorical_crossentropy", metrics=metrics)
    prepared = prepare(Task(model=model, dataset="mine", epochs=8, batch_size=8, update=codec("float32")))
    plan, learner, data = prepared.plan, KerasLearner(prepared.plan), shards(model)
    base = decode_model(prepared.version_0, plan)
    round_ = Round(prepared)
    trained, brought = [], {}
    for index, examples in enumerate(data):
        figures = learner.evaluate(base, examples)
        assert set(figures) == {"loss", *metrics}
        trained.append(learner.train(base, examples, index))
        update = Update(flatten(trained[-1]) - flatten(base), len(examples), len(examples), dict(figures))
        brought[DeviceId(f"device-{index}")] = round_.bring(DeviceId(f"device-{index}"), update)
    published, result = round_.publish(brought)
    # numpy, weight by weight, in float64
    for index, weight in enumerate(published):
        deltas = [own[index].astype(np.float64) - base[index] for own in trained]
        expected = base[index] + np.average(deltas, axis=0, weights=SIZES)
        np.testing.assert_allclose(weight, expected, rtol=1e-5, atol=1e-6)
    pooled = Examples(np.concatenate([d.features for d in data]), np.concatenate([d.labels for d in data]))
    before, after = learner.evaluate(base, pooled), learner.evaluate(published, pooled)
    assert after["loss"] < 0.8 * before["loss"]
    assert result.metrics == pytest.approx(before, rel=1e-4)  # the hold-outs scored the version that the round began with
    assert result.examples == sum(SIZES)
    # what comes out is a Keras model that says the same by itself
    back = model_of(plan)
    set_weights(back, plan, published)
    said = np.asarray(back(pooled.features))[np.arange(len(pooled)), pooled.labels]
    assert -np.log(said).mean() == pytest.approx(after["loss"], rel=1e-3)


def test_moving_statistics_are_averaged_by_examples_and_seeds_are_left_out() -> None:
    model = MODELS["BatchNormalization"]()
    model.compile("sgd", "sparse_categorical_crossentropy")
    names = [variable.path.rpartition("/")[2] for variable in plan_weights(model)]
    assert {"moving_mean", "moving_variance"} <= set(names)
    with_seeds = MODELS["Dropout"]()
    assert len(with_seeds.variables) > len(plan_weights(with_seeds))
    with_seeds.compile("sgd", "sparse_categorical_crossentropy")
    plan = prepare(Task(model=with_seeds, dataset="mine")).plan
    assert len(plan.weights) == len(get_weights(with_seeds, plan)) == 4
