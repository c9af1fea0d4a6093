"""How a search is computed, as opposed to what: precision, kernels, memory against time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pdarts_tune.config.methods import Method, PartialChannels

Precision = Literal["fp32", "bf16"]
CellEvaluation = Literal["fast", "plain"]


@dataclass(frozen=True)
class Execution:
    """The settings of a search that aim at speed, memory or repeatability. All of them belong to the configuration's id.

    None of them changes the mathematics, but every one may change rounding (`precision` and `tf32` by much), and a search
    amplifies rounding until it ends with another cell. So a checkpoint is continued under the settings that it was made with, and
    a results folder holds searches that were computed in one way.

    Raises:
        ValueError: an unknown precision or evaluation.
    """

    cell_evaluation: CellEvaluation = "fast"
    """fast: a hand-written pass per cell; plain: one module per operation (PC-DARTS has no other)."""
    recompute: bool = False
    """Of the fast cells: keep an eighth of the bytes for backward, for 6 to 20 % more time."""
    precision: Precision = "fp32"
    """bf16: convolutions and products in bfloat16, weights and statistics in float32; needs plain cells."""
    tf32: bool = False
    """On CUDA: round the factors of products and convolutions to TensorFloat-32; needs plain cells. Off: full float32."""
    compile: bool = False
    """Compile each cell with torch.compile: minutes at the start of each stage; needs plain cells."""
    channels_last: bool = False
    """Images in channels-last memory from the stem on; the fast cells have them so in any case."""
    deterministic: bool = False
    """Deterministic algorithms alone; an operation without one ends the search. On a CPU they all are."""

    def __post_init__(self) -> None:
        for name, known in (("cell_evaluation", ("fast", "plain")), ("precision", ("fp32", "bf16"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: {getattr(self, name)!r} is wrong, it must be {' or '.join(known)}")


def cell_evaluation(execution: Execution, method: Method) -> CellEvaluation:
    """How cells are evaluated: as the settings say, if the method has a choice."""
    return "plain" if isinstance(method, PartialChannels) else execution.cell_evaluation


def check_execution(execution: Execution, method: Method) -> None:
    """Raises ValueError if a setting would do nothing; the message says why.

    The fast cells compute products of moments, which neither bfloat16 nor TensorFloat-32 can bear, so they are in full precision
    whatever surrounds them; and torch.compile cannot look into their hand-written backward.
    """
    if cell_evaluation(execution, method) == "plain":
        if execution.recompute:
            fast = "method partial_channels has plain ones" if isinstance(method, PartialChannels) else "these are plain"
            raise ValueError(f"execution.recompute: works with fast cells, {fast}; it must be off")
        return
    wrong = {"precision": execution.precision != "fp32", "tf32": execution.tf32, "compile": execution.compile}
    for name in [name for name, on in wrong.items() if on]:
        raise ValueError(f"execution.{name}: {getattr(execution, name)!r} needs plain cells, set cell_evaluation to plain")
