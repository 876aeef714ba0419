"""What a validation has found, in plain words. It takes pydantic's errors as the mappings that they are."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

Where = Callable[[tuple[int | str, ...]], str]
_BOUNDS = {"greater_than": ("gt", "above"), "greater_than_equal": ("ge", "at least"),
           "less_than": ("lt", "below"), "less_than_equal": ("le", "at most")}  # fmt: skip
_KINDS = {"int": "a whole number", "float": "a number", "finite": "a number", "bool": "true or false", "string": "text"}


def dotted(location: tuple[int | str, ...]) -> str:
    """Where a fault is, as `training.learning_rate`."""
    return ".".join(map(str, location))


def describe(error: Mapping[str, Any], where: Where = dotted) -> str:
    """One fault as a part of a sentence, with neither a capital letter nor a full stop of its own.

    Args:
        error: one of `ValidationError.errors()`.
        where: says a location, never an empty one.
    """
    kind, location, context = str(error["type"]), tuple(error["loc"]), error.get("ctx", {})
    if kind == "extra_forbidden":
        return f"{where(location[:-1])} has no field {location[-1]}" if location[:-1] else f"there is no field {location[-1]}"
    if kind == "union_tag_invalid":
        named = _bare(context["discriminator"])
        noun = location[-1] if named == "name" and location else named
        place = f"{where(location)}: " if location[1:] else ""
        return f"{place}there is no {noun} {context['tag']!r}: use {_bare(context['expected_tags'])}"
    if kind == "value_error":
        told = str(error["msg"]).removeprefix("Value error, ")
        return f"{where(location)}: {told}" if location else told
    told = "is missing" if kind == "missing" else f"must {_demand(kind, context, error)}"
    return f"{where(location)} {told}" if location else f"it {told}"


def describe_all(errors: Iterable[Mapping[str, Any]], where: Where = dotted) -> str:
    """All of them, by semicolons."""
    return "; ".join(describe(error, where) for error in errors)


def _demand(kind: str, context: Mapping[str, Any], error: Mapping[str, Any]) -> str:
    if kind in _BOUNDS:
        limit, words = _BOUNDS[kind]
        given, bound = error.get("input"), context[limit]
        if given != given:  # noqa: PLR0124 - of all values only NaN differs from itself
            return "be a number"
        return f"be {words} {bound:g}" if isinstance(bound, float) else f"be {words} {bound}"
    if kind == "literal_error":
        return f"be {_bare(context['expected'])}"
    if (of := kind.partition("_")[0]) in _KINDS and kind.endswith(("_parsing", "_type", "_from_float", "finite_number")):
        return f"be {_KINDS[of]}"
    return re.sub(r"^.*?should (not )?", lambda found: found[1] or "", str(error["msg"]), count=1)


def _bare(names: object) -> str:
    return str(names).replace("'", "")
