"""A table: is a tumour benign? 569 patients with 30 measurements each (Wolberg, Street and Mangasarian 1995), in five clinics
that see different patients. No clinic tells its means: the first layer learns to scale, and its statistics are averaged.
"""

import csv
from collections.abc import Iterator

import keras
import numpy as np

import common
import fedlearn

FILE = "sklearn/datasets/data/breast_cancer.csv"
DIGEST = "835aa1369e6090aed16198a798c6f80c0402268c7a4d253f53895306e3043d72"


def task() -> fedlearn.Task:
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((30,)),
            keras.layers.BatchNormalization(momentum=0.9),
            keras.layers.Dense(16, activation="relu"),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(1, activation="sigmoid"),
        ],
        name="tumours",
    )
    model.compile(keras.optimizers.Adam(0.005), "binary_crossentropy", metrics=["accuracy", "mean_squared_error"])
    return fedlearn.Task(
        name="breast-cancer",
        model=model,
        dataset="breast-cancer",
        rounds=15,
        epochs=4,
        batch_size=8,
        policy=fedlearn.Policy(goal=5),
    )


def table() -> fedlearn.Examples:
    """All patients, in an order of their own; 1 is benign."""
    lines = common.package_files("scikit-learn", FILE, DIGEST)[FILE].decode().splitlines()
    rows = np.array([[float(cell) for cell in row] for row in csv.reader(lines[1:])], np.float32)
    rows = rows[np.random.default_rng(0).permutation(len(rows))]
    return fedlearn.Examples(rows[:, :-1], rows[:, -1].astype(np.int32))


TESTED = 114


def shards(devices: int, most: int | None) -> Iterator[fedlearn.Shard]:
    everyone = table()
    last = TESTED + devices * (most or len(everyone))
    ours = fedlearn.Examples(everyone.features[TESTED:last], everyone.labels[TESTED:last])
    divided = fedlearn.make_partitioner("dirichlet", devices, alpha=1.0, min_partition_size=5)
    return fedlearn.cut_shards(ours, divided, np.random.default_rng(0), holdout_fraction=0.2)


def test() -> fedlearn.Examples:
    everyone = table()
    return fedlearn.Examples(everyone.features[:TESTED], everyone.labels[:TESTED])


if __name__ == "__main__":
    common.main(task=task, shards=shards, test=test)
