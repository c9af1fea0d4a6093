"""A Ray session, and one sweep of trials over it through Ray Tune. With trainable.py the only room that knows Ray."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

for _name, _value in {
    "RAY_AIR_NEW_OUTPUT": "0",  # the old output engine is the one that verbose=0 silences
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # a driver under `uv run` would make every worker resolve an environment
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # our tables are the log
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C stops at once; every epoch is on disk already
}.items():
    os.environ.setdefault(_name, _value)  # before Ray is imported, which reads some of them then

import ray  # noqa: E402
from ray import tune  # noqa: E402
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: E402

from pdarts_tune.config import ConfigError  # noqa: E402
from pdarts_tune.guards import ClusterLostError  # noqa: E402
from pdarts_tune.packing import gpu_fraction  # noqa: E402
from pdarts_tune.progress import Progress  # noqa: E402
from pdarts_tune.storage import Storage, open_filesystem  # noqa: E402
from pdarts_tune.trainable import record_failure, run_trial  # noqa: E402

_PROBE, _PROBE_BYTES = ".probe", 2**20  # written where a trial failed: enough to tell a full disk from one with a little room


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

    def request(self, config: dict[str, Any]) -> Any:
        """The same in the form in which Tune asks for each trial."""
        asked = self.resources(config["trial"]["needed_bytes"])
        return tune.PlacementGroupFactory([{name.upper(): amount for name, amount in asked.items()}])


@dataclass(frozen=True)
class Sweep:
    """An open Ray session that runs the trials of one study.

    `changed` is called with a trial's id whenever its tables may have new rows; it must not block.
    """

    storage: Storage
    grants: Grants
    max_failures: int
    changed: Callable[[str], None]

    def threads(self, needed_bytes: int) -> int:
        """The CPUs of a trial that needs so much memory."""
        return int(self.grants.resources(needed_bytes)["cpu"])

    def slots(self, specs: Sequence[dict[str, Any]]) -> int:
        """How many of the trials run at the same time, if all were like the smallest."""
        resources = self.grants.resources(min((spec["needed_bytes"] for spec in specs), default=0))
        device = "gpu" if resources.get("gpu") else "cpu"
        return max(1, int(ray.cluster_resources().get(device.upper(), 1) / resources[device]))

    def run(self, specs: Sequence[dict[str, Any]], what: str, total: int) -> int:
        """Runs the trials and returns how many failed for good. `total` counts those of the study, finished ones included.

        Raises:
            OSError: a trial failed, and the study's folder cannot be written: no other trial could do better.
            ClusterLostError: no node is left, and Ray would wait for ever.
        """
        with Progress(what, total, total - len(specs), self.slots(specs)) as progress:
            if not specs:
                return 0
            display = _Display(progress, self.changed, self.storage)
            tuner = tune.Tuner(
                tune.with_resources(run_trial, self.grants.request),
                param_space={"trial": tune.grid_search(list(specs))},
                tune_config=tune.TuneConfig(trial_name_creator=_trial_id, trial_dirname_creator=_trial_id, reuse_actors=True),
                run_config=self._run_config(what, display),
            )
            self._fit(tuner, display)
        return progress.failed

    def run_adaptive(self, trainable: Callable[..., None], searcher: Any, scheduler: Any, what: str, total: int, done: int) -> int:
        """Runs trials that `searcher` chooses as results come in, until `total` are done; `scheduler` may stop them early."""
        slots = self.slots([])
        with Progress(what, total, min(done, total), slots) as progress:
            if done >= total:
                return 0
            display = _Display(progress, self.changed, self.storage)
            tuner = tune.Tuner(
                tune.with_resources(trainable, self.grants.request),
                tune_config=tune.TuneConfig(
                    search_alg=searcher,
                    scheduler=scheduler,
                    num_samples=total - done,
                    max_concurrent_trials=slots,  # without it a searcher has one trial under way at a time
                    trial_name_creator=_trial_id,
                    trial_dirname_creator=_trial_dirname,
                ),
                run_config=self._run_config(what, display),
            )
            self._fit(tuner, display)
        return progress.failed

    def _run_config(self, what: str, display: _Display) -> Any:
        return tune.RunConfig(
            name=what,
            **_tune_storage(self.storage),
            failure_config=tune.FailureConfig(max_failures=self.max_failures),
            callbacks=[display, display.watch],
            verbose=0,
        )

    def _fit(self, tuner: Any, display: _Display) -> None:
        try:
            tuner.fit()
        except Exception:
            error = display.storage_error or display.watch.error
            if error is not None:
                raise error from None
            raise


class _Display(tune.Callback):
    """Shows what Tune reports."""

    def __init__(self, progress: Progress, changed: Callable[[str], None], storage: Storage) -> None:
        self.progress = progress
        self.changed = changed
        self.storage = storage
        self.storage_error: OSError | None = None
        self.watch = _NodeWatch()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks to restore an experiment; ours is never restored, and a display cannot be pickled

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.progress.started(_trial_id(trial))

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Any],
        trial: Any,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        if "position" in result:
            fields = ("position", "accuracy", "done_epochs", "total_epochs", "epoch_seconds")
            self.progress.epoch(_trial_id(trial), **{field: result[field] for field in fields}, warning=result.get("warning", ""))
        self.changed(_trial_id(trial))

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.progress.retried(_trial_id(trial), self._reason(trial))
        self.changed(_trial_id(trial))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.progress.finished(_trial_id(trial))
        self.changed(_trial_id(trial))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.progress.finished(_trial_id(trial), self._reason(trial))
        self.changed(_trial_id(trial))

    def _reason(self, trial: Any) -> str:
        """Why the trial failed, in one line; its table has the traceback."""
        try:
            reason = record_failure(trial.config["trial"])
            self.storage.write(_PROBE, bytes(_PROBE_BYTES))
            self.storage.remove(_PROBE)
        except OSError as error:
            self.storage_error = error  # Tune wraps what its callbacks raise
            raise
        return reason.splitlines()[0]


class _NodeWatch(tune.Callback):
    """Ends the sweep when the last node is lost."""

    def __init__(self, every: float = 15.0) -> None:
        self.every = every  # seconds
        self.looked = time.monotonic()
        self.error: ClusterLostError | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if time.monotonic() - self.looked < self.every:
            return
        self.looked = time.monotonic()
        if not any(node["Alive"] for node in ray.nodes()):
            self.error = ClusterLostError(
                "no node of the Ray cluster is alive any more; the same command continues the study on a new one"
            )
            raise self.error


def _trial_id(trial: Any) -> str:
    return str(trial.config["trial"]["trial_id"])


def _tune_storage(storage: Storage) -> dict[str, Any]:
    """Where Tune keeps its own state, which all nodes must reach; none of it is worth keeping."""
    if not storage.is_remote:
        return {"storage_path": str(storage.path / "ray")}
    filesystem, root = open_filesystem(storage.location)
    return {"storage_path": f"{root}/ray", "storage_filesystem": filesystem}


def _forget_tune_state(storage: Storage) -> None:
    if not storage.is_remote:
        shutil.rmtree(storage.path / "ray", ignore_errors=True)
        return
    filesystem, root = open_filesystem(storage.location)
    with suppress(FileNotFoundError):
        filesystem.delete_dir(f"{root}/ray")


def _trial_dirname(trial: Any) -> str:
    """A folder for Tune's own files; a searcher may choose the same point twice."""
    return f"{_trial_id(trial)}-{trial.trial_id}"


