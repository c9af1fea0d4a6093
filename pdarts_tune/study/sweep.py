"""A Ray session and the sweep of a study's trials over it, through Ray Tune.

`Queue` hands trials to Tune as they become possible. `Display` receives Tune's reports. It shows progress and ends a sweep that
cannot go on.
"""

from __future__ import annotations

import logging
import math
import os
import pickle
import re
import secrets
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import joblib
import ray
from ray import tune
from ray._private.services import canonicalize_bootstrap_address
from ray.exceptions import AuthenticationError, RayActorError, RayTaskError
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.search import Searcher
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pdarts_tune.config.search import SearchConfig
from pdarts_tune.config.serialize import ConfigError, from_dict, to_dict
from pdarts_tune.evaluation.job import EvalJob, error_text, write_eval_row
from pdarts_tune.networks.runtime import lacks_gpu_memory
from pdarts_tune.results.storage import Storage, open_filesystem
from pdarts_tune.results.tables import read_rows, write_rows
from pdarts_tune.study.forecast import predict_need, refuse_large
from pdarts_tune.study.plan import Arguments, EvalTrial, SearchTrial
from pdarts_tune.study.progress import Progress
from pdarts_tune.study.shares import ClusterLostError, Grants
from pdarts_tune.study.trainable import PRETEND, TrialRow, TrialSpec, evaluation_job, run_trial

if TYPE_CHECKING:
    from pdarts_tune.study.run import StudyState


DIED = "the process of the trial died (killed, or its node was lost)"

_PROBE, _PROBE_BYTES = ".probe", 2**20  # written after a failure: a full disk often has room for a few small files
LOOK_EVERY_SECONDS = 15.0  # whether the cluster has a node left, without which Ray would wait for ever
WAITING = 16  # trials that wait for room, at the least, on a cluster that grows for those that wait


class Display(TrialProgressCallback):  # else Tune adds its own, which prints at any verbosity
    """Shows what Tune reports, and ends a sweep that cannot go on.

    `queue`: what also hears of trials that end or start again. `error` is what ends the sweep: Tune wraps what its callbacks raise.
    """

    def __init__(self, progress: Progress, storage: Storage, queue: Queue | None = None) -> None:
        self.progress, self.storage, self.queue = progress, storage, queue
        self.error: Exception | None = None
        self.checked, self.kernel_kills = time.monotonic(), kernel_kills()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks to restore an experiment; ours is never restored

    @contextmanager
    def keeping_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.error = error
            raise

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if time.monotonic() - self.checked < LOOK_EVERY_SECONDS:
            return
        self.checked = time.monotonic()
        with self.keeping_errors():
            if not any(node["Alive"] for node in ray.nodes()):
                raise ClusterLostError(
                    "no node of the Ray cluster is alive any more; the same command continues the study on a new one"
                )

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.progress.started(trial_id(trial))

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        if "position" in result:
            self.progress.epoch(trial_id(trial), result)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        reason = self._reason(trial) or DIED
        self.progress.retried(trial_id(trial), reason)
        if self.queue:
            self.queue.enlarge(trial, reason)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.finish(trial.config["trial"])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.finish(trial.config["trial"], self._reason(trial))

    def finish(self, spec: Mapping[str, Any], error: str | None = None) -> None:
        """A trial has ended, with this error or well."""
        with self.keeping_errors():
            if self.queue:
                self.queue.end(spec["trial_id"])
            self.progress.finished(spec["trial_id"], is_evaluation=bool(spec["genotype"]), error=error)

    def _reason(self, trial: Any) -> str | None:
        """Why the trial failed, in one line; its table has the traceback. None: the tables say that it is completed."""
        with self.keeping_errors():
            error, kills = _python_error(trial), kernel_kills()
            failures = Path(trial.error_file).read_text() if trial.error_file else ""
            # A kill by Ray's memory monitor is in this file alone, and not among the errors.
            if "running low on memory" in failures.rpartition("Failure #")[2]:
                error = KilledForMemoryError("Ray")
            elif error is None and kills > self.kernel_kills:
                error = KilledForMemoryError("the kernel")
            self.kernel_kills = kills
            reason = record_failure(trial.config, error)
            self.storage.write(_PROBE, bytes(_PROBE_BYTES))
            self.storage.remove(_PROBE)
        return reason.splitlines()[0] if reason else None


