"""How many trials share a GPU: from the memory that one is predicted to take."""

from __future__ import annotations

HEADROOM = 1.25  # over the prediction: workspaces of the convolution library, fragments, an epoch's images
PROCESS_BYTES = 600_000_000  # what a process takes before its first tensor: the CUDA context and loaded kernels
MOST_TRIALS = 16  # on one GPU; more take turns rather than run side by side


def trials_that_fit(needed: int, gpu_bytes: int) -> int:
    """How many trials that need so many bytes fit on one GPU with headroom; 0 if not even one does."""
    return min(MOST_TRIALS, int(gpu_bytes // (HEADROOM * needed + PROCESS_BYTES)))


def gpu_fraction(needed: int, gpu_bytes: int) -> float:
    """The share of a GPU that a trial asks for, such that all that share one fit; the whole GPU if it may be too large for it.

    Rounded down to Ray's resolution, a ten-thousandth, so that three thirds are not more than one.
    """
    return int(10_000 / max(1, trials_that_fit(needed, gpu_bytes))) / 10_000
