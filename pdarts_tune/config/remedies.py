"""Remedies against collapse to skip-connects, other than P-DARTS' own: a dataclass for each, with its published setting.

A search has any number of them. They act in every stage: a schedule is linear from the first epoch of a stage to its last one.
`search/remedies.py` has their formulas.
"""

from typing import Annotated, Literal

from pydantic import Field

from pdarts_tune.config.methods import FirstOrder, Method, trains_alphas
from pdarts_tune.config.serialize import Fraction, NonNegativeFloat, Positive, settings
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
