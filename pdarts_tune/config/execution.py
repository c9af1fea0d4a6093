"""How a search is computed, as opposed to what it computes: precision, kernels, memory against time."""

from typing import Literal

from pdarts_tune.config.methods import Method, PartialChannels
from pdarts_tune.config.serialize import settings

Precision = Literal["fp32", "bf16"]
CellEvaluation = Literal["fast", "plain"]


@settings
class Execution:
    """The settings of a search for speed, memory or repeatability. All of them count in the configuration's id.

    None of them changes the mathematics, but each may change rounding (`precision` and `tf32` by much). A search amplifies
    rounding until it ends with another cell. So a checkpoint continues under the settings that it was made with, and all searches
    of a results folder are computed in one way.
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
    """Images in channels-last memory from the stem on. The fast cells always use this layout."""
    deterministic: bool = False
    """Use only deterministic algorithms; an operation without one ends the search. On a CPU all are deterministic."""


def cell_evaluation(execution: Execution, method: Method) -> CellEvaluation:
    """How cells are evaluated. PC-DARTS has plain cells alone."""
    return "plain" if isinstance(method, PartialChannels) else execution.cell_evaluation


def check_execution(execution: Execution, method: Method) -> None:
    """Refuses a setting that would do nothing.

    The fast cells compute products of moments, which need full precision. torch.compile cannot trace their hand-written backward.

    Raises:
        ValueError: the setting and the reason.
    """
    if cell_evaluation(execution, method) == "plain":
        if execution.recompute:
            reason = "method partial_channels has plain ones" if isinstance(method, PartialChannels) else "these are plain"
            raise ValueError(f"execution.recompute: works with fast cells, {reason}; it must be off")
        return
    needs_plain = {"precision": execution.precision != "fp32", "tf32": execution.tf32, "compile": execution.compile}
    for name in (name for name, on in needs_plain.items() if on):
        raise ValueError(f"execution.{name}: {getattr(execution, name)!r} needs plain cells, set cell_evaluation to plain")
