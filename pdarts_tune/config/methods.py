"""How a search finds its genotype: one dataclass a method, with the settings that this method has and no others.

A method says what is special in a step of the stage loop; the loop itself (`search.py`) is one and the same. P-DARTS is
`FirstOrder` in its three stages, DARTS is `FirstOrder` or `SecondOrder` in one stage; the other methods run in any stage plan that
`check_method` lets pass. Where a method has a published schedule, `published.py` has it as a whole configuration.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from pdarts_tune.pdarts.genotype import Genotype
from pdarts_tune.pdarts.progressive_depth import Stage, Stages, search_work

Penalty = Literal["none", "mild", "moderate", "aggressive"]


@dataclass(frozen=True)
class FirstOrder:
    """Weights and alphas take turns, each step with the other fixed (Liu et al., 2019, section 2.3 with xi = 0)."""

    name: str = field(default="first_order", init=False)


@dataclass(frozen=True)
class SecondOrder:
    """Alphas descend the validation loss after one unrolled step of the weights (Liu et al., 2019, section 2.3, equations 6 to 8).

    The published distance is far from the limit that equation 8 approximates: see `unrolled.mixed_product`.

    Raises:
        ValueError: a step of the finite difference that is not positive.
    """

    finite_difference: float = 0.01  # epsilon times the norm of the validation gradient: the distance that weights are moved
    name: str = field(default="second_order", init=False)

    def __post_init__(self) -> None:
        if not self.finite_difference > 0:
            raise ValueError(f"finite_difference: {self.finite_difference} is wrong, it must be more than 0")


@dataclass(frozen=True)
class Snas:
    """One architecture a step, sampled from the concrete distribution; weights and alphas descend the same loss on the same
    images (Xie et al., 2019, sections 2.2 and 2.4).

    The temperature falls geometrically over the epochs of a stage in which alphas train. The paper says that it is annealed to
    near zero and gives no figures; from 1 to 0.03 is how AutoML's ConfigurableOptimizer (its `SNASProfile`) runs the method. The
    resource constraint has three levels in the paper, without figures too: see `snas.PENALTY_WEIGHTS`.

    Raises:
        ValueError: a temperature that is not positive or that rises, or an unknown penalty.
    """

    temperature: float = 1.0
    final_temperature: float = 0.03
    penalty: Penalty = "none"
    name: str = field(default="snas", init=False)

    def __post_init__(self) -> None:
        for setting in ("temperature", "final_temperature"):
            if not getattr(self, setting) > 0:
                raise ValueError(f"{setting}: {getattr(self, setting)} is wrong, it must be more than 0")
        if self.final_temperature > self.temperature:
            raise ValueError(
                f"final_temperature: {self.final_temperature} is wrong, it must be at most temperature ({self.temperature})"
            )
        if self.penalty not in ("none", "mild", "moderate", "aggressive"):
            raise ValueError(f"penalty: {self.penalty!r} is wrong, it must be none, mild, moderate or aggressive")


@dataclass(frozen=True)
class PartialChannels:
    """PC-DARTS: operations see 1/k of the channels, the rest passes by; edges have weights too (Xu et al., 2020, section 3).

    Raises:
        ValueError: k is less than 1.
    """

    k: int = 4
    edge_normalization: bool = True  # False: every edge has weight 1, as in DARTS
    name: str = field(default="partial_channels", init=False)

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k: {self.k} is wrong, it must be at least 1")


@dataclass(frozen=True)
class RandomSearch:
    """The best of a few genotypes drawn at random, by validation accuracy after a short training (Liu et al., 2019, section 3.3).

    The plan's one stage says how deep the candidates' networks are and for how many epochs each of them trains. How many of them
    take as long as another search: `equal_candidates`.

    Raises:
        ValueError: fewer than two candidates.
    """

    candidates: int = 24
    name: str = field(default="random_search", init=False)

    def __post_init__(self) -> None:
        if self.candidates < 2:
            raise ValueError(f"candidates: {self.candidates} is wrong, it must be at least 2 (of one there is nothing to choose)")


@dataclass(frozen=True)
class RandomSampling:
    """A genotype drawn uniformly from all under the same skip limit; nothing is trained, so every stage plan will do."""

    exactly: bool = field(default=False, metadata={"later": True})  # from all with just as many skip-connects as the limit allows
    # A variant: from all with just as many skip-connects as its search of the same seed ended with, which is run first.
    skips_of: str = field(default="", metadata={"later": True})
    name: str = field(default="random", init=False)


@dataclass(frozen=True)
class Given:
    """A genotype that is known already, to be evaluated beside others; nothing is searched, so every stage plan will do.

    Raises:
        ValueError: the text is not a genotype.
    """

    genotype: str  # as text
    source: str  # where it is from: a published name, a file, or a trial of another study
    name: str = field(default="given", init=False)

    def __post_init__(self) -> None:
        Genotype.parse(self.genotype)


Method = FirstOrder | SecondOrder | Snas | PartialChannels | RandomSearch | RandomSampling | Given


def trains_alphas(method: Method) -> bool:
    """Whether the method learns architecture parameters, rather than drawing architectures."""
    return not isinstance(method, RandomSearch | RandomSampling | Given)


def paired_variant(method: Method) -> str | None:
    """The variant whose search of the same seed must be finished before this method can find its genotype."""
    return (method.skips_of or None) if isinstance(method, RandomSampling) else None


def plan_rounds(method: Method, stages: Stages) -> Stages:
    """The networks that a search trains one after the other: its stages, or a network of one operation an edge per candidate."""
    if isinstance(method, RandomSearch):
        return (replace(stages[0], operations=1),) * method.candidates
    return stages


def equal_candidates(stage: Stage, like: Stages) -> int:
    """How many candidates of a random search, each trained for the stage's epochs, take about as long as a search in `like`.

    By `stages.search_work`, in which a candidate's edge has one operation: the same time, not the same number of epochs.

    Raises:
        ValueError: the search is over before two candidates are.
    """
    candidates = int(search_work(like) / search_work((replace(stage, operations=1),)))
    if candidates < 2:
        raise ValueError(f"stage: {stage.epochs} epochs of {stage.cells} cells a candidate leave no budget for two of them")
    return candidates


def check_method(method: Method, stages: Stages, channels: int) -> None:
    """Raises ValueError if the method cannot search in these stages or at this width; the message says why."""
    if isinstance(method, PartialChannels) and channels % method.k:
        raise ValueError(f"method.k: {method.k} does not divide the {channels} channels; take a divisor, or other channels")
    if isinstance(method, RandomSearch):
        _check_random_search(stages)
    elif trains_alphas(method):
        for index, stage in enumerate(stages):
            if stage.warmup_epochs == stage.epochs:
                raise ValueError(
                    f"stages[{index}]: method {method.name} cannot use it, all its {stage.epochs} epochs are warm-up, "
                    f"so its alphas would stay as drawn; warmup_epochs must be less than epochs"
                )


def _check_random_search(stages: Stages) -> None:
    if len(stages) != 1:
        raise ValueError(
            f"stages: method random_search cannot use {len(stages)} stages, its candidates train once, at one depth; give it one"
        )
    (stage,) = stages
    if stage.warmup_epochs != stage.epochs:
        raise ValueError(
            f"stages[0]: method random_search cannot use it, candidates have no alphas to train after "
            f"{stage.warmup_epochs} epochs; warmup_epochs must be epochs ({stage.epochs})"
        )
    if stage.skip_dropout > 0:
        raise ValueError(
            f"stages[0]: method random_search cannot use it, skip_dropout {stage.skip_dropout} would handicap candidates with "
            f"skip-connects; it must be 0"
        )
