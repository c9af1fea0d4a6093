"""PyTorch's switches, as a search's execution settings want them, and put back afterwards."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from pdarts_tune.config.execution import Execution
from pdarts_tune.networks.supernet import Supernet

# MERGED DOCSTRING
# Running out of memory as a result: what counts as that, in which stage it happened, and how many bytes the stage wanted.

COMPILER: str | Callable[..., Any] = "inductor"

# Cells of one shape share their code, but a network has up to a dozen shapes of cells, and each is compiled for steps of weights
# and of alphas, for evaluation, for the smaller last batch and with and without dropout.
MOST_VERSIONS = 512


@contextmanager
def switched(execution: Execution, device: torch.device) -> Iterator[None]:
    """While this is open, PyTorch computes on the device as the settings say.

    Deterministic algorithms of cuBLAS need an environment variable, which stays set: the library reads it once.
    """
    with ExitStack() as stack:
        if device.type == "cuda":
            cudnn: Any = torch.backends.cudnn
            for switch in (torch.backends.cuda.matmul, cudnn.conv):
                _set(stack, switch, "fp32_precision", "tf32" if execution.tf32 else "ieee")
        if execution.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            _set(stack, torch.backends.cudnn, "benchmark", False)
            _set(stack, torch.backends.cudnn, "deterministic", True)
            warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
            stack.callback(torch.use_deterministic_algorithms, torch.are_deterministic_algorithms_enabled(), warn_only=warn_only)
            torch.use_deterministic_algorithms(True)
        if execution.compile:
            # Each shape is compiled for itself: code that generalises over shapes depends on the order in which they came, and a
            # search that was continued would run other code than one that never stopped.
            stack.enter_context(
                torch._dynamo.config.patch(
                    automatic_dynamic_shapes=False,
                    recompile_limit=MOST_VERSIONS,
                    accumulated_recompile_limit=MOST_VERSIONS,
                    fail_on_recompile_limit_hit=True,  # rather than go on uncompiled, and say nothing
                )
            )
        yield


def keep_freed_memory() -> None:
    """Has the C library keep the memory of freed tensors for the next ones, for the rest of the process.

    By default it returns large blocks to the system, which then clears each page again when it is next touched: 7 to 9 % of a
    step of the search network on a CPU. The peak of a stage stays as it was, since a step needs it all anyway. Only glibc has this
    switch; elsewhere nothing happens.
    """
    trim_threshold, mmap_threshold = -1, -3  # names of the settings, from malloc.h
    mallopt = _from_c("mallopt")
    if mallopt is not None:
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_threshold, 2**25)


def give_back_freed_memory() -> None:
    """Returns to the system what `keep_freed_memory` has kept: what comes next would else be said to need it."""
    gc.collect()
    malloc_trim = _from_c("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def _from_c(name: str) -> Callable[..., int] | None:
    """A function of the C library; None where it has none of that name."""
    try:
        function: Callable[..., int] = getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):
        return None
    return function


def compile_cells(network: Supernet) -> None:
    """Compiles the cells of a new stage when they first run; code of earlier stages is dropped."""
    torch._dynamo.reset()
    for cell in network.cells:
        cell.compile(backend=COMPILER)


def _set(stack: ExitStack, switch: Any, name: str, value: object) -> None:
    stack.callback(setattr, switch, name, getattr(switch, name))
    setattr(switch, name, value)


# Allocators that raise a plain RuntimeError: PyTorch's on the CPU, and CUDA's libraries when they find no workspace.
_ALLOCATOR_MESSAGES = (
    "DefaultCPUAllocator",
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


class StageMemoryError(MemoryError):
    """A stage of a search found too little memory. `needed` are the bytes that the stage takes, by prediction."""

    def __init__(self, message: str, stage: int, needed: int) -> None:
        super().__init__(message)
        self.stage = stage
        self.needed = needed


class MemoryLimitError(StageMemoryError):
    """A stage would take more than the search's `memory_limit`. Another attempt would find the same."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that an allocation failed, on a device or on the host."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in _ALLOCATOR_MESSAGES)


def check_limit(stage: int, needed: int, limit: int) -> None:
    """Raises MemoryLimitError if a stage (counted from 1) needs more bytes than the limit."""
    if needed > limit:
        raise MemoryLimitError(f"stage {stage}: takes {needed:,} bytes by prediction, memory_limit is {limit:,}", stage, needed)


def stage_error(stage: int, needed: int, error: Exception) -> StageMemoryError:
    """What to raise in place of an allocation's error, with the stage (counted from 1) and what it takes by prediction."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return StageMemoryError(f"stage {stage}: takes {needed:,} bytes by prediction; {reason}", stage, needed)