@contextmanager
def open_sweep(
    storage: Storage, address: str | None, gpus_per_trial: float | None, max_failures: int, changed: Callable[[str], None]
) -> Iterator[Sweep]:
    """Connects to a Ray cluster, or starts Ray on this machine, for as long as the context lasts.

    Raises:
        ConfigError: there is no cluster at `address`, or none of its nodes can ever run a trial.
    """
    # Ray's own state of an earlier run is never continued: the tables and our checkpoints decide what is left to do.
    _forget_tune_state(storage)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what goes wrong is shown by the display and kept in the tables
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        ray.init("local", include_dashboard=False, **quiet)  # never a cluster that somebody else started on this machine
    else:
        try:
            ray.init(address, runtime_env={"py_modules": [str(Path(__file__).parent)]}, **quiet)
        except (ConnectionError, ValueError) as error:
            raise ConfigError(f"address: no Ray cluster at {address!r} ({str(error).splitlines()[0]})") from None
    try:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        grants = Grants(nodes, gpus_per_trial, _smallest_gpu_bytes() if gpus_per_trial is None else None)
        grants.resources(0)  # refuses what no node has before anything runs
        yield Sweep(storage, grants, max_failures, changed)
    finally:
        ray.shutdown()
    _forget_tune_state(storage)


def _smallest_gpu_bytes() -> int | None:
    """The memory of the smallest of the nodes' GPUs; None where there are none, or none that CUDA knows."""
    asked = [
        _gpu_bytes.options(num_gpus=0.01, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote()
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("GPU")
    ]
    sizes = ray.get(asked)
    return min(sizes) if sizes and None not in sizes else None


@ray.remote(num_cpus=0)
def _gpu_bytes() -> int | None:
    import torch

    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None


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
