"""Names of data sets that say where their files are: `parquet:PATH` and `folder:PATH`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import types
import typing
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, TypeVar


class ConfigError(ValueError):
    """A setting is wrong. The message is one line: what was wrong, where, and what would be right."""


def _later(default: Any) -> Any:
    """A setting that joined after the first results were written."""
    return field(default=default, metadata={"later": True})


def _require(condition: bool, name: str, value: object, right: str) -> None:
    if not condition:
        raise ConfigError(f"{name}: {value!r} is wrong, it must be {right}")


def _check_common(config: Any) -> None:
    for name in ("train_images", "test_images"):
        count = getattr(config, name)
        # Classes take turns in what is taken, so that two images are of two classes. Of one there is nothing to learn.
        _require(count is None or count >= 2, name, count, "at least 2, or nothing for all")
    for name in ("channels", "batch_size"):
        _require(getattr(config, name) >= 1, name, getattr(config, name), "at least 1")
    for name in ("learning_rate", "gradient_clip"):
        _require(getattr(config, name) > 0, name, getattr(config, name), "more than 0")
    _require(config.weight_decay >= 0, "weight_decay", config.weight_decay, "at least 0")
    size = config.image_size
    _require(size is None or size >= 1, "image_size", size, "at least 1, or nothing")


Config = TypeVar("Config")


def to_dict(config: Any) -> dict[str, Any]:
    """A JSON-safe dict of a configuration: nested dataclasses become dicts, tuples become lists."""
    plain = json.loads(json.dumps(dataclasses.asdict(config), allow_nan=False))
    assert isinstance(plain, dict)
    return plain


def from_dict(kind: type[Config], values: Mapping[str, Any]) -> Config:
    """The configuration that `to_dict` wrote; missing keys take their defaults.

    Raises:
        ConfigError: an unknown key, a missing key without a default, a wrong type or a value out of range.
    """
    return typing.cast(Config, _read(kind, values, ""))


def check_types(config: Any) -> None:
    """Refuses a configuration that a process which is given it could not read.

    Raises:
        ConfigError: a value is of a wrong type or out of range, or would be read as another.
    """
    values, settings = dataclasses.asdict(config), [setting for setting in dataclasses.fields(config) if setting.init]
    read = from_dict(type(config), {setting.name: values[setting.name] for setting in settings})
    for setting in settings:
        value, right = getattr(config, setting.name), getattr(read, setting.name)
        _require(value == right, setting.name, value, repr(right))


def _read(kind: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(kind)
    arguments = typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(kind, value, where)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        kinds = [argument for argument in arguments if argument is not type(None)]
        return _read(kinds[0], value, where) if len(kinds) == 1 else _read_one_of(kinds, value, where)
    if origin is typing.Literal:
        if value not in arguments:
            raise ConfigError(f"{where}: {value!r} is wrong, it must be one of {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where}: {value!r} is not a list")
        items = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(items) != len(value):
            raise ConfigError(f"{where}: {len(value)} values, needs {len(items)}")
        return tuple(_read(item, part, f"{where}[{index}]") for index, (item, part) in enumerate(zip(items, value, strict=True)))
    accepted = (int, float) if kind is float else (kind,)
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f"{where}: {value!r} is not of type {kind.__name__}")
    if kind is float and not math.isfinite(value):
        raise ConfigError(f"{where}: {value!r} is not a finite number")
    return float(value) if kind is float else value


def _read_one_of(kinds: list[Any], value: Any, where: str) -> Any:
    """A dataclass out of several, told apart by their `name`."""
    known = {kind.name: kind for kind in kinds}
    if not isinstance(value, Mapping) or value.get("name") not in known:
        found = value.get("name") if isinstance(value, Mapping) else value
        raise ConfigError(f"{where}: {found!r} is unknown, it must be settings with a name, one of {', '.join(known)}")
    return _read_dataclass(known[value["name"]], {key: part for key, part in value.items() if key != "name"}, where)


def _read_dataclass(kind: Any, values: Any, where: str) -> Any:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where or kind.__name__}: {values!r} is not a table of settings")
    all_hints = typing.get_type_hints(kind)
    hints = {field.name: all_hints[field.name] for field in dataclasses.fields(kind) if field.init}
    prefix = f"{where}." if where else ""
    for key in values:
        if key not in hints:
            raise ConfigError(f"{prefix}{key}: unknown setting of {kind.__name__}, known are {', '.join(hints) or 'none'}")
    try:
        return kind(**{key: _read(hints[key], value, prefix + key) for key, value in values.items()})
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where or kind.__name__}: {error}") from None


def content_id(value: Any) -> str:
    """Twelve hex digits that name a JSON-safe value by its content."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def derive_seed(seed: int, purpose: str) -> int:
    """A seed of its own for each purpose, so that draws for one never shift the draws for another."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:7])


def config_id(config: Any) -> str:
    """Twelve hex digits that name a configuration by its content, seeds included.

    A setting that joined later counts only where it differs from its default, so configurations keep the ids that they had.
    """
    return content_id(_content(config))


def _content(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        settings = ((setting, getattr(value, setting.name)) for setting in dataclasses.fields(value))
        return {s.name: _content(part) for s, part in settings if not (s.metadata.get("later") and part == s.default)}
    return [_content(part) for part in value] if isinstance(value, list | tuple) else value


def absolute_name(name: str) -> str:
    """The name with the whole path, as processes need it that start in other folders: `parquet:/home/me/cifar10`.

    A link stays one, since on each node of a cluster it may lead elsewhere.
    """
    kind, colon, path = name.partition(":")
    return f"{kind}:{os.path.normpath(Path(path).expanduser().absolute())}" if colon and path else name


def short_name(name: str) -> str:
    """The name without where the files are, as published tables have it: `parquet:cifar10`."""
    kind, colon, path = name.partition(":")
    return f"{kind}:{Path(path).name}" if colon and path else name
