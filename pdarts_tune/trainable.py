"""A trial: configuration in, rows and checkpoints out. These are the functions that Ray Tune schedules over the cluster.

Tables and checkpoints are written here, by the process that has the figures, and not taken from Ray's own metric history (which
forgets epochs when a worker dies). Each trial keeps one checkpoint, `<study>/checkpoints/<trial_id>.pt`, replaced after every
epoch. It is ours rather than a `tune.Checkpoint`, because a study must also continue after its driver died or its grid grew,
where Ray's experiment snapshots lag behind or refuse; a trial that Ray restarts finds it all the same.
"""

from __future__ import annotations

import json
import math
import os
import platform
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune

from pdarts_tune.config import EvalConfig, SearchConfig, config_id, derive_seed, from_dict, to_dict
from pdarts_tune.cost import peak_bytes, reset_peak_bytes
from pdarts_tune.evaluation import Evaluation
from pdarts_tune.genotype import Genotype, random_genotype
from pdarts_tune.plan import stage_columns
from pdarts_tune.results import read_rows, write_rows
from pdarts_tune.rows import alpha_rows, epoch_row, genotype_row, genotype_rows
from pdarts_tune.search import EpochRecord, Search


@dataclass(frozen=True)
class TrialSpec:
    """What a worker needs to know of its trial; travels as a plain dict."""

    trial_id: str
    study: str
    variant: str  # of a search; empty for an evaluation
    study_dir: str  # absolute
    config: dict[str, Any]
    genotype: str  # of an evaluation; empty for a search
    threads: int  # the CPUs that the trial was given
    commit: str

    def path(self, folder: str, suffix: str) -> Path:
        return Path(self.study_dir) / folder / f"{self.trial_id}{suffix}"


def run_search(settings: dict[str, Any]) -> None:
    """Runs or continues one search; writes `trials`, `epochs`, `alphas` and `genotypes`, reports once an epoch."""
    spec = TrialSpec(**settings)
    config = from_dict(SearchConfig, spec.config)
    device = _prepare(spec)
    trial = _TrialRow(spec, config, device)
    try:
        trial.write("running", 0.0)
        if config.method == "random":
            genotype = random_genotype(random.Random(derive_seed(config.seed, "genotype")), config.max_skips)
            row = genotype_row(genotype, stage=0, max_skips=config.max_skips, inherited_accuracy=None)
            write_rows(Path(spec.study_dir), "genotypes", spec.trial_id, [{"trial_id": spec.trial_id} | row])
            trial.write("completed", 0.0)
            tune.report({"finished": True})
            return
        search = Search(config, device)
        checkpoint = spec.path("checkpoints", ".pt")
        if checkpoint.exists():
            search.load_state_dict(torch.load(checkpoint, map_location=device, weights_only=True))
            _write_search(spec, search.records, config)
        for record in search.epochs():
            save_checkpoint(search.state_dict(), checkpoint)
            _write_search(spec, search.records, config)
            trial.write("running", sum(r.seconds for r in search.records))
            tune.report(_progress(record, config, len(search.records)))
        trial.write("completed", sum(r.seconds for r in search.records), max(r.peak_bytes for r in search.records))
        checkpoint.unlink(missing_ok=True)
    except Exception as error:
        trial.write(failure_status(error), 0.0, error=f"{type(error).__name__}: {error}")
        raise


def run_evaluation(settings: dict[str, Any]) -> None:
    """Trains or continues training one genotype from scratch, tests it once, writes its row of `evaluations`."""
    spec = TrialSpec(**settings)
    config = from_dict(EvalConfig, spec.config)
    device = _prepare(spec)
    genotype = Genotype.parse(spec.genotype)
    checkpoint = spec.path("checkpoints", ".pt")
    started = datetime.now(UTC)
    row: dict[str, Any] = {
        "genotype_id": genotype.genotype_id,
        "trial_id": spec.trial_id,
        "data": config.data,
        "recipe": config.recipe,
        "recipe_id": config.recipe_id,
        "config": json.dumps(to_dict(config)),
        "seed": config.seed,
        "split_seed": config.split_seed,
        "epochs": config.epochs,
        "device": device_name(device),
        "attempts": 1,
    }
    try:
        evaluation = Evaluation(genotype, config, device)
        if checkpoint.exists():
            saved = torch.load(checkpoint, map_location=device, weights_only=True)
            evaluation.load_state_dict(saved["evaluation"])
            started = datetime.fromtimestamp(saved["started"], UTC)
            row["attempts"] = saved["attempts"] + 1
        for epoch in evaluation.epochs():
            state = {"evaluation": evaluation.state_dict(), "started": started.timestamp(), "attempts": row["attempts"]}
            save_checkpoint(state, checkpoint)
            tune.report(
                {
                    "position": f"epoch {epoch.epoch + 1}/{config.epochs}",
                    "accuracy": epoch.train_accuracy if math.isnan(epoch.validation_accuracy) else epoch.validation_accuracy,
                    "done_epochs": epoch.epoch + 1,
                    "total_epochs": config.epochs,
                    "epoch_seconds": epoch.seconds,
                }
            )
        result = evaluation.test()
        records = evaluation.records
        validation = [record.validation_accuracy for record in records]
        held_out = not math.isnan(validation[-1])
        best = max(range(len(records)), key=lambda index: validation[index]) if held_out else None
        row |= {
            "status": "completed",
            "failure": None,
            "accuracy": result.accuracy,
            "error_percent": 100 * (1 - result.accuracy),
            "loss": result.loss,
            "last_validation_accuracy": validation[-1] if held_out else None,
            "best_validation_accuracy": validation[best] if best is not None else None,
            "best_epoch": best,
            "train_accuracies": [record.train_accuracy for record in records],
            "validation_accuracies": validation if held_out else None,
            "correct": result.correct,
            "params": result.params,
            "macs": result.macs,
            "seconds": sum(record.seconds for record in records),
        }
    except Exception as error:
        row |= dict.fromkeys(_RESULT_COLUMNS) | {
            "status": failure_status(error),
            "failure": f"{type(error).__name__}: {error}",
        }
        raise
    finally:
        if "status" in row:
            row |= {"peak_bytes": peak_bytes(device), "started": started, "finished": datetime.now(UTC)}
            write_rows(Path(spec.study_dir), "evaluations", spec.trial_id, [row])
    checkpoint.unlink(missing_ok=True)


