"""How a search finds its genotype: a dataclass for each method, with the settings of this method and no others.

P-DARTS is `FirstOrder` in its three stages, DARTS is `FirstOrder` or `SecondOrder` in one stage. The other methods run in any
stages that `check_method` accepts. `search/steps.py` has what each method does in a step, `presets.py` the published schedules.
"""

import dataclasses
from typing import Annotated, Literal

from pydantic import Field

from pdarts_tune.config.serialize import Positive, PositiveFloat, Text, later, settings
from pdarts_tune.pdarts.genotype import Genotype
from pdarts_tune.pdarts.progressive_depth import Stage, Stages, search_work

Penalty = Literal["none", "mild", "moderate", "aggressive"]


@settings
class FirstOrder:
    """Weights and alphas take turns, each step with the other fixed (Liu et al., 2019, section 2.3 with xi = 0)."""

    name: Literal["first_order"] = "first_order"


@settings
class SecondOrder:
    """Alphas descend the validation loss after one unrolled step of the weights (Liu et al., 2019, section 2.3, equations 6 to 8).

    The published distance is far from the limit that equation 8 approximates: see `search/steps.py`.
    """

    finite_difference: PositiveFloat = 0.01  # epsilon times the norm of the validation gradient: how far the weights are moved
    name: Literal["second_order"] = "second_order"


@settings
class Snas:
    """Each step samples one architecture from the concrete distribution. Weights and alphas descend the same loss on the same
    images (Xie et al., 2019, sections 2.2 and 2.4).

    The temperature falls geometrically over the epochs of a stage in which alphas train. The paper anneals it to near zero and
    gives no figures; 1 to 0.03 is from AutoML's ConfigurableOptimizer (`SNASProfile`). The paper's three levels of the resource
    constraint have no figures either: see `search/resources.py`.
    """

    temperature: PositiveFloat = 1.0
    final_temperature: PositiveFloat = 0.03
    penalty: Penalty = "none"
    name: Literal["snas"] = "snas"

    def __post_init__(self) -> None:
        if self.final_temperature > self.temperature:
            raise ValueError(
                f"final_temperature: {self.final_temperature} is wrong, it must be at most temperature ({self.temperature})"
            )


@settings
class PartialChannels:
    """PC-DARTS: operations see 1/k of the channels, the other channels bypass them; edges have weights too (Xu et al., 2020,
    section 3)."""

    k: Positive = 4
    edge_normalization: bool = True  # False: every edge has weight 1, as in DARTS
    name: Literal["partial_channels"] = "partial_channels"


@settings
class RandomSearch:
    """The best of a few random genotypes, by validation accuracy after a short training (Liu et al., 2019, section 3.3).

    The one stage says how deep the candidates' networks are and for how many epochs each trains. `equal_candidates` says how many
    of them take as long as another search.
    """

    candidates: Annotated[int, Field(ge=2)] = 24
    name: Literal["random_search"] = "random_search"


@settings
class RandomSampling:
    """A genotype drawn uniformly from all under the same skip limit. Nothing is trained, so any stages will do."""

    exactly: bool = later(False)  # only genotypes with as many skip-connects as the limit allows
    # A variant. Only genotypes with as many skip-connects as its search of the same seed found; that search runs first.
    skips_of: str = later("")
    name: Literal["random"] = "random"


@settings
class Given:
    """A known genotype, evaluated beside others. Nothing is searched, so any stages will do."""

    genotype: str  # its text
    source: Text  # where it is from: a published name, a file, or a trial of another study
    name: Literal["given"] = "given"

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
        return (dataclasses.replace(stages[0], operations=1),) * method.candidates
    return stages


def equal_candidates(stage: Stage, like: Stages) -> int:
    """How many candidates of a random search, each trained for the stage's epochs, take about as long as a search in `like`.

    The unit is `search_work`, in which a candidate's edge has one operation: equal time, not an equal number of epochs.

    Raises:
        ValueError: the time is not enough for two candidates.
    """
    candidates = int(search_work(like) / search_work((dataclasses.replace(stage, operations=1),)))
    if candidates < 2:
        raise ValueError(f"stage: {stage.epochs} epochs of {stage.cells} cells a candidate leave no budget for two of them")
    return candidates


def check_method(method: Method, stages: Stages, channels: int) -> None:
    """Raises ValueError, with the reason, if the method cannot search in these stages or at this width."""
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
    stage, cannot = stages[0], "method random_search cannot use"
    if len(stages) != 1:
        raise ValueError(f"stages: {cannot} {len(stages)} stages, its candidates train once, at one depth; give it one")
    if stage.warmup_epochs != stage.epochs:
        raise ValueError(
            f"stages[0]: {cannot} it, candidates have no alphas to train after {stage.warmup_epochs} epochs; "
            f"warmup_epochs must be epochs ({stage.epochs})"
        )
    if stage.skip_dropout > 0:
        raise ValueError(
            f"stages[0]: {cannot} it, skip_dropout {stage.skip_dropout} would handicap candidates with skip-connects; it must be 0"
        )
