"""Devices on data of the user's own: a claim with a directory for each, or a claim for each."""

from collections.abc import Mapping
from typing import Any

import pytest

from fedlearn import __version__
from support.release import NAME, Cluster, Release, restricted_pod

DEVICES = 3


@pytest.fixture(params=["directory", "claims"])
def values(request: pytest.FixtureRequest, cluster: Cluster, namespace: str) -> Mapping[str, Any]:
    """Values for data that somebody has put there before the chart came."""
    data = {"source": request.param, "path": "hospitals"}
    if request.param == "directory":
        data["existingClaim"] = "everybody-s"
        _put(cluster, namespace, {"everybody-s": range(DEVICES)}, "hospitals/{index}")
    else:
        _put(cluster, namespace, {f"data-{NAME}-device-{index}": [index] for index in range(DEVICES)}, "hospitals")
    # no TensorFlow: it is about whose shard is where
    return {"device": {"learner": "synthetic", "data": data}, "evaluator": {"enabled": False}, "task": {"name": request.param}}


def test_take_part_with_their_own_shard(bare: Release, values: Mapping[str, Any]) -> None:
    bare.task = values["task"]["name"]
    bare.install(values)
    bare.wait_for_versions(1)
    bare.wait_until_ready("device", DEVICES)
    assert {d.device: d.examples for d in bare.fleet().devices} == {
        f"{NAME}-device-{index}": 18_000 for index in range(DEVICES)
    }
    bare.uninstall()


def _put(cluster: Cluster, namespace: str, shards: Mapping[str, Any], place: str) -> None:
    """Cut shards of MNIST onto claims of these names, at a place that may depend on the index."""
    for claim, indices in shards.items():
        spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
        cluster.core.create_namespaced_persistent_volume_claim(namespace, {"metadata": {"name": claim}, "spec": spec})
        cuts = [
            f"fedlearn data shard --shards {DEVICES} --index {index} --out /data/{place.format(index=index)}"
            for index in indices
        ]
        volume = {"name": "data", "persistentVolumeClaim": {"claimName": claim}}
        command = ["sh", "-ec", "; ".join(cuts)]
        cluster.run(namespace, restricted_pod(f"fedlearn-device:{__version__}", command, volume, "/data"))
