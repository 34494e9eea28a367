"""docs/reference/bundle.md: every key of bundle.json, from its JSON schema."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from compactmtl.export.script import SCHEMA, source

INTRO = """\
`bundle.json` says all that a program needs to run a bundle's model, and where the model came from. This page is written from its JSON
schema, which lies in every bundle as `bundle.schema.json` and in the package as `compactmtl/export/in_bundle/bundle.schema.json`.
[Deploy a bundle](../how-to/deploy.md) shows how to use it; [file formats](files.md#versions) says how older ones are read.

A program reads `model`, `inputs`, `outputs` and `golden`. The rest is provenance and what compactmtl itself reads.
"""
_WORDS = {
    "integer": "integer",
    "number": "number",
    "string": "text",
    "boolean": "true or false",
    "null": "null",
    "object": "section",
}


def bundle_page() -> str:
    """The page: one table for the file, then one for each section."""
    schema = json.loads(source(SCHEMA))
    definitions: dict[str, Any] = schema["$defs"]
    lines = ["# bundle.json", "", INTRO, *_table(schema)]
    for name, where in _places(schema, definitions):
        lines += [f"## `{where}`", "", " ".join(definitions[name]["description"].split()), ""]
        lines += _table(definitions[name])
    return "\n".join(lines)


def _places(schema: Any, definitions: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Every definition with the key that it stands at, in the order of the file."""
    seen: set[str] = set()

    def walk(part: Any, prefix: str) -> Iterator[tuple[str, str]]:
        for key, value in part.get("properties", {}).items():
            for name, suffix in _references(value):
                where = f"{prefix}{key}{suffix}"
                if name not in seen:
                    seen.add(name)
                    yield name, where
                    yield from walk(definitions[name], f"{where}.")

    yield from walk(schema, "")


def _references(value: Any, suffix: str = "") -> Iterator[tuple[str, str]]:
    """The definitions that a key's value is of: `[]` stands for each item of a list, `*` for each name."""
    if "$ref" in value:
        yield value["$ref"].rpartition("/")[2], suffix
    for choice in value.get("anyOf", ()):
        yield from _references(choice, suffix)
    if "items" in value:
        yield from _references(value["items"], f"{suffix}[]")
    if isinstance(value.get("additionalProperties"), dict):
        yield from _references(value["additionalProperties"], f"{suffix}.*")


def _table(part: Any) -> Iterator[str]:
    yield from ("| key | type | meaning |", "| --- | --- | --- |")
    for key, value in part["properties"].items():
        text = value.get("description", "").replace("|", "\\|").replace("\n", " ")
        yield f"| `{key}` | {_type(value)} | {text} |"
    yield ""


def _type(value: Any) -> str:
    """A type in words."""
    if "anyOf" in value:
        return " or ".join(dict.fromkeys(map(_type, value["anyOf"])))
    if "enum" in value:
        return ", ".join(f"`{one}`" for one in value["enum"])
    if "const" in value:
        return f"`{json.dumps(value['const'])}`"
    if "$ref" in value:
        return "section"
    kind = value.get("type", "any value")
    if isinstance(kind, list):
        return " or ".join(_WORDS[one] for one in kind)
    if kind == "array":
        items = value.get("items") or value["prefixItems"][0]
        count = f"{len(value['prefixItems'])} " if "prefixItems" in value else ""
        return f"list: {count}{_type(items)}"
    if isinstance(value.get("additionalProperties"), dict):
        return f"by name: {_type(value['additionalProperties'])}"
    return str(_WORDS.get(kind, kind))
