"""What a device offers of itself, what a task demands, and whether the one meets the other (Bonawitz et al. 2019)."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Conditions:
    """How a device is at the moment. A machine in a rack is idle, charging and unmetered all the time.

    Args:
        free_memory_bytes: None where it is not known.
    """

    idle: bool = True
    charging: bool = True
    unmetered: bool = True
    free_memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Demands:
    """What a task wants of a device; nothing, unless it says so.

    Args:
        min_free_memory_bytes: a device that does not know its free memory meets 0 alone.
        min_examples: the least that its shard trains on.
        runtime: a text that the device's runtime contains, such as "Keras 3.".
    """

    idle: bool = False
    charging: bool = False
    unmetered: bool = False
    min_free_memory_bytes: int = 0
    min_examples: int = 0
    runtime: str = ""


def shortfall(demands: Demands, conditions: Conditions, examples: int, runtime: str) -> str | None:
    """The first demand that such a device does not meet, in words; None for an eligible one."""
    for wanted, has, words in (
        (demands.idle, conditions.idle, "The device is not idle."),
        (demands.charging, conditions.charging, "The device is not charging."),
        (demands.unmetered, conditions.unmetered, "The device's network is metered."),
    ):
        if wanted and not has:
            return words
    if (conditions.free_memory_bytes or 0) < demands.min_free_memory_bytes:
        return f"Less than {demands.min_free_memory_bytes} bytes of memory are free."
    if examples < demands.min_examples:
        return f"The shard trains on fewer than {demands.min_examples} examples."
    if demands.runtime not in runtime:
        return f"The runtime is not {demands.runtime!r}."
    return None