_RESULT_COLUMNS = (
    "accuracy",
    "error_percent",
    "loss",
    "last_validation_accuracy",
    "best_validation_accuracy",
    "best_epoch",
    "train_accuracies",
    "validation_accuracies",
    "correct",
    "params",
    "macs",
    "seconds",
)


class _TrialRow:
    """The trial's row of `trials`, rewritten whenever its status changes; attempts count on over restarts."""

    def __init__(self, spec: TrialSpec, config: SearchConfig, device: torch.device) -> None:
        self.spec = spec
        before = read_rows(Path(spec.study_dir), "trials", spec.trial_id)
        self.row: dict[str, Any] = {
            "study": spec.study,
            "variant": spec.variant,
            "trial_id": spec.trial_id,
            "seed": config.seed,
            "split_seed": config.split_seed,
            "method": config.method,
            "data": config.data,
            **stage_columns(config),
            "max_skips": config.max_skips,
            "channels": config.channels,
            "batch_size": config.batch_size,
            "config": json.dumps(to_dict(config)),
            "config_id": config_id(config),
            "commit": spec.commit,
            "versions": json.dumps(library_versions()),
            "device": device_name(device),
            "started": before[0]["started"] if before else datetime.now(UTC),
            "attempts": before[0]["attempts"] + 1 if before else 1,
        }

    def write(self, status: str, seconds: float, peak: int | None = None, error: str | None = None) -> None:
        finished = None if status == "running" else datetime.now(UTC)
        state = {"status": status, "error": error, "finished": finished, "seconds": seconds, "peak_bytes": peak}
        write_rows(Path(self.spec.study_dir), "trials", self.spec.trial_id, [self.row | state])


def _prepare(spec: TrialSpec) -> torch.device:
    torch.set_num_threads(spec.threads)
    device = torch.device("cuda" if ray.get_gpu_ids() and torch.cuda.is_available() else "cpu")
    reset_peak_bytes(device)
    return device


def save_checkpoint(state: Mapping[str, Any], path: Path) -> None:
    """Replaces the checkpoint as a whole: a reader, or a process that takes over after a kill, never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _write_search(spec: TrialSpec, records: list[EpochRecord], config: SearchConfig) -> None:
    def write(table: str, rows: Iterable[dict[str, Any]]) -> None:
        write_rows(Path(spec.study_dir), table, spec.trial_id, [{"trial_id": spec.trial_id} | row for row in rows])

    write("epochs", map(epoch_row, records))
    write("alphas", (row for record in records for row in alpha_rows(record)))
    write("genotypes", genotype_rows(records, config))


def _progress(record: EpochRecord, config: SearchConfig, done: int) -> dict[str, Any]:
    stage = config.stages[record.stage - 1]
    return {
        "position": f"stage {record.stage}/{len(config.stages)}, epoch {record.epoch + 1}/{stage.epochs}",
        "accuracy": record.validation_accuracy,
        "done_epochs": done,
        "total_epochs": sum(stage.epochs for stage in config.stages),
        "epoch_seconds": record.seconds,
    }


def failure_status(error: BaseException) -> str:
    """Out of memory is a result that studies of memory ask for; everything else has failed."""
    out_of_memory = isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)
    return "out_of_memory" if out_of_memory else "failed"


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({platform.machine()}, {torch.get_num_threads()} threads)"


def library_versions() -> dict[str, str]:
    return {"python": platform.python_version(), "torch": torch.__version__, "ray": ray.__version__}
