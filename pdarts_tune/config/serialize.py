"""How settings are checked, read and named.

A configuration is a frozen dataclass. Types and ranges stand in its annotations and are checked whenever one is made, also by
`dataclasses.replace`. It travels as a plain dict through Ray and into the tables, and its content gives its id.
"""

import dataclasses
import hashlib
import json
import os
import typing
from collections.abc import Mapping
from functools import wraps
from pathlib import Path
from textwrap import shorten
from typing import Annotated, Any, TypeVar, dataclass_transform

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

Kind = TypeVar("Kind")

Natural = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]
# Images are taken from each class in turn, so two images are of two classes. One class gives nothing to learn.
ImageCount = Annotated[int, Field(ge=2)]


class ConfigError(ValueError):
    """A setting is wrong. The message is one line: the setting, its value, and what would be right."""


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def settings(kind: type[Kind]) -> type[Kind]:
    """Makes the class a frozen dataclass whose fields are checked. A wrong value raises ConfigError."""
    checked: Any = dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True, allow_inf_nan=False))(kind)
    validate = checked.__init__

    @wraps(validate)
    def init(self: Any, *arguments: Any, **named: Any) -> None:
        try:
            validate(self, *arguments, **named)
        except ValidationError as error:
            raise ConfigError(_explain(error, checked)) from None

    checked.__init__ = init
    return typing.cast(type[Kind], checked)


def later(default: Any) -> Any:
    """A field that joined after the first results were written. Ids count it only where it differs from its default."""
    return dataclasses.field(default=default, metadata={"later": True})


def to_dict(config: Any) -> dict[str, Any]:
    """A JSON-safe dict of a configuration: nested dataclasses become dicts, tuples become lists."""
    plain = json.loads(json.dumps(dataclasses.asdict(config), allow_nan=False))
    assert isinstance(plain, dict)
    return plain


def from_dict(kind: type[Kind], values: Mapping[str, Any], where: str = "") -> Kind:
    """The configuration that `to_dict` wrote. Missing keys take their defaults.

    Raises:
        ConfigError: an unknown key, a missing key without a default, a wrong type or a value out of range. The message begins with
            `where` and the setting.
    """
    try:
        return TypeAdapter(kind).validate_json(json.dumps(values))  # strict JSON still reads lists as tuples
    except ValidationError as error:
        raise ConfigError(where + _explain(error, kind)) from None


def _explain(error: ValidationError, kind: Any) -> str:
    """The first error in one line: the path of the setting, its value, and what would be right."""
    first = error.errors(include_url=False)[0]
    path, owner = "", kind
    for part in first["loc"]:
        if typing.get_origin(kind) is Annotated:
            kind = typing.get_args(kind)[0]
        if dataclasses.is_dataclass(kind):
            owner = kind
            name = dataclasses.fields(kind)[part].name if isinstance(part, int) else part  # a positional argument
            path += f".{name}" if path else name
            kind = typing.get_type_hints(kind, include_extras=True).get(name)
        elif isinstance(part, int):
            path += f"[{part}]"
            kinds = typing.get_args(kind)
            kind = kinds[0] if kinds[-1] is Ellipsis else kinds[part]
        else:  # one of several dataclasses, by its name
            kind = next(choice for choice in typing.get_args(kind) if choice.name == part)
    match first["type"]:
        case "value_error":  # from __post_init__, begins with the name of the setting
            return f"{path}." * bool(path) + " ".join(str(first["ctx"]["error"]).split())
        case "unexpected_keyword_argument":
            names = ", ".join(field.name for field in dataclasses.fields(owner))
            return f"{path}: unknown setting of {owner.__name__}, known are {names}"
        case "missing" | "missing_argument":
            return f"{path}: is missing"
    bare = typing.get_args(kind)[0] if typing.get_origin(kind) is Annotated else kind
    if choices := [choice.name for choice in typing.get_args(bare) if hasattr(choice, "name")]:
        right = f"settings with a name, one of {', '.join(choices)}"
    elif isinstance(bare, type) and dataclasses.is_dataclass(bare):
        right = f"settings of {bare.__name__}"
    elif first["type"] in ("tuple_type", "finite_number", "space", "latencies"):
        right = first["msg"].removeprefix("Input should be ").replace("valid array", "list")
    else:
        right = _in_words(TypeAdapter(kind).json_schema())
    return f"{path or kind.__name__}: {shorten(repr(first['input']), 100)} is wrong, it must be {right}"


def _in_words(schema: Mapping[str, Any]) -> str:
    """The type and the range of one value, from its JSON schema."""
    least, most, above = schema.get("minimum"), schema.get("maximum"), schema.get("exclusiveMinimum")
    match schema:
        case {"anyOf": choices}:
            return " or ".join(map(_in_words, choices))
        case {"enum": values}:
            return " or ".join((", ".join(map(repr, values[:-1])), repr(values[-1])))
        case {"maxItems": count}:
            return f"{count} values"
        case {"type": "integer"}:
            return "a whole number" + (f" of at least {least}" if most is None else f" from {least} to {most}")
        case {"type": "number", "exclusiveMaximum": end}:
            return f"a number in [{least:g}, {end:g})"
        case {"type": "number"} if most is not None:
            return f"a number from {least:g} to {most:g}"
        case {"type": "number"}:
            return f"a number of more than {above:g}" if least is None else f"a number of at least {least:g}"
    text = "a text, not empty" if "minLength" in schema else "a text"
    return {"boolean": "True or False", "null": "None", "string": text}[schema["type"]]


def content(value: Any) -> Any:
    """What an id counts of a value: all settings of a dataclass but those that joined later and have their default.

    A field whose default has a new name says in its metadata, as `id`, the name that ids go on to count.
    """
    if dataclasses.is_dataclass(value):
        fields = ((field, getattr(value, field.name)) for field in dataclasses.fields(value))
        return {
            field.name: field.metadata["id"] if "id" in field.metadata and part == field.default else content(part)
            for field, part in fields
            if not (field.metadata.get("later") and part == field.default)
        }
    return [content(part) for part in value] if isinstance(value, list | tuple) else value


def content_id(value: Any) -> str:
    """Twelve hex digits that name a JSON-safe value by its content."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def config_id(config: Any) -> str:
    """Twelve hex digits that name a configuration by its content, seeds included."""
    return content_id(content(config))


def derive_seed(seed: int, purpose: str) -> int:
    """A seed of its own for each purpose, so that draws for one purpose never shift the draws for another."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:7])


def absolute_name(name: str) -> str:
    """The name of a data set with the whole path, for processes in other folders: `parquet:/home/me/cifar10`.

    Links are not resolved, because they may lead elsewhere on another node of a cluster.
    """
    kind, colon, path = name.partition(":")
    return f"{kind}:{os.path.normpath(Path(path).expanduser().absolute())}" if colon and path else name


def short_name(name: str) -> str:
    """The name of a data set without the folders above its files, as published tables have it: `parquet:cifar10`."""
    kind, colon, path = name.partition(":")
    return f"{kind}:{Path(path).name}" if colon and path else name
