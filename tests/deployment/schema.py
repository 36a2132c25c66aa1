"""Validates by a structural schema as strictly as Kubernetes' API server with `fieldValidation: Strict`.

Defaults are filled in. An unknown key, which the API server drops silently by default, is an error.
"""

import re
from typing import Any

TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
}


def check(schema: dict[str, Any], value: Any, path: str = "") -> list[str]:
    """Return the errors of a value, one line each; fills the schema's defaults into it."""
    if value is None:
        return [] if schema.get("nullable") else [f"{path}: empty"]
    if schema.get("x-kubernetes-int-or-string"):
        if isinstance(value, bool) or not isinstance(value, int | str):
            return [f"{path}: {value!r} is neither an integer nor text"]
        return _check_text(schema, value, path) if isinstance(value, str) else []
    kind = schema.get("type")
    if kind and (not isinstance(value, TYPES[kind]) or (isinstance(value, bool) and kind != "boolean")):
        return [f"{path}: {value!r} is not of type {kind}"]
    found = []
    if isinstance(value, dict):
        found = _check_object(schema, value, path)
    elif isinstance(value, list):
        found = _check_list(schema, value, path)
    elif isinstance(value, str):
        found = _check_text(schema, value, path)
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{path}: {value!r} is not one of {schema['enum']}")
    if "minimum" in schema and value < schema["minimum"]:
        found.append(f"{path}: {value} is below {schema['minimum']}")
    # CEL rules are not evaluated here. A new object cannot violate a rule about the change of a value.
    rules = [rule["rule"] for rule in schema.get("x-kubernetes-validations", []) if "oldSelf" not in rule["rule"]]
    return found + [f"{path}: has a rule that only a cluster can check: {rule}" for rule in rules]


def _check_object(schema: dict[str, Any], value: dict[str, Any], path: str) -> list[str]:
    known = schema.get("properties", {})
    for key, field in known.items():
        if "default" in field:
            value.setdefault(key, field["default"])
    found = [f"{path}.{key}: missing" for key in schema.get("required", []) if key not in value]
    others = schema.get("additionalProperties")
    # A schema without properties, as for metadata, accepts any key.
    free = (
        schema.get("x-kubernetes-preserve-unknown-fields")
        or others is True
        or ("properties" not in schema and not others)
    )
    for key, entry in value.items():
        if key in known:
            found += check(known[key], entry, f"{path}.{key}")
        elif isinstance(others, dict):
            found += check(others, entry, f"{path}.{key}")
        elif not free:
            found.append(f"{path}.{key}: unknown key")
    return found


def _check_list(schema: dict[str, Any], value: list[Any], path: str) -> list[str]:
    found = [line for number, entry in enumerate(value) for line in check(schema["items"], entry, f"{path}[{number}]")]
    if len(value) < schema.get("minItems", 0):
        found.append(f"{path}: fewer than {schema['minItems']} entries")
    if keys := schema.get("x-kubernetes-list-map-keys"):
        names = [tuple(entry.get(key) for key in keys) for entry in value if isinstance(entry, dict)]
        duplicates = sorted({str(name) for name in names if names.count(name) > 1})
        found += [f"{path}: {name} is not unique" for name in duplicates]
    return found


def _check_text(schema: dict[str, Any], value: str, path: str) -> list[str]:
    if "pattern" in schema and not re.search(schema["pattern"], value):
        return [f"{path}: {value!r} does not match {schema['pattern']}"]
    if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
        return [f"{path}: {value!r} is too short or too long"]
    return []
