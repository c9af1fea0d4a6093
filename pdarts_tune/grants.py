"""What a trial is given of a cluster: its share of a GPU and the CPUs that go with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pdarts_tune.config import ConfigError
from pdarts_tune.packing import gpu_fraction


@dataclass(frozen=True)
class Grants:
    """What a trial is given of the cluster."""

    nodes: Sequence[Mapping[str, float]]  # what each has
    gpus_per_trial: float | None  # None: as follows from the memory that a trial needs
    gpu_bytes: int | None  # of the smallest GPU, where that is known

    def resources(self, needed_bytes: int) -> dict[str, float]:
        """For a trial that needs so many bytes on its device; 0: nobody knows. Raises ConfigError: no node has so much."""
        gpus = self.gpus_per_trial
        if gpus is None:
            gpus = gpu_fraction(needed_bytes, self.gpu_bytes) if self.gpu_bytes and needed_bytes else 1.0
        return trial_resources(self.nodes, gpus)


def trial_resources(nodes: Sequence[Mapping[str, float]], gpus_per_trial: float) -> dict[str, float]:
    """What one trial asks of the cluster: GPUs where there are any, otherwise one CPU.

    Raises:
        ConfigError: no node can ever give so much; Ray would wait for ever.
    """
    most = max((node.get("GPU", 0) for node in nodes), default=0)
    cpus = max((node.get("CPU", 0) for node in nodes if node.get("GPU", 0) == most), default=0)
    if cpus < 1:
        raise ConfigError(f"address: a trial takes 1 CPU, the largest {'GPU ' if most else ''}node has {cpus:g}")
    if not most:
        return {"cpu": 1}
    if gpus_per_trial > most:
        raise ConfigError(f"gpus_per_trial: {gpus_per_trial} asked, the largest node has {most:g}")
    # CPUs go with the GPUs; one process that keeps its images on the device has no use for more than four.
    share = min(node.get("CPU", 0) * gpus_per_trial / node["GPU"] for node in nodes if node.get("GPU", 0) >= gpus_per_trial)
    return {"gpu": gpus_per_trial, "cpu": max(1, min(4, int(share)))}
