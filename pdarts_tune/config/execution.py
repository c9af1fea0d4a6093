"""How a search is computed, as opposed to what it computes: precision, kernels, memory against time."""

import dataclasses
from collections.abc import Sized
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from pdarts_tune.config.methods import Method, PartialChannels, SecondOrder
from pdarts_tune.config.serialize import later, settings

Precision = Literal["fp32", "bf16"]
CellEvaluation = Literal["auto", "kernels", "plain"]
Graph = Literal["auto", "off"]


def _present_name(value: Any) -> Any:
    """Studies that were begun before there were kernels call the default `fast`."""
    return "auto" if value == "fast" else value


@settings
class Execution:
    """The settings of a search for speed, memory or repeatability. All of them count in the configuration's id.

    None of them changes the mathematics, but each may change rounding (`precision` and `tf32` by much). A search amplifies
    rounding until it ends with another cell. So a checkpoint continues under the settings that it was made with, and all searches
    of a results folder are computed in one way.
    """

    cell_evaluation: Annotated[CellEvaluation, BeforeValidator(_present_name)] = dataclasses.field(
        default="auto",
        metadata={"id": "fast"},
    )
    """kernels: a C library, on CPUs alone; plain: one module per operation; auto: kernels where they can be had, else plain."""
    recompute: bool = False
    """Keep only the inputs of cells for backward, and compute the rest again."""
    precision: Precision = "fp32"
    """bf16: convolutions and products in bfloat16, weights and statistics in float32; needs plain cells."""
    tf32: bool = False
    """On CUDA: round the factors of products and convolutions to TensorFloat-32; needs plain cells. Off: full float32."""
    compile: bool = False
    """Compile each cell with torch.compile: minutes at the start of each stage; needs plain cells."""
    channels_last: bool = False
    """Plain cells: images in channels-last memory from the stem on. Kernels always use this layout."""
    deterministic: bool = False
    """Use only deterministic algorithms; an operation without one ends the search. On a CPU all are deterministic."""
    graph: Graph = later("auto")
    """auto: on CUDA a training step is one CUDA graph, which saves the time to launch its operators; off: operator by operator.
    Second order, whose step sets random states, and searches with remedies are never graphs."""


def cell_evaluation(execution: Execution, method: Method | None = None) -> CellEvaluation:
    """How cells may be evaluated: `auto` is plain where a setting or the method has no kernels. An evaluation has no method."""
    no_kernels = isinstance(method, PartialChannels) or bool(_needs_plain(execution))
    return "plain" if execution.cell_evaluation == "auto" and no_kernels else execution.cell_evaluation


def allows_graphs(execution: Execution, method: Method | None = None, remedies: Sized = ()) -> bool:
    """Whether training steps may run as CUDA graphs. Remedies change from epoch to epoch what a step does."""
    return execution.graph == "auto" and not isinstance(method, SecondOrder) and not len(remedies)


def check_execution(execution: Execution, method: Method | None = None, prefix: str = "") -> None:
    """Refuses settings that exclude each other. Messages name settings with this prefix.

    Raises:
        ValueError: the setting and the reason.
    """
    if execution.cell_evaluation != "kernels":
        return
    if isinstance(method, PartialChannels):
        raise ValueError(f"{prefix}cell_evaluation: method partial_channels has no kernels, it must be auto or plain")
    for name in _needs_plain(execution):
        raise ValueError(
            f"{prefix}{name}: {getattr(execution, name)!r} needs plain cells, set {prefix}cell_evaluation to auto or plain"
        )


def _needs_plain(execution: Execution) -> list[str]:
    wanted = {"precision": execution.precision != "fp32", "tf32": execution.tf32, "compile": execution.compile}
    return [name for name, on in wanted.items() if on]
