"""What a search may have beyond P-DARTS: remedies against collapse to skip-connects, and a penalty on what architectures cost.

Each remedy has its published setting. A search has any number of them. They act in every stage: a schedule is linear from the first
epoch of a stage to its last one. `search/remedies.py` has their formulas, `search/resources.py` those of the penalty.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator
from pydantic_core import PydanticCustomError

from pdarts_tune.config.methods import FirstOrder, Method, Snas, trains_alphas
from pdarts_tune.config.serialize import Fraction, NonNegativeFloat, Positive, Text, from_dict, settings
from pdarts_tune.pdarts.progressive_depth import Stages

Distance = Annotated[float, Field(ge=0, le=1)]


@settings
class AuxiliarySkip:
    """Every edge adds a skip-connect that has no alpha, times a factor (DARTS-; Chu et al., 2021). The derived cell has none."""

    start: NonNegativeFloat = 1.0
    end: NonNegativeFloat = 0.0
    name: Literal["auxiliary_skip"] = "auxiliary_skip"


@settings
class BetaDecay:
    """The alphas' loss gains a factor times the mean over edges of logsumexp(alphas) (beta-DARTS; Ye et al., 2022)."""

    start: NonNegativeFloat = 0.0
    end: NonNegativeFloat = 50.0
    name: Literal["beta_decay"] = "beta_decay"


@settings
class IndependentWeights:
    """Mixing weights are sigmoids of the alphas, which a loss pulls to zero or one (FairDARTS; Chu et al., 2020).

    The published alphas train at 3e-3 (`alpha_learning_rate`).
    """

    zero_one: NonNegativeFloat = 10.0  # the factor of that loss
    name: Literal["independent_weights"] = "independent_weights"


@settings
class PerturbedAlphas:
    """Weights train under disturbed mixing weights (SDARTS; Chen & Hsieh, 2020), at most a distance from the softmax in each."""

    attack: Literal["random", "adversarial"] = "random"  # uniform noise; or gradient ascent on the loss
    start: Distance = 0.03
    end: Distance = 0.3
    ascents: Positive = 7  # steps of the adversarial attack; each costs a pass forward and back
    name: Literal["perturbed_alphas"] = "perturbed_alphas"


@settings
class FrozenOperations:
    """An operation of a cell stops training when its gradients on the alphas' and the weights' images disagree (OLES; Jiang et al.,
    2023)."""

    threshold: Annotated[float, Field(ge=-1, le=1)] = 0.4  # of the mean cosine
    steps: Positive = 20  # between decisions
    name: Literal["frozen_operations"] = "frozen_operations"


@settings
class StopAtSkips:
    """A stage ends when its normal cell, derived without a limit, has so many skip-connects (DARTS+; Liang et al., 2019).

    The alphas of the epoch before decide.
    """

    skips: Annotated[int, Field(ge=1, le=8)] = 2
    name: Literal["stop_at_skips"] = "stop_at_skips"


@settings
class DropPath:
    """Each operation of an edge but the identity is dropped for single images; the rate rises from 0 (RobustDARTS; Zela et al.,
    2020)."""

    rate: Fraction = 0.2  # in a stage's last epoch
    name: Literal["drop_path"] = "drop_path"


Remedy = AuxiliarySkip | BetaDecay | IndependentWeights | PerturbedAlphas | FrozenOperations | StopAtSkips | DropPath

_OF_SOFTMAX = (BetaDecay, PerturbedAlphas)


def check_remedies(remedies: tuple[Remedy, ...], method: Method, stages: Stages) -> None:
    """Raises ValueError, with the reason, if the method or the stages do not go with a remedy, or two remedies not together.

    Methods that train nothing ignore remedies.
    """
    names = [remedy.name for remedy in remedies]
    for index, remedy in enumerate(remedies):
        where = f"remedies[{index}]: {remedy.name}"
        if names.count(remedy.name) > 1:
            raise ValueError(f"{where} is there twice, each remedy is given once")
        if isinstance(remedy, _OF_SOFTMAX) and "independent_weights" in names:
            raise ValueError(f"{where} is about a distribution, independent_weights have none; leave out one of the two")
        if method.name == "random_search":
            raise ValueError(f"{where} is for alphas, method random_search has none; leave it out")
        if not trains_alphas(method):
            continue
        if not isinstance(method, FirstOrder) and not isinstance(remedy, StopAtSkips):
            raise ValueError(f"{where} is defined for method first_order, not for {method.name}; leave it out")
        short = [stage for stage, plan in enumerate(stages) if plan.epochs < 2]
        if short and not isinstance(remedy, IndependentWeights | FrozenOperations | StopAtSkips):
            raise ValueError(f"{where} has a schedule over epochs, stages[{short[0]}].epochs is 1; it must be at least 2")


Shape = tuple[int, int, int]  # channels, stride, side of the images in pixels
Latency = tuple[Text, Positive, Annotated[int, Field(ge=1, le=2)], Positive, NonNegativeFloat]  # operation, its shape, seconds


@settings
class Latencies:
    """Median seconds of operations on a batch, as `benchmarks/latency.py` writes them.

    The table is part of the settings. So it travels to every node, and its content counts in the id.
    """

    device: Text
    torch: Text  # its version
    threads: Positive
    batch: Positive
    seconds: tuple[Latency, ...]

    def __post_init__(self) -> None:
        if len(self.by_shape) < len(self.seconds):
            keys = [row[:4] for row in self.seconds]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ValueError(f"seconds: {twice} is there twice, each operation and shape is given once")

    @property
    def by_shape(self) -> dict[tuple[str, int, int, int], float]:
        """Seconds by operation, channels, stride and side of the images."""
        return {row[:4]: row[4] for row in self.seconds}


def _read_latencies(value: Any) -> Latencies | None:
    """The table itself, its content, or the name of its file."""
    if value is None or isinstance(value, Latencies):
        return value
    try:
        return from_dict(Latencies, json.loads(Path(value).read_text()) if isinstance(value, str) else value)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise PydanticCustomError("latencies", "a file that benchmarks/latency.py writes ({why})", {"why": str(reason)}) from None


@settings
class ResourcePenalty:
    """The alphas' loss gains a factor times the expected cost of an architecture, relative to the costliest one of the space.

    With `latencies` the tables have expected and derived latency too, whatever the loss saves.
    """

    resource: Literal["params", "macs", "latency"] = "macs"
    weight: NonNegativeFloat = 0.0  # the factor; 0: no penalty
    latencies: Annotated[Latencies | None, PlainValidator(_read_latencies)] = None

    def __post_init__(self) -> None:
        if self.resource == "latency" and self.latencies is None:
            raise ValueError("latencies: is missing, resource latency needs a file that benchmarks/latency.py writes")


def check_penalty(penalty: ResourcePenalty, method: Method, remedies: tuple[Remedy, ...]) -> None:
    """Raises ValueError, with the reason, if the method or a remedy does not go with the penalty.

    Methods that train nothing ignore it.
    """
    right = "weight must be 0"
    if not penalty.weight:
        return
    if isinstance(method, Snas):
        raise ValueError(f"penalty: method snas has its own, method.penalty; {right}")
    if method.name == "random_search":
        raise ValueError(f"penalty: is for alphas, method random_search has none; {right}")
    if trains_alphas(method) and any(isinstance(remedy, IndependentWeights) for remedy in remedies):
        raise ValueError(f"penalty: is about a distribution, independent_weights have none; {right}")
