"""Every setting of a search and of an evaluation, as frozen dataclasses. One place, no defaults hidden elsewhere.

A configuration travels as a plain dict (JSON-safe) through Ray and into the tables; `from_dict` refuses unknown keys and wrong
types, so that a misspelt setting can never be a silent default. `config_id` names a configuration by its content.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from pdarts_tune.execution import Execution, check_execution
from pdarts_tune.methods import FirstOrder, Method, check_method, trains_alphas
from pdarts_tune.stages import PDARTS_CIFAR10, Stage, check_stages

STEMS = ("cifar", "imagenet")
SCHEDULES = ("cosine", "linear")
PRECISIONS = ("fp32", "bf16")
DEFAULT_EXECUTION = Execution()


class ConfigError(ValueError):
    """A setting is wrong. The message is one line: what was wrong, where, and what would be right."""


def _later(default: Any) -> Any:
    """A setting that joined after the first results were written."""
    return field(default=default, metadata={"later": True})


@dataclass(frozen=True)
class SearchConfig:
    """One search. The defaults are P-DARTS on CIFAR-10 (paper, section 4.2).

    Raises:
        ConfigError: a value out of range, or stages that do not make a search.
    """

    stages: tuple[Stage, ...] = PDARTS_CIFAR10
    method: Method = field(default_factory=FirstOrder)
    data: str = "cifar10"
    train_images: int | None = None  # use this many training images, the same number of each class; None: all
    test_images: int | None = None
    validation_fraction: float = 0.0  # of the training images, held out; 0: validate on the alphas' half, as the paper does
    seed: int = 0  # initial weights and alphas, batch order, augmentation, dropout masks
    split_seed: int = 0  # which images train weights, train alphas, validate
    channels: int = 16
    batch_size: int = 96
    max_skips: int = 2  # M: skip-connects allowed in the normal cell
    learning_rate: float = 0.025  # SGD on the weights, cosine to 0 over each stage
    momentum: float = 0.9
    weight_decay: float = 3e-4
    gradient_clip: float = 5.0  # of the total norm, for weights and for alphas
    alpha_learning_rate: float = 6e-4  # Adam on the alphas
    alpha_betas: tuple[float, float] = (0.5, 0.999)
    alpha_weight_decay: float = 1e-3
    alpha_init_scale: float = 1e-3
    diagnostics_every: int | None = None  # epochs from one look at the network to the next; None: as few as stay below 5 % of time
    eigenvalue_every: int = 0  # epochs from one estimate of the Hessian's largest eigenvalue to the next; 0: none
    early_stop_ratio: float | None = None  # end a stage when that eigenvalue grows by more (Zela et al., 2020: 1.3); None: never
    dropping: Literal["lowest", "random"] = _later("lowest")  # which operations go between stages: the least probable, or any
    dropout_on_reduce: bool = _later(False)  # skip dropout also on the skip-connects of stride 2, which the paper spares
    execution: Execution = field(default=DEFAULT_EXECUTION, metadata={"later": True})
    memory_limit: int | None = _later(None)  # bytes of device memory that a stage may take, by prediction; None: what there is
    image_size: int | None = _later(None)  # pixels, height and width: images are cropped to it and streamed; None: as they are
    skip_bad_images: bool = _later(False)  # leave out images that cannot be read, rather than refuse the set

    def __post_init__(self) -> None:
        _require(isinstance(self.method, Method), "method", self.method, "settings of methods.py, such as FirstOrder()")
        try:
            check_stages(self.stages)
            check_method(self.method, self.stages, self.channels)
            check_execution(self.execution, self.method)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        _require(0.0 <= self.validation_fraction < 1.0, "validation_fraction", self.validation_fraction, "in [0, 1)")
        _require(0 <= self.max_skips <= 8, "max_skips", self.max_skips, "between 0 and 8")
        every = self.diagnostics_every
        _require(every is None or every >= 1, "diagnostics_every", every, "at least 1, or nothing for a share of the time")
        _require(self.memory_limit is None or self.memory_limit >= 1, "memory_limit", self.memory_limit, "at least 1, or nothing")
        _require(self.eigenvalue_every >= 0, "eigenvalue_every", self.eigenvalue_every, "at least 0 (0: no estimates)")
        if self.eigenvalue_every and not trains_alphas(self.method):
            raise ConfigError(f"eigenvalue_every: method {self.method.name} has no alphas to take a Hessian of, it must be 0")
        if self.eigenvalue_every and self.execution.compile:
            raise ConfigError("eigenvalue_every: compiled cells have no second derivatives, it must be 0, or execution.compile off")
        if self.early_stop_ratio is not None:
            _require(self.early_stop_ratio > 1, "early_stop_ratio", self.early_stop_ratio, "more than 1, or nothing for no stop")
            if self.eigenvalue_every != 1:
                raise ConfigError("early_stop_ratio: needs an eigenvalue every epoch, set eigenvalue_every to 1")
        _check_common(self)


@dataclass(frozen=True)
class EvalConfig:
    """Training one genotype from scratch. The defaults are the paper's CIFAR recipe (section 4.3).

    Raises:
        ConfigError: a value out of range.
    """

    recipe: str = "cifar"
    data: str = "cifar10"
    train_images: int | None = None
    test_images: int | None = None
    validation_fraction: float = 0.0  # held out to follow training; the test images are read once, after the last epoch
    seed: int = 0
    split_seed: int = 0
    cells: int = 20
    channels: int = 36
    epochs: int = 600
    batch_size: int = 128
    learning_rate: float = 0.025  # SGD, cosine to 0
    momentum: float = 0.9
    weight_decay: float = 3e-4
    gradient_clip: float = 5.0
    cutout: int = 16  # side of the square hole, pixels; 0: none
    drop_path: float = 0.3  # reached linearly at the last epoch
    auxiliary_weight: float = 0.4
    stem: str = _later("cifar")  # or "imagenet": three convolutions of stride 2 first, an eighth of the resolution
    image_size: int | None = _later(None)  # pixels, height and width: images are cropped to it and streamed; None: as they are
    schedule: str = _later("cosine")  # or "linear": of the learning rate, to 0 after the last epoch
    warmup_epochs: int = _later(0)  # in which the learning rate rises linearly
    label_smoothing: float = _later(0.0)
    auto_width: bool = _later(False)  # in place of `channels`, the widest even number under 600M multiply-adds
    precision: str = _later("fp32")  # or "bf16": convolutions in bfloat16, weights and statistics in float32
    sync_batch_norm: bool = _later(True)  # with several devices: statistics of the whole batch; False: of each device's share
    channels_last: bool = False  # memory layout; like `compile` it changes speed, and results by rounding
    compile: bool = False
    skip_bad_images: bool = False  # leave out images that cannot be read, rather than refuse the set

    def __post_init__(self) -> None:
        _require(self.cells >= 3, "cells", self.cells, "at least 3 (a network has two reduction cells)")
        _require(self.epochs >= 1, "epochs", self.epochs, "at least 1")
        _require(0.0 <= self.validation_fraction < 1.0, "validation_fraction", self.validation_fraction, "in [0, 1)")
        _require(self.cutout >= 0, "cutout", self.cutout, "at least 0")
        _require(0.0 <= self.drop_path < 1.0, "drop_path", self.drop_path, "in [0, 1)")
        _require(self.auxiliary_weight >= 0, "auxiliary_weight", self.auxiliary_weight, "at least 0")
        for name, known in (("stem", STEMS), ("schedule", SCHEDULES), ("precision", PRECISIONS)):
            _require(getattr(self, name) in known, name, getattr(self, name), "one of " + ", ".join(known))
        _require(
            0 <= self.warmup_epochs < self.epochs, "warmup_epochs", self.warmup_epochs, f"in [0, epochs), epochs is {self.epochs}"
        )
        _require(0.0 <= self.label_smoothing < 1.0, "label_smoothing", self.label_smoothing, "in [0, 1)")
        _check_common(self)

    @property
    def recipe_id(self) -> str:
        """Names the recipe by content: equal for two trainings that differ only in data set, seeds and what changes speed alone.

        A setting that joined later counts only where it differs from its default, so recipes keep the ids that they had before.
        """
        settings = to_dict(self)
        for key in ("seed", "split_seed", "data", "channels_last", "compile", "skip_bad_images"):
            del settings[key]
        for setting in dataclasses.fields(self):
            if setting.metadata.get("later") and settings[setting.name] == setting.default:
                del settings[setting.name]
        return f"{self.recipe}-{content_id(settings)[:8]}"


def _require(condition: bool, name: str, value: object, right: str) -> None:
    if not condition:
        raise ConfigError(f"{name}: {value!r} is wrong, it must be {right}")


def _check_common(config: SearchConfig | EvalConfig) -> None:
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
