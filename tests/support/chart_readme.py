"""Writes the values into charts/fedlearn/README.md, from schema and defaults: `python tests/support/chart_readme.py`."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parents[2] / "charts" / "fedlearn"
README = CHART / "README.md"
_MARK = "<!-- From here on written by tests/support/chart_readme.py from values.schema.json and values.yaml. -->"
_HEAD = ("| value | meaning | allowed | default |", "|---|---|---|---|")
_SHARED = {"pod": "see [pod](#pod)", "addresses": "see [addresses](#addresses)"}


def generated() -> str:
    """The whole page: what a person wrote above the mark, and the values below it."""
    written, _, _ = README.read_text().partition(_MARK)
    schema = json.loads((CHART / "values.schema.json").read_text())
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    groups: dict[str, list[str]] = {}
    for path, node in _values(schema, schema["$defs"]):
        groups.setdefault(path.split(".")[0] if "." in path else "Everywhere", []).append(
            _row(f"`{path}`", node, _default(defaults, path))
        )
    sections = [f"{written}{_MARK}\n"]
    for group, rows in groups.items():
        sections.append("\n".join([f"### {group}\n", *_HEAD, *rows, ""]))
    for name in _SHARED:
        shared = schema["$defs"][name]["properties"]
        sections.append(
            "\n".join([f"### {name}\n", *_HEAD, *(_row(f"`…{name}.{key}`", node, "") for key, node in shared.items()), ""])
        )
    return "\n".join(sections)


def _values(node: Mapping[str, Any], shared: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, child in node["properties"].items():
        here = f"{path}.{name}" if path else name
        if "properties" in child:
            yield from _values(child, shared, here)
        elif name != "global":
            kind = child.get("$ref", "").rpartition("/")[2]
            yield here, {**shared.get(kind, {}), **child, "shared": kind}


def _row(name: str, node: Mapping[str, Any], default: str) -> str:
    return f"| {name} | {node['description']} | {_allowed(node)} | {default} |"


def _allowed(node: Mapping[str, Any]) -> str:
    if (kind := node.get("shared")) in _SHARED:
        return _SHARED[str(kind)]
    if "const" in node:
        return f"{node['const']}"
    if "enum" in node:
        return ", ".join(f"`{choice}`" if choice else "empty" for choice in node["enum"])
    kinds = node["type"] if isinstance(node["type"], list) else [node["type"]]
    bounds = [f"{word} {node[key]:,}" for key, word in _BOUNDS.items() if key in node]
    return " ".join([" or ".join(_KINDS.get(kind, kind) for kind in kinds), *bounds])


_KINDS = {"string": "text", "boolean": "true or false", "object": "map", "array": "list"}
_BOUNDS = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}


def _default(defaults: Mapping[str, Any], path: str) -> str:
    found: Any = defaults
    for name in path.split("."):
        found = found[name]
    if found in ("", {}, []) or (isinstance(found, dict) and not any(found.values())):
        return ""
    return f"`{json.dumps(found, ensure_ascii=False)}`" if not isinstance(found, str) else f"`{found}`"


if __name__ == "__main__":
    README.write_text(generated())