class Queue(Searcher):
    """Hands a study's trials to Tune: each when it is possible and there is room for it, so that later ones can overtake it."""

    def __init__(self, state: StudyState, sweep: Sweep, progress: Progress) -> None:
        super().__init__()
        self.state, self.sweep = state, sweep
        self.display = Display(progress, sweep.storage, self)
        self._live: dict[str, Mapping[str, float]] = {}  # what the trials that Tune has take, by trial id

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        with self.display.keeping_errors():
            while trial := self.state.take(self._has_room):
                gpus = self.sweep.share(trial, self.state)
                self._live[trial.trial_id] = self.sweep.grants.resources(gpus)
                spec, refusal = self.sweep.describe(trial, gpus), refuse_large(trial, self.sweep.storage)
                if refusal is None:
                    return {"trial": spec}
                self.display.finish(spec, refusal)
            return Searcher.FINISHED if self.state.is_exhausted else None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: the display is called after the trial's last row is written."""

    def save(self, checkpoint_path: str) -> None:
        """Saves nothing: the tables say what is left to do."""

    def _has_room(self, trial: SearchTrial | EvalTrial) -> bool:
        live, running = self._live.values(), len(self.display.progress.running)
        if len(live) >= (self.sweep.settings.max_trials or math.inf):
            return False
        total, request = ray.cluster_resources(), self.sweep.grants.resources(self.sweep.share(trial, self.state))
        taken = {name: sum(other.get(name, 0.0) for other in live) for name in request}
        fits = all(taken[name] + amount <= total.get(name.upper(), 0) for name, amount in request.items())
        grows = self.sweep.settings.address is not None and len(live) - running < max(WAITING, running)
        return fits or grows or not live

    def enlarge(self, trial: Any, reason: str) -> None:
        """A trial whose GPU ran out of memory starts again with twice its share of one."""
        spec = trial.config["trial"]
        if self.sweep.settings.gpus_per_trial is None and 0 < spec["gpus"] < 1 and lacks_gpu_memory(reason):
            trial.set_config({"trial": spec | {"gpus": 2 * spec["gpus"]}})
            trial.update_resources(tune_request(self.sweep.grants, trial.config))
            self._live[spec["trial_id"]] = self.sweep.grants.resources(2 * spec["gpus"])

    def end(self, trial_id: str) -> None:
        """A trial has ended, well or for good."""
        del self._live[trial_id]
        self.state.end(trial_id)
        self.display.progress.total["evaluations"] = self.state.most_evaluations


def record_failure(settings: dict[str, Any], error: BaseException | None) -> str | None:
    """Makes sure that a trial's table records a failed attempt, and returns the reason. The driver calls it.

    A trial that fails in Python writes its own row. One whose process is killed cannot, and may have no row at all. A completed row
    never changes. A trial of the schedule search has two rows: once its search is completed, the failure is its evaluation's.

    Args:
        settings: the trial's settings in Tune.
        error: the error of its Python code; None: its process died.

    Returns:
        None if the trial is completed: its process died after its last row.
    """
    spec, table, column = TrialSpec(**settings["trial"]), "trials", "error"
    job: EvalJob | None = None
    name, rows = spec.trial_id, read_rows(spec.folder, table, spec.trial_id)
    if spec.genotype or (rows and rows[0]["status"] == "completed" and "evaluation" in settings):
        job = spec if spec.genotype else evaluation_job(spec, settings["evaluation"])
        table, column, name = "evaluations", "failure", job.trial_id
        rows = read_rows(spec.folder, table, name)
    status = rows[0]["status"] if rows else None
    if status == "completed":
        return None
    if status in ("failed", "out_of_memory") and error is not None and not isinstance(error, KilledForMemoryError):
        return str(rows[0][column])
    reason, status_now, peak, now = DIED, "failed", None, datetime.now(UTC)
    if isinstance(error, KilledForMemoryError):
        peak = max((row["peak_bytes"] for row in read_rows(spec.folder, "epochs", spec.trial_id)), default=None)
        reason, status_now = error.explain(peak), "out_of_memory"
    elif error is not None:
        reason = error_text(error)
    if status == "running":
        state = {"status": status_now, column: reason, "finished": now, "peak_bytes": peak}
        write_rows(spec.folder, table, name, [rows[0] | state])
    elif job is None:  # this attempt wrote no row
        TrialRow(spec, from_dict(SearchConfig, spec.config)).write(status_now, peak=peak, error=reason)
    else:
        attempt = {"started": rows[0]["started"], "attempts": rows[0]["attempts"] + 1} if rows else {}
        write_eval_row(job, attempt | {"status": status_now, column: reason})
    return reason


class KilledForMemoryError(Exception):
    """A trial's process was killed because the memory of its machine ran out."""

    def explain(self, peak: int | None) -> str:
        """One line: who killed it, what the trial took so far, and what to change."""
        taken = "before its first epoch ended" if peak is None else f"its peak until then was {peak / 1e9:.1f} GB"
        return (
            f"out of memory: {self} killed the process of the trial, the machine had no memory left; {taken}; run fewer trials at "
            "a time (--max-trials 1), give --recompute, or take a smaller batch_size"
        )


