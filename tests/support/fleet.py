"""Real devices, with Keras, over shards of a test's own."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedlearn.local.ports import free_port
from fedlearn.local.processes import Service, start_program
from support.world import World


@contextmanager
def devices(
    world: World, shards: Path, dataset: str, count: int, *, processes: int = 1, first: int = 0
) -> Iterator[list[Service]]:
    """`count` devices whose shards lie in `shards/0`, `shards/1`, …, in so many processes of names of their own."""
    started, begin = [], 0
    for index in range(processes):
        share = count // processes + (index < count % processes)
        environment = world.deployment.device(
            first + index, port=free_port(), shards=shards, first_shard=begin, count=share, dataset=dataset, seed=0
        )
        log = world.deployment.directory / f"device-{first + index}.log"
        started.append(start_program(f"device-{first + index}", ["device"], environment, log))
        begin += share
    try:
        yield started
    finally:
        for service in started:
            service.process.terminate(10.0)
