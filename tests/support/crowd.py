"""Device processes beside a test's world: real ones, with the synthetic learner and small shards."""

import numpy as np

from fedlearn.core.learning import Examples, Shard
from fedlearn.data.shards import write_shard
from fedlearn.local.ports import free_port
from fedlearn.local.processes import Service, start_program
from support.world import World


def write_shards(world: World, count: int, *, seed: int = 0) -> None:
    """Shards 0 to `count` - 1, of a few labels and some 40 to 400 examples each."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        share = rng.dirichlet(np.full(10, 0.4))
        train, holdout = (_examples(rng, share, size) for size in (int(rng.integers(40, 400)), 10))
        write_shard(world.deployment.directory / "shards" / str(index), Shard(train, holdout))


def start_devices(world: World, dataset: str, *, first: int = 0, count: int = 5, index: int = 0, **settings: str) -> Service:
    """A process that hosts `count` devices from shard `first` on."""
    environment = world.deployment.device(
        index,
        port=free_port(),
        shards=world.deployment.directory / "shards",
        first_shard=first,
        count=count,
        dataset=dataset,
        seed=index,
    )
    log = world.deployment.directory / f"device-{index}.log"
    learner = {"FEDLEARN_LEARNER": "synthetic"}
    return world.services.add(start_program(f"device-{index}", ["device"], {**environment, **learner, **settings}, log))


def _examples(rng: np.random.Generator, share: np.ndarray, size: int) -> Examples:
    labels = rng.choice(10, size, p=share).astype(np.uint8)
    return Examples(rng.integers(0, 255, (size, 28, 28), dtype=np.uint8), labels)
