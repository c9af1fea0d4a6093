"""Trains one genotype on several devices through Ray Train: a process a device, gradients averaged by PyTorch's DDP.

training.py says what equals one device's training. The first process writes a checkpoint after every epoch to the results folder,
which all machines must share. When a process dies, Ray starts all of them again from the checkpoint: at most the running epoch is
lost.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train import WorkerGroupError
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from pdarts_tune.config.evaluation import EvalConfig
from pdarts_tune.config.serialize import ConfigError, from_dict
from pdarts_tune.data.batches import Workers
from pdarts_tune.evaluation.job import EvalJob, epoch_line, run_eval_job, write_eval_row
from pdarts_tune.evaluation.training import EvalEpoch
from pdarts_tune.networks.runtime import keep_freed_memory, reset_peak_bytes
from pdarts_tune.results.tables import read_rows

for _name, _value in {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}.items():
    os.environ.setdefault(_name, _value)  # before Ray is imported, which reads them then

MAX_FAILURES = 2


def train_on_devices(job: EvalJob, devices: int, address: str | None = None, show: Callable[[str], None] = print) -> None:
    """Runs or continues one evaluation on so many GPUs, or in CPU processes where the cluster has no GPU.

    Connects to a Ray cluster, or starts Ray on this machine, and disconnects at the end.

    Raises:
        ConfigError: there is no cluster at `address`, or it has too few devices.
        RuntimeError: the training failed more than MAX_FAILURES times; the row has the reason.
    """
    modules = {} if address is None else {"runtime_env": {"py_modules": [str(Path(__file__).parents[1])]}}
    try:
        dashboard = None if address else False
        ray.init(address or "local", include_dashboard=dashboard, log_to_driver=False, logging_level="ERROR", **modules)
    except (ConnectionError, ValueError) as error:
        raise ConfigError(f"address: no Ray cluster at {address!r} ({str(error).splitlines()[0]})") from None
    storage = Path(job.folder) / "ray"
    try:
        resources = ray.cluster_resources()
        kind = "GPU" if resources.get("GPU", 0) else "CPU"
        if resources.get(kind, 0) < devices:
            raise ConfigError(f"devices: {devices} asked for, the cluster has {resources.get(kind, 0):g} of kind {kind}")
        show(f"training on {devices} devices of kind {kind}; epochs: {job.log}")
        trainer = TorchTrainer(
            _work,
            train_loop_config=asdict(job),
            torch_config=TorchConfig(backend="nccl" if kind == "GPU" else "gloo"),
            scaling_config=ray.train.ScalingConfig(num_workers=devices, use_gpu=kind == "GPU"),
            run_config=ray.train.RunConfig(
                name=job.trial_id,
                storage_path=str(storage),
                failure_config=ray.train.FailureConfig(max_failures=MAX_FAILURES),
            ),
        )
        try:
            trainer.fit()
        except Exception as error:  # Ray wraps errors of all kinds
            rows = read_rows(Path(job.folder), "evaluations", job.trial_id)
            if rows and rows[0]["status"] == "completed":
                return  # the failure came after the row
            if not rows or rows[0]["status"] not in ("failed", "out_of_memory") or _reason(error).startswith("ConfigError"):
                attempt = {name: rows[0][name] for name in ("started", "attempts")} if rows else {}
                write_eval_row(job, attempt | {"status": "failed", "failure": _reason(error)})
                rows = read_rows(Path(job.folder), "evaluations", job.trial_id)
            raise RuntimeError(str(rows[0]["failure"]).splitlines()[0]) from error
    finally:
        ray.shutdown()
        shutil.rmtree(storage, ignore_errors=True)


def _reason(error: Exception) -> str:
    """Why a training ended whose first process could not write it: the error of another process, or a lost process."""
    failures = error.worker_failures.values() if isinstance(error, WorkerGroupError) else ()
    # For an error in our code Ray has the text of a traceback. Other processes then report a closed connection.
    tracebacks = [str(failure).strip() for failure in failures if "Traceback" in str(failure)]
    reasons = [text.splitlines()[-1].removeprefix("pdarts_tune.config.serialize.") for text in tracebacks]
    reasons.sort(key=lambda reason: not reason.startswith("ConfigError"))
    return reasons[0] if reasons else "a process of the training died (killed, or its node was lost)"


def _work(settings: dict[str, Any]) -> None:
    """The training in each process."""
    job = EvalJob(**settings)
    config = from_dict(EvalConfig, job.config)
    context = ray.train.get_context()
    workers = Workers(context.get_world_rank(), context.get_world_size())
    device = get_device()
    if device.type == "cpu":
        torch.set_num_threads(1)
        keep_freed_memory()
    else:
        torch.cuda.set_device(device)  # the exchange of objects between processes uses it
    reset_peak_bytes(device)

    def report(epoch: EvalEpoch) -> None:
        if workers.rank == 0:
            with job.log.open("a") as log:
                log.write(epoch_line(epoch, config) + "\n")
        ray.train.report({"epoch": epoch.epoch, "train_loss": epoch.train_loss})

    run_eval_job(job, device, report, workers)
