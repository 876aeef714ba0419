"""Writes docs/settings.md from the fields of `fedlearn.config`: `python tests/support/settings_page.py`."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from fedlearn import config

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"
SERVICES: dict[str, type[BaseModel]] = {
    "fedlearn server": config.ServerSettings,
    "fedlearn aggregator": config.AggregatorSettings,
    "fedlearn device": config.DeviceSettings,
    "fedlearn evaluator": config.EvaluatorSettings,
}
GROUPS: dict[str, type[BaseModel]] = {
    "storage": config.StorageSettings,
    "identity": config.IdentitySettings,
    "cluster": config.ClusterSettings,
    "replica": config.ReplicaSettings,
    "limits": config.LimitSettings,
}
_COMMON = ("host", "log_level", "limits")
_KINDS: dict[Any, str] = {
    int: "integer",
    float: "number",
    str: "text",
    bool: "true or false",
    Path: "path",
    SecretStr: "secret text",
}
_BOUNDS = {"ge": "from {}", "gt": "above {}", "le": "to {}", "lt": "below {}", "min_length": "not empty"}
_HEAD = ("| setting | environment variable | meaning | values | default |", "|---|---|---|---|---|")
_INTRODUCTION = """# Settings

<!-- Written by tests/support/settings_page.py from services/fedlearn/config.py; a test fails when they differ. -->

Services read their settings from environment variables, check all of them at their start, and end with one sentence that
names every faulty one. A group's settings have `__` in their variable's name; a whole group may also be given as JSON
(`FEDLEARN_IDENTITY='{"mode": "jwks", "jwks": "/etc/fedlearn/keys.json"}'`). A variable that a service does not know is
ignored; one that a group does not know is refused.

The options of `fedlearn run` are no settings: `fedlearn run --help` lists them, and the launcher makes each service's settings.
"""


def page() -> str:
    """The whole page."""
    sections = [_INTRODUCTION, *(_section(f"`{name}`", kind, skip=_COMMON) for name, kind in SERVICES.items())]
    sections.append(_section("Every service", config.ServerSettings, only=_COMMON, note="What all of them have in common."))
    for name, group in GROUPS.items():
        users = " and ".join(f"`{service}`" for service, kind in SERVICES.items() if name in kind.model_fields)
        sections.append(_section(f"The group `{name}`", group, prefix=name, note=f"{_first_line(group)} For {users}."))
    return "\n".join(sections)


def _section(
    title: str, kind: type[BaseModel], *, prefix: str = "", note: str = "", skip: Iterable[str] = (), only: Iterable[str] = ()
) -> str:
    lines = [f"## {title}", "", note or _first_line(kind), "", *_HEAD]
    for name, field in kind.model_fields.items():
        if name not in skip and (not only or name in only):
            lines.append(_row(f"{prefix}.{name}" if prefix else name, field))
    return "\n".join([*lines, ""])


def _row(name: str, field: FieldInfo) -> str:
    variable = "FEDLEARN_" + name.replace(".", "__").upper()
    if name in GROUPS:
        meaning = field.description or _first_line(GROUPS[name])
        return f"| `{name}` | `{variable}__…` | {meaning} | see below | {_group_default(field)} |"
    return f"| `{name}` | `{variable}` | {field.description} | {_values(name, field)} | {_default(field)} |"


def _values(name: str, field: FieldInfo) -> str:
    annotation = field.annotation
    if get_origin(annotation) in (Union, UnionType):
        annotation = next(part for part in get_args(annotation) if part is not NoneType)
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    kind = _KINDS[annotation]
    if name.endswith("_seconds"):
        kind = {"integer": "whole seconds", "number": "seconds"}[kind]
    return " ".join([kind, *_bounds(field.metadata)])


def _bounds(metadata: Iterable[Any]) -> Iterator[str]:
    for name, words in _BOUNDS.items():
        for constraint in metadata:
            if (bound := getattr(constraint, name, None)) is not None:
                yield words.format(f"{bound:,}" if bound > 9999 else bound)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    return "none" if field.default is None else f"`{field.default}`"


def _group_default(field: FieldInfo) -> str:
    """A group that may be left out has its settings' own defaults."""
    return "required" if field.is_required() else "see below"


def _first_line(kind: type[BaseModel]) -> str:
    return (kind.__doc__ or "").strip().splitlines()[0]


if __name__ == "__main__":
    PAGE.write_text(page())
