"""Running out of memory as a result: what counts as that, in which stage it happened, and how many bytes the stage wanted."""

from __future__ import annotations

import torch

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
