import numpy as np

from fedlearn.data.holdings import holdings_of


def test_labels_are_counted_by_device_and_class() -> None:
    held = holdings_of({"0": np.array([3, 3, 7]), "1": np.array([], np.uint8), "b": np.array([7, 9], np.int64)})
    assert (held.devices, held.classes) == (("0", "1", "b"), (3, 7, 9))
    assert held.counts.tolist() == [[2, 1, 0], [0, 0, 0], [0, 1, 1]]
    assert held.totals.tolist() == [3, 0, 2]


def test_targets_that_are_no_classes_are_counted_alone() -> None:
    held = holdings_of({"0": np.array([0.5, 1.5], np.float32), "1": np.array([2.0], np.float32)})
    assert (held.classes, held.counts.tolist()) == ((), [[2], [1]])
