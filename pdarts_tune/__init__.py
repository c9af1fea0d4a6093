"""Ablations of P-DARTS: the names that a study, a notebook or a script needs.

A name is imported from its room when it is first used, so that `import pdarts_tune` loads neither torch nor Ray.
"""

import os
import sys
from importlib import import_module
from traceback import walk_tb
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same names, for type checkers and editors
    from pdarts_tune.config.evaluation import RECIPES, EvalConfig
    from pdarts_tune.config.execution import Execution
    from pdarts_tune.config.methods import (
        FirstOrder,
        Given,
        Method,
        PartialChannels,
        RandomSampling,
        RandomSearch,
        SecondOrder,
        Snas,
        equal_candidates,
    )
    from pdarts_tune.config.presets import PRESETS, PUBLISHED_SEARCHES, Preset
    from pdarts_tune.config.remedies import (
        AuxiliarySkip,
        BetaDecay,
        DropPath,
        FrozenOperations,
        IndependentWeights,
        PerturbedAlphas,
        Remedy,
        ResourcePenalty,
        StopAtSkips,
    )
    from pdarts_tune.config.search import SearchConfig
    from pdarts_tune.config.serialize import ConfigError
    from pdarts_tune.data.datasets import load_dataset
    from pdarts_tune.evaluation.trained import TrainedNetwork, load_trained
    from pdarts_tune.networks.cost import network_cost
    from pdarts_tune.networks.darts_weights import load_darts_state_dict
    from pdarts_tune.networks.evaluation_network import CIFAR, IMAGENET_MOBILE, EvalNetwork, NetworkConfig
    from pdarts_tune.networks.supernet import Supernet
    from pdarts_tune.pdarts.approximation import prune
    from pdarts_tune.pdarts.genotype import CellGenotype, Genotype, derive_cell
    from pdarts_tune.pdarts.progressive_depth import (
        DARTS,
        PDARTS_CIFAR10,
        PDARTS_CIFAR100,
        Stage,
        Stages,
        peak_work,
        with_budget,
        with_depths,
        with_epochs,
        with_operations,
        with_skip_dropout,
    )
    from pdarts_tune.pdarts.published import PUBLISHED
    from pdarts_tune.pdarts.regularization import limit_skips, skip_dropout
    from pdarts_tune.pdarts.space import EDGES, PRIMITIVES, SearchSpace
    from pdarts_tune.results.cell_figures import draw_alphas, draw_genotype
    from pdarts_tune.results.queries import Best, alphas, best
    from pdarts_tune.results.tables import read_table
    from pdarts_tune.study.cli import main
    from pdarts_tune.study.plan import Study, Variant, given_variants

_ROOMS = {
    "pdarts.space": "PRIMITIVES EDGES SearchSpace",
    "pdarts.genotype": "CellGenotype Genotype derive_cell",
    "pdarts.published": "PUBLISHED",
    "pdarts.approximation": "prune",
    "pdarts.regularization": "limit_skips skip_dropout",
    "pdarts.progressive_depth": "DARTS PDARTS_CIFAR10 PDARTS_CIFAR100 Stage Stages "
    "peak_work with_budget with_depths with_epochs with_operations with_skip_dropout",
    "config.methods": "FirstOrder Given Method PartialChannels RandomSampling RandomSearch SecondOrder Snas equal_candidates",
    "config.execution": "Execution",
    "config.remedies": "AuxiliarySkip BetaDecay DropPath FrozenOperations IndependentWeights PerturbedAlphas Remedy "
    "ResourcePenalty StopAtSkips",
    "config.search": "SearchConfig",
    "config.evaluation": "RECIPES EvalConfig",
    "config.serialize": "ConfigError",
    "config.presets": "PRESETS PUBLISHED_SEARCHES Preset",
    "results.cell_figures": "draw_alphas draw_genotype",
    "results.tables": "read_table",
    "results.queries": "Best alphas best",
    "networks.cost": "network_cost",
    "networks.evaluation_network": "CIFAR IMAGENET_MOBILE EvalNetwork NetworkConfig",
    "networks.supernet": "Supernet",
    "networks.darts_weights": "load_darts_state_dict",
    "data.datasets": "load_dataset",
    "evaluation.trained": "TrainedNetwork load_trained",
    "study.plan": "Study Variant given_variants",
    "study.cli": "main",
}
_HOME = {name: room for room, names in _ROOMS.items() for name in names.split()}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value  # the next access finds it here
    return value


def __dir__() -> list[str]:
    return sorted(_HOME)


def _stop_quietly(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Ctrl-C while modules are imported, which takes seconds, ends the process without a traceback."""
    frames = [frame for frame, _ in walk_tb(trace)] if kind is KeyboardInterrupt else []
    modules = [frame.f_globals.get("__name__") for frame in frames if frame.f_code.co_name == "<module>"]
    if {*modules} > {"__main__"} or any(frame.f_code.co_filename.startswith("<frozen importlib") for frame in frames):
        os._exit(130)
    _excepthook(kind, error, trace)


_excepthook, sys.excepthook = sys.excepthook, _stop_quietly
