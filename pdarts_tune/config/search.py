"""Every setting of a search. No default stands anywhere else."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast

from pydantic import BeforeValidator, Field, PlainValidator
from pydantic_core import PydanticCustomError

from pdarts_tune.config.evaluation import Stem
from pdarts_tune.config.execution import Execution, check_execution
from pdarts_tune.config.methods import FirstOrder, Method, RandomSampling, RandomSearch, check_method, trains_alphas
from pdarts_tune.config.remedies import Remedy, ResourcePenalty, check_penalty, check_remedies
from pdarts_tune.config.serialize import (
    Fraction,
    ImageCount,
    Natural,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    Text,
    later,
    settings,
)
from pdarts_tune.pdarts.genotype import most_skips
from pdarts_tune.pdarts.progressive_depth import PDARTS_CIFAR10, Stage, check_stages
from pdarts_tune.pdarts.space import SPACES, SearchSpace, check_choices, check_operations

DEFAULT_EXECUTION = Execution()
NO_PENALTY = ResourcePenalty()


def _make_stage(value: Any) -> Any:
    """A stage names its ranges itself."""
    known = {field.name for field in dataclasses.fields(Stage)}
    return Stage(**value) if isinstance(value, dict) and {"cells", "operations"} <= value.keys() <= known else value


def _read_space(value: Any) -> str | SearchSpace:
    """A name of SPACES, or the operations of every edge."""
    if isinstance(value, Mapping) and set(value) == {"normal", "reduce"}:
        value = SearchSpace(*(tuple(tuple(edge) for edge in value[cell]) for cell in ("normal", "reduce")))
    if isinstance(value, SearchSpace):
        check_choices(value)
    elif not isinstance(value, str) or value not in SPACES:
        choices = f"Input should be one of {', '.join(SPACES)}, or the operations of each edge of the normal and the reduce cell"
        raise PydanticCustomError("space", choices)
    return cast("str | SearchSpace", value)


@settings
class SearchConfig:
    """One search. The defaults are P-DARTS on CIFAR-10 (paper, section 4.2).

    Raises:
        ConfigError: a value of a wrong type or out of range, or settings that exclude each other.
    """

    stages: tuple[Annotated[Stage, BeforeValidator(_make_stage)], ...] = PDARTS_CIFAR10
    method: Annotated[Method, Field(discriminator="name")] = dataclasses.field(default_factory=FirstOrder)
    data: Text = "cifar10"
    train_images: ImageCount | None = None  # at most so many training images, the same number of each class; None: all
    test_images: ImageCount | None = None
    validation_fraction: Fraction = 0.0  # of the training images, held out; 0: validate on the alphas' half, as the paper does
    seed: Natural = 0  # initial weights and alphas, batch order, augmentation, dropout masks
    split_seed: Natural = 0  # which images train weights, train alphas, validate
    channels: Positive = 16
    batch_size: Positive = 96
    max_skips: Annotated[int, Field(ge=0, le=8)] = 2  # M: skip-connects allowed in the normal cell
    learning_rate: PositiveFloat = 0.025  # SGD on the weights, cosine to 0 over each stage
    momentum: Fraction = 0.9
    weight_decay: NonNegativeFloat = 3e-4
    gradient_clip: PositiveFloat = 5.0  # of the total norm, for weights and for alphas
    alpha_learning_rate: PositiveFloat = 6e-4  # Adam on the alphas
    alpha_betas: tuple[Fraction, Fraction] = (0.5, 0.999)
    alpha_weight_decay: NonNegativeFloat = 1e-3
    alpha_init_scale: NonNegativeFloat = 1e-3  # standard deviation of the initial alphas
    diagnostics_every: Positive | None = None  # epochs between diagnostics; None: as often as keeps them below 5 % of the time
    eigenvalue_every: Natural = 0  # epochs between estimates of the Hessian's largest eigenvalue; 0: none
    # End a stage when that eigenvalue grows by more than this factor (Zela et al., 2020: 1.3); None: never.
    early_stop_ratio: Annotated[float, Field(gt=1)] | None = None
    dropping: Literal["lowest", "random"] = later("lowest")  # the operations dropped between stages: the least probable, or any
    dropout_on_reduce: bool = later(False)  # skip dropout also on skip-connects of stride 2, which the paper leaves out
    execution: Execution = later(DEFAULT_EXECUTION)
    memory_limit: Positive | None = later(None)  # bytes of device memory that a stage may take, by prediction; None: no limit
    image_size: Positive | None = later(None)  # pixels, height and width: images are cropped to it and streamed; None: as they are
    downsample: Positive = later(1)  # each square of so many pixels a side becomes one, their mean: 2 makes 16x16 of 32x32
    skip_bad_images: bool = later(False)  # leave out images that cannot be read, rather than refuse the set
    stem: Stem = later("cifar")  # imagenet: three convolutions of stride 2 first, an eighth of the resolution
    space: Annotated[str | SearchSpace, PlainValidator(_read_space)] = later("full")  # what the first stage starts from
    remedies: tuple[Annotated[Remedy, Field(discriminator="name")], ...] = later(())  # against collapse, in any order
    penalty: ResourcePenalty = later(NO_PENALTY)  # on expected parameters, multiply-adds or latency; SNAS has its own

    @property
    def start(self) -> SearchSpace:
        """The operations of every edge that the first stage starts from."""
        return SPACES[self.space] if isinstance(self.space, str) else self.space

    def __post_init__(self) -> None:
        check_stages(self.stages)
        if trains_alphas(self.method):
            check_operations(self.start, [stage.operations for stage in self.stages])
        elif isinstance(self.method, RandomSampling) and self.method.exactly and self.max_skips > (most := most_skips(self.start)):
            raise ValueError(f"max_skips: {self.max_skips} is wrong, a normal cell of this space has at most {most} skip-connects")
        check_method(self.method, self.stages, self.channels)
        if self.stem == "imagenet" and self.channels % 2:
            raise ValueError(f"channels: {self.channels} is odd, the imagenet stem halves them; take an even number")
        check_remedies(self.remedies, self.method, self.stages)
        check_penalty(self.penalty, self.method, self.remedies)
        object.__setattr__(self, "remedies", tuple(sorted(self.remedies, key=lambda remedy: remedy.name)))  # one id for any order
        check_execution(self.execution, self.method, "execution.")
        if self.eigenvalue_every and isinstance(self.method, RandomSearch):  # methods that train nothing ignore it
            raise ValueError(f"eigenvalue_every: method {self.method.name} has no alphas to take a Hessian of, it must be 0")
        if self.eigenvalue_every and self.execution.compile:
            raise ValueError("eigenvalue_every: compiled cells have no second derivatives, it must be 0, or execution.compile off")
        if self.early_stop_ratio is not None and self.eigenvalue_every != 1:
            raise ValueError("early_stop_ratio: needs an eigenvalue every epoch, set eigenvalue_every to 1")


def named_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a search, as `to_dict` gives them, by the names that `--set` knows; those of the stages are lists."""
    settings: dict[str, Any] = {}
    for name, value in config.items():
        if name == "stages":
            settings |= {f"stages.{field}": [stage[field] for stage in value] for field in value[0]}
        elif name in ("method", "execution", "penalty"):
            settings |= {f"{name}.{field}": own for field, own in value.items()}
        else:
            settings[name] = value
    return settings
