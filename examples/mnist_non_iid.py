"""MNIST, very unevenly divided: each device has only two of the ten digits (McMahan et al. 2017 call it pathological)."""

from collections.abc import Iterator

import keras
import numpy as np

import common
import fedlearn


def task() -> fedlearn.Task:
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Conv2D(16, 5, activation="relu"),
            keras.layers.MaxPooling2D(2),
            keras.layers.Conv2D(32, 5, activation="relu"),
            keras.layers.MaxPooling2D(2),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ],
        name="cnn",
    )
    model.compile(keras.optimizers.SGD(0.05), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return fedlearn.Task(
        name="mnist-non-iid",
        model=model,
        dataset="mnist-non-iid",
        rounds=20,
        batch_size=20,
        policy=fedlearn.Policy(goal=10),
    )


def shards(devices: int, most: int | None) -> Iterator[fedlearn.Shard]:
    train = fedlearn.find_dataset("mnist").train
    if most is not None:
        train = fedlearn.Examples(train.features[: devices * most], train.labels[: devices * most])
    divided = fedlearn.make_partitioner("pathological", devices, num_classes_per_partition=max(2, -(-10 // devices)))
    return fedlearn.cut_shards(train, divided, np.random.default_rng(0))


def test() -> fedlearn.Examples:
    return fedlearn.find_dataset("mnist").test


if __name__ == "__main__":
    common.main(task=task, shards=shards, test=test)
