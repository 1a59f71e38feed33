"""From typed structs to structural OpenAPI schemas as CRDs hold them. Pure; knows nothing of this API in particular."""

import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from penstock.operator.rules import Rule

Schema = dict[str, Any]
Rules = Mapping[type[Struct], tuple[Rule, ...]]

_KEYWORDS = {
    "description": "description",
    "ge": "minimum",
    "le": "maximum",
    "min_length": "minLength",
    "max_length": "maxLength",
    "pattern": "pattern",
}
_LENGTH_OF = {"array": ("minItems", "maxItems"), "object": ("minProperties", "maxProperties")}
_SCALARS = {str: "string", int: "integer", float: "number", bool: "boolean"}


def schema_of(kind: Any, rules: Rules) -> Schema:
    """The schema of a type made of structs, Annotated, Literal, Optional, list and dict."""
    metas: list[Meta] = []
    while typing.get_origin(kind) is Annotated:
        kind, *annotations = typing.get_args(kind)
        metas[:0] = [meta for meta in annotations if isinstance(meta, Meta)]
    schema = _bare(kind, rules)
    for meta in metas:
        _annotate(schema, meta)
    return schema


def _bare(kind: Any, rules: Rules) -> Schema:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind in _SCALARS:
        return {"type": _SCALARS[kind]}
    if origin is Literal:
        return {"type": "string", "enum": list(args)}
    if origin in (types.UnionType, typing.Union):
        inner = [arg for arg in args if arg is not types.NoneType]
        return schema_of(inner[0], rules) if len(inner) == 1 else {}  # int or string: said by its Meta
    if origin is list:
        return {"type": "array", "items": schema_of(args[0], rules)}
    if origin is dict:
        return {"type": "object"} | ({} if args[1] is Any else {"additionalProperties": schema_of(args[1], rules)})
    if isinstance(kind, type) and issubclass(kind, Struct):
        return _struct(kind, rules)
    raise TypeError(f"no schema for {kind}")


def _struct(kind: type[Struct], rules: Rules) -> Schema:
    properties: dict[str, Schema] = {}
    required = []
    hints = typing.get_type_hints(kind, include_extras=True)
    for member in msgspec.structs.fields(kind):
        schema = properties[member.encode_name] = schema_of(hints[member.name], rules)
        default = member.default if member.default_factory is msgspec.NODEFAULT else member.default_factory()
        if default is msgspec.NODEFAULT:
            required.append(member.encode_name)
        elif default is not None:
            schema["default"] = _without_nulls(msgspec.to_builtins(default))
    schema = {"type": "object", "description": _first_paragraph(kind), "properties": properties}
    if required:
        schema["required"] = required
    if kind in rules:
        schema["x-kubernetes-validations"] = [rule.to_schema() for rule in rules[kind]]
    return schema


def _annotate(schema: Schema, meta: Meta) -> None:
    kind = schema.get("type")
    for attribute, keyword in _KEYWORDS.items():
        value = getattr(meta, attribute)
        if value is None:
            continue
        if attribute in ("min_length", "max_length") and kind in _LENGTH_OF:
            keyword = _LENGTH_OF[kind][attribute == "max_length"]
        schema[keyword] = value
    schema.update(meta.extra_json_schema or {})


def _first_paragraph(kind: type[Struct]) -> str:
    return " ".join((kind.__doc__ or "").split("\n\n")[0].split())


def _without_nulls(value: Any) -> Any:
    """A default must fit its own schema, in which nothing is nullable."""
    if isinstance(value, dict):
        return {key: _without_nulls(part) for key, part in value.items() if part is not None}
    return value


def without_defaults(schema: Schema) -> Schema:
    """The same for a status, where a default would look like something that was observed."""
    cleaned = {key: value for key, value in schema.items() if key != "default"}
    if "properties" in cleaned:
        cleaned["properties"] = {name: without_defaults(part) for name, part in cleaned["properties"].items()}
    if "items" in cleaned:
        cleaned["items"] = without_defaults(cleaned["items"])
    return cleaned
