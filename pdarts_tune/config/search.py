"""Every setting of a search and of an evaluation, as frozen dataclasses. One place, no defaults hidden elsewhere.

A configuration travels as a plain dict (JSON-safe) through Ray and into the tables; `from_dict` refuses unknown keys and wrong
types, so that a misspelt setting can never be a silent default. `config_id` names a configuration by its content.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pdarts_tune.config.execution import Execution, check_execution
from pdarts_tune.config.methods import FirstOrder, Method, check_method, trains_alphas
from pdarts_tune.config.serialize import (
    ConfigError,
    _check_common,
    _later,
    _require,
)
from pdarts_tune.pdarts.progressive_depth import PDARTS_CIFAR10, Stage, check_stages

DEFAULT_EXECUTION = Execution()


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