def kernel_kills() -> int:
    """How many processes the kernel of the driver's machine has killed for want of memory, since it started."""
    with suppress(OSError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def _python_error(trial: Any) -> BaseException | None:
    """The error of one of Tune's trials, if its own code raised it; None: its process died."""
    if trial.pickled_error_file is None:
        return None
    try:  # its get_pickled_error() looks in the experiment's folder, which has the file only later
        error = pickle.loads(Path(trial.pickled_error_file).read_bytes())  # noqa: S301  (Tune has just written it)
    except Exception as unreadable:  # its class takes other arguments
        return unreadable
    if isinstance(error, RayActorError):
        return None
    return error.cause if isinstance(error, RayTaskError) else error


def trial_id(trial: Any) -> str:
    """Our id of one of Tune's trials."""
    return str(trial.config["trial"]["trial_id"])


for _name, _value in {
    "RAY_AIR_NEW_OUTPUT": "0",  # verbose=0 silences the old output engine alone
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # a driver under `uv run` would make every worker resolve an environment
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # our tables are the log
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C stops at once; every epoch is on disk already
    "TUNE_MAX_PENDING_TRIALS_PG": "1000",  # our queue limits them
}.items():
    os.environ.setdefault(_name, _value)  # before Ray is imported, which reads some of them then


@dataclass(frozen=True)
class Sweep:
    """An open Ray session that runs the trials of one study."""

    storage: Storage
    grants: Grants
    settings: Arguments
    commit: str  # of the code

    def share(self, trial: SearchTrial | EvalTrial, state: StudyState) -> float:
        """The GPUs of a trial, as `Grants.share` says."""
        needed, failed = predict_need(trial) if self.grants.gpu_bytes else 0, lacks_gpu_memory(state.last_error(trial.trial_id))
        return self.grants.share(needed, state.ready, evaluation=isinstance(trial, EvalTrial), failed=failed)

    def slots(self, gpus: float) -> int:
        """How many trials run at the same time, if all have so many GPUs."""
        resources = self.grants.resources(gpus)
        device = "gpu" if resources.get("gpu") else "cpu"
        fit = max(1, int(ray.cluster_resources().get(device.upper(), 1) / resources[device]))
        return min(fit, self.settings.max_trials or fit)

    def describe(self, trial: SearchTrial | EvalTrial, gpus: float) -> dict[str, Any]:
        """The trial's `TrialSpec`, as its worker gets it."""
        genotype, variant = (trial.genotype, "") if isinstance(trial, EvalTrial) else ("", trial.variant)
        place = trial.trial_id, str(self.storage), genotype, to_dict(trial.config), self.settings.keep_weights
        threads = int(self.grants.resources(gpus)["cpu"])
        return asdict(TrialSpec(*place, variant=variant, threads=threads, commit=self.commit, gpus=gpus))

    def run_study(self, state: StudyState) -> int:
        """Runs what the tables lack and returns how many trials failed for good."""
        done = {"searches": len(state.ended), "evaluations": len(state.completed & state.found.keys())}
        total = {"searches": len(state.searches), "evaluations": state.most_evaluations}
        slots = self.slots(self.share(next(iter(state.searches.values())), state))
        with Progress(total, done, slots, state.table) as progress:
            queue = Queue(state, self, progress)
            self.run(run_trial, queue.display, search_alg=queue, num_samples=-1, reuse_actors=True)
        return progress.failed

    def run(self, trainable: Callable[..., None], display: Display, **options: Any) -> None:
        """Runs the trials of a searcher.

        Raises:
            OSError: a trial failed, and the study's folder cannot be written, so every other trial would fail too.
            ClusterLostError: no node is left, so Ray would wait for ever.
        """
        filesystem, root = open_filesystem(self.storage.location)
        tuner = tune.Tuner(
            tune.with_resources(trainable, partial(tune_request, self.grants)),
            tune_config=tune.TuneConfig(trial_name_creator=trial_id, trial_dirname_creator=_trial_dirname, **options),
            run_config=tune.RunConfig(  # all nodes must reach Tune's own state; none of it is worth keeping
                name=self.storage.name,
                storage_path=f"{root}/ray",
                storage_filesystem=filesystem if self.storage.is_remote else None,
                failure_config=tune.FailureConfig(max_failures=self.settings.max_failures),
                callbacks=[display],
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        except Exception:
            if display.error is not None:
                raise display.error from None
            raise


def tune_request(grants: Grants, config: dict[str, Any]) -> Any:
    """What a trial gets, in Tune's form; pickled with the trial."""
    resources = grants.resources(config["trial"]["gpus"])
    return tune.PlacementGroupFactory([{name.upper(): amount for name, amount in resources.items()}])


def _forget_tune_state(storage: Storage) -> None:
    filesystem, root = open_filesystem(storage.location)
    with suppress(OSError):  # it is not there, or a process of a killed study still writes to it
        filesystem.delete_dir(f"{root}/ray")


def _trial_dirname(trial: Any) -> str:
    """A folder for Tune's own files, apart for each trial: a searcher may choose the same point twice."""
    return f"{trial_id(trial)}-{trial.trial_id}"


@contextmanager
def open_sweep(storage: Storage, settings: Arguments, commit: str) -> Iterator[Sweep]:
    """Connects to a Ray cluster, or starts Ray on this machine, for as long as the context lasts.

    Raises:
        ConfigError: there is no cluster at `address`, none of its nodes can ever run a trial, or one has GPUs that PyTorch cannot
            use.
    """
    # Ray's state of an earlier run is never used: our tables and checkpoints decide what is left to do.
    _forget_tune_state(storage)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # the display and the tables have the errors
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        if settings.address is None:  # never somebody else's cluster on this machine
            if not os.access(os.path.expanduser("~"), os.W_OK):  # noqa: PTH111  (raises nothing where there is no home)
                os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # Ray would write one there
            # of the affinity and the control group; Ray counts the machine's
            cpus = max(joblib.cpu_count(), settings.max_trials or 0)
            ray.init("local", num_cpus=cpus, include_dashboard=False, **quiet)
        else:
            _check_answer(settings.address)
            ray.init(settings.address, runtime_env={"py_modules": [str(Path(__file__).parents[1])]}, **quiet)
    except Exception as error:  # Ray has no common type for what keeps it from starting
        ray.shutdown()
        raise ConfigError(explain_start_error(error, settings.address)) from None
    for number, handler in handlers.items():
        signal.signal(number, handler)  # Ray's start installs one that aborts
    try:
        gpu_bytes = _smallest_gpu_bytes()
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        grants = Grants(nodes, settings.gpus_per_trial, gpu_bytes)
        grants.resources(grants.share(0, 0))  # raises, before anything runs, if no node has so much
        yield Sweep(storage, grants, settings, commit)
    finally:
        ray.shutdown()
    _forget_tune_state(storage)


def _check_answer(address: str) -> None:
    """Raises OSError where nothing answers at HOST:PORT, or at the cluster that `auto` means. Ray would try for minutes."""
    if address == "auto":
        address = canonicalize_bootstrap_address(address) or ""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=20).close()


def explain_start_error(error: Exception, address: str | None) -> str:
    """One line: why Ray does not start here, or why the cluster at `address` does not take us, and the setting that helps."""
    line, temporary = " ".join(str(error).split()), os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"  # noqa: S108
    if isinstance(error, AuthenticationError) or re.search("unauthenticated|authenticat|auth token", line, re.IGNORECASE):
        where = f"the cluster at {address!r}" if address else "Ray on this machine"
        return (
            f"address: {where} wants another token than this user's; RAY_AUTH_TOKEN_PATH names the file with the cluster's, "
            f"RAY_AUTH_MODE=disabled is for one without ({line[:150]})"
        )
    if address is not None:
        if versions := re.search("started with: (.*) This process .* started with: (.*)", line):
            return f"address: the cluster at {address!r} runs {versions[1]}, here are {versions[2]}; they must be the same"
        return f"address: no Ray cluster at {address!r} ({line[:300]})"
    if "AF_UNIX" in line:
        return f"RAY_TMPDIR: {temporary} is too long a name for Ray's sockets; set it to a short one, such as /tmp/ray-me"
    if isinstance(error, OSError) and str(error.filename or "").startswith(temporary):
        return f"RAY_TMPDIR: {error.filename} cannot be written ({error.strerror}); set it to a folder with a short name that can"
    return f"Ray does not start on this machine: {type(error).__name__}: {line[:300]}"


def _smallest_gpu_bytes() -> int | None:
    """The memory of the smallest of the nodes' GPUs; None where no node has one. ConfigError if PyTorch cannot use one."""
    tasks = {
        node["NodeManagerAddress"]: _gpu_bytes.options(
            num_gpus=0.01, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote()
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("GPU")
    }
    sizes = dict(zip(tasks, ray.get(list(tasks.values())), strict=True))
    for node, size in sizes.items():
        if isinstance(size, str):
            raise ConfigError(f"address: node {node} offers GPUs, but {size}; `python -m pdarts_tune.doctor` there says more")
    return min(sizes.values(), default=None)


@ray.remote(num_cpus=0)
def _gpu_bytes() -> int | str:
    """The memory of this node's first GPU, or why PyTorch cannot use it."""
    if pretended := os.environ.get(PRETEND):
        return int(pretended)
    import torch

    from pdarts_tune.networks.runtime import cuda_problem

    return cuda_problem() or torch.cuda.get_device_properties(0).total_memory
