"""The share of a GPU that a trial gets.

Ray fills one GPU before it takes the next, so small shares would leave GPUs idle: a share is as large as the trials that are ready
allow. Shares are halves of halves, because others leave fragments that Ray counts as room and never gives away.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from pdarts_tune.config.serialize import ConfigError

SHARES = (0.125, 0.25, 0.5, 1.0)
HEADROOM = 1.25  # over the prediction: workspaces of the convolution library, fragments, an epoch's images
PROCESS_BYTES = 600_000_000  # of a process before its first tensor: the CUDA context and loaded kernels
BY_FAR = 4  # evaluations for each GPU, above which two of them share one


def memory_share(needed: int, gpu_bytes: int) -> float:
    """The smallest share whose part of the GPU's memory holds so many predicted bytes; 1 if none does."""
    taken = HEADROOM * needed + PROCESS_BYTES
    return next((share for share in SHARES if share * gpu_bytes >= taken), 1.0)


def trials_that_fit(needed: int, gpu_bytes: int) -> int:
    """How many trials that need so many bytes fit on one GPU; 0 if not even one does."""
    return int(1 / memory_share(needed, gpu_bytes)) if HEADROOM * needed + PROCESS_BYTES <= gpu_bytes else 0


def gpu_share(needed: int, gpu_bytes: int, gpus: float, ready: int, *, evaluation: bool = False, failed: float = 0.0) -> float:
    """The share of a trial that needs so many bytes.

    Args:
        gpus: of the cluster.
        ready: trials that wait or run, this one with them.
        evaluation: it keeps a GPU busy, so it gets one, or half of one where there are by far more of them than GPUs.
        failed: the share with which it ran out of memory before; 0: it did not.
    """
    fair = gpus / max(1, ready)
    if evaluation:
        fair = max(fair, 0.5 if ready > BY_FAR * gpus else 1.0)
    least = max(memory_share(needed, gpu_bytes), fair, min(1.0, 2 * failed))
    return next((share for share in SHARES if share >= least), 1.0)


def check_gpus_per_trial(gpus: float | None) -> None:
    """Raises ConfigError for a number of GPUs that leaves fragments."""
    if gpus is not None and gpus not in SHARES and (gpus < 1 or gpus % 1):
        raise ConfigError(
            f"gpus_per_trial: {gpus} is wrong, it must be 1/8, 1/4, 1/2 (0.125, 0.25, 0.5) or a whole number; other shares leave "
            f"parts of GPUs that no trial gets"
        )


def memory_fraction(share: float, gpu_bytes: int) -> float:
    """The fraction of a GPU's memory that PyTorch may take in a process with this share: without what the process itself takes."""
    return max(0.0, share - PROCESS_BYTES / gpu_bytes) if share < 1 else 1.0


@contextmanager
def multi_process_service() -> Iterator[None]:
    """NVIDIA's MPS on this machine, under which processes use one GPU at the same time and not in turn. Ray must start within.

    Raises:
        ConfigError: there is no such service, or it does not start.
    """
    program = "nvidia-cuda-mps-control"
    if shutil.which(program) is None:
        raise ConfigError(f"mps: {program} is not there; it comes with NVIDIA's driver. Without --mps trials take turns on a GPU")
    with tempfile.TemporaryDirectory(prefix="mps-") as folder:
        places = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        before = {name: os.environ.get(name) for name in places}
        os.environ.update(places)  # for the service, and for the trials that Ray starts
        try:
            started = subprocess.run([program, "-d"], capture_output=True, text=True, check=False)
            if started.returncode:
                reason = (started.stderr or started.stdout).strip().splitlines() or ["no reason given"]
                raise ConfigError(
                    f"mps: {program} does not start ({reason[0]}); start it as the owner of the GPUs, or leave --mps out"
                )
            try:
                yield
            finally:
                subprocess.run([program], input="quit\n", capture_output=True, text=True, check=False)
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
