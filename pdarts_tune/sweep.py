"""A Ray session, and one sweep of trials over it through Ray Tune."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
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

from pdarts_tune.callbacks import Display, trial_id  # noqa: E402
from pdarts_tune.config import ConfigError  # noqa: E402
from pdarts_tune.grants import Grants  # noqa: E402
from pdarts_tune.progress import Progress  # noqa: E402
from pdarts_tune.storage import Storage, open_filesystem  # noqa: E402
from pdarts_tune.trainable import run_trial  # noqa: E402


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
            display = Display(progress, self.changed, self.storage)
            tuner = tune.Tuner(
                tune.with_resources(run_trial, partial(tune_request, self.grants)),
                param_space={"trial": tune.grid_search(list(specs))},
                tune_config=tune.TuneConfig(trial_name_creator=trial_id, trial_dirname_creator=trial_id, reuse_actors=True),
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
            display = Display(progress, self.changed, self.storage)
            tuner = tune.Tuner(
                tune.with_resources(trainable, partial(tune_request, self.grants)),
                tune_config=tune.TuneConfig(
                    search_alg=searcher,
                    scheduler=scheduler,
                    num_samples=total - done,
                    max_concurrent_trials=slots,  # without it a searcher has one trial under way at a time
                    trial_name_creator=trial_id,
                    trial_dirname_creator=_trial_dirname,
                ),
                run_config=self._run_config(what, display),
            )
            self._fit(tuner, display)
        return progress.failed

    def _run_config(self, what: str, display: Display) -> Any:
        return tune.RunConfig(
            name=what,
            **_tune_storage(self.storage),
            failure_config=tune.FailureConfig(max_failures=self.max_failures),
            callbacks=[display, display.watch],
            verbose=0,
        )

    def _fit(self, tuner: Any, display: Display) -> None:
        try:
            tuner.fit()
        except Exception:
            error = display.storage_error or display.watch.error
            if error is not None:
                raise error from None
            raise


def tune_request(grants: Grants, config: dict[str, Any]) -> Any:
    """What a trial is given, in the form in which Tune asks for each; pickled with the trial."""
    asked = grants.resources(config["trial"]["needed_bytes"])
    return tune.PlacementGroupFactory([{name.upper(): amount for name, amount in asked.items()}])


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
    return f"{trial_id(trial)}-{trial.trial_id}"


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
