"""What a trial gets of the cluster: its share of a GPU, and the CPUs that go with it.

Ray fills one GPU before it takes the next, so small shares would leave GPUs idle: a share is as large as the trials that are ready
allow. Shares are halves of halves, because others leave fragments that Ray counts as room and never gives away.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from pdarts_tune.config.serialize import ConfigError

SHARES = (0.125, 0.25, 0.5, 1.0)
# Reserved memory over the prediction: fragments, workspaces of the convolution library, an epoch's images. Measured on an H200 with
# PyTorch 2.11, 2026-11-26, in segments that grow (networks/runtime.py): at most this; with graphs 1.04 times the steps held.
HEADROOM = 1.25
PROCESS_BYTES = 600_000_000  # of a process before its first tensor: the CUDA context and loaded kernels
BY_FAR = 4  # evaluations for each GPU, above which two of them share one


def memory_share(needed: int, gpu_bytes: int) -> float:
    """The smallest share whose part of the GPU's memory holds so many predicted bytes; 1 if none does."""
    taken = HEADROOM * needed + PROCESS_BYTES
    return next((share for share in SHARES if share * gpu_bytes >= taken), 1.0)


def trials_that_fit(needed: int, gpu_bytes: int) -> int:
    """How many trials that need so many bytes fit on one GPU; 0 if not even one does."""
    return int(1 / memory_share(needed, gpu_bytes)) if HEADROOM * needed + PROCESS_BYTES <= gpu_bytes else 0


class ClusterLostError(RuntimeError):
    """All nodes of a study's Ray cluster are gone. The message is one line."""


@dataclass(frozen=True)
class Grants:
    """What each trial gets of the cluster."""

    nodes: Sequence[Mapping[str, float]]  # the resources of each
    gpus_per_trial: float | None  # of every trial; None: what `share` says
    gpu_bytes: int | None  # of the smallest GPU; None: there is none

    def share(self, needed: int, ready: int, *, evaluation: bool = False, failed: bool = False) -> float:
        """The GPUs of a trial, 0 where there are none.

        Args:
            needed: bytes; 0: not known, the trial gets one GPU.
            ready: trials that wait or run, this one with them.
            evaluation: it keeps a GPU busy, so it gets one, or half of one where there are by far more of them than GPUs.
            failed: its GPU ran out of memory before, so it gets twice what its memory asks for.
        """
        if self.gpu_bytes is None:
            return 0.0
        if self.gpus_per_trial is not None or not needed:
            return self.gpus_per_trial or 1.0
        gpus = sum(node.get("GPU", 0) for node in self.nodes)
        fair = gpus / max(1, ready)
        if evaluation:
            fair = max(fair, 0.5 if ready > BY_FAR * gpus else 1.0)
        least = max(fair, memory_share(needed, self.gpu_bytes) * (1 + failed))
        return next((share for share in SHARES if share >= least), 1.0)

    def resources(self, gpus: float) -> dict[str, float]:
        """GPUs, and the CPUs that go with them; one CPU on a cluster without GPUs.

        Raises:
            ConfigError: no node has so much, so Ray would wait for ever.
        """
        most = max((node.get("GPU", 0) for node in self.nodes), default=0)
        cpus = max((node.get("CPU", 0) for node in self.nodes if node.get("GPU", 0) == most), default=0)
        if cpus < 1:
            raise ConfigError(f"address: a trial takes 1 CPU, the largest {'GPU ' if most else ''}node has {cpus:g}")
        if not most:
            return {"cpu": 1}
        if gpus > most:
            raise ConfigError(f"gpus_per_trial: {gpus} asked, the largest node has {most:g}")
        # A process that keeps its images on the device uses at most four CPUs.
        share = min(node.get("CPU", 0) * gpus / node["GPU"] for node in self.nodes if node.get("GPU", 0) >= gpus)
        return {"gpu": gpus, "cpu": max(1, min(4, int(share)))}


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
            for name in places:
                del os.environ[name]
