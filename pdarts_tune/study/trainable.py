"""A trial: configuration in, rows and checkpoints out. These are the functions that Ray Tune schedules over the cluster.

The process that computes the figures writes tables and checkpoints itself: Ray's metric history forgets epochs when a worker dies.
Each trial keeps one checkpoint, `<study>/checkpoints/<trial_id>.pt`, replaced after every epoch. It is no `tune.Checkpoint`,
because a study must also continue after its driver dies or its grid grows, where Ray's experiment snapshots lag behind or refuse.

A trial of the schedule search (`run_schedule`) is a search and then the training of the genotype that it ends with, with three
objectives. Its error is that on the validation images of the training from scratch: test images choose nothing.
"""

from __future__ import annotations

import json
import math
import os
import platform
import random
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import ray
import torch
from ray import tune

from pdarts_tune.config.evaluation import EvalConfig
from pdarts_tune.config.execution import cell_evaluation
from pdarts_tune.config.methods import Given, RandomSampling, RandomSearch, paired_variant, plan_rounds
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.config.serialize import config_id, derive_seed, from_dict, to_dict
from pdarts_tune.evaluation.job import (
    EvalJob,
    describe_device,
    error_text,
    failure_status,
    image_columns,
    run_eval_job,
    settled_moments,
)
from pdarts_tune.evaluation.training import EvalEpoch
from pdarts_tune.networks.checkpoint import load_checkpoint, save_checkpoint, save_weights
from pdarts_tune.networks.kernels.build import choose
from pdarts_tune.networks.runtime import cuda_problem, give_back_freed_memory, keep_freed_memory, reset_peak_bytes
from pdarts_tune.pdarts.genotype import Genotype, random_genotype
from pdarts_tune.results.storage import Storage
from pdarts_tune.results.tables import GrowingTable, final_genotype, read_rows, write_rows
from pdarts_tune.search.diagnostics import has_collapsed
from pdarts_tune.search.loop import MemoryLimitError, Search, StageMemoryError
from pdarts_tune.search.records import EpochRecord, alpha_rows, epoch_row, genotype_row, genotype_rows
from pdarts_tune.study.plan import search_id, stage_columns
from pdarts_tune.study.shares import memory_fraction

PRETEND = "PDARTS_TUNE_PRETEND_GPUS"  # in the environment of tests, bytes: GPUs are only declared to Ray, trials run on the CPU


@dataclass(frozen=True, kw_only=True)
class TrialSpec(EvalJob):
    """What a worker needs to know of its trial; travels as a plain dict. A search has no genotype, an evaluation no variant.

    A search keeps the weights of the last stage's search network.
    """

    variant: str
    threads: int  # the CPUs that the trial was given
    commit: str
    gpus: float = 0.0  # that it was given: a share of one or a number; 0: it runs on the CPU


def run_trial(settings: dict[str, Any]) -> None:
    """The function that Ray Tune runs in a worker: a search, or the evaluation of a genotype."""
    spec = TrialSpec(**settings["trial"])
    if not spec.genotype:
        run_search(spec)
        return
    epochs = from_dict(EvalConfig, spec.config).epochs
    run_eval_job(spec, prepare(spec), lambda epoch: tune.report(training_progress(epoch, epochs)))


def run_search(spec: TrialSpec) -> None:
    """Runs or continues one search; writes `trials`, `epochs`, `alphas` and `genotypes`, reports once an epoch."""
    config = from_dict(SearchConfig, spec.config)
    trial = TrialRow(spec, config)
    if trial.before == "completed":  # its process died before it could report so
        tune.report({"finished": True})
        return
    trial.write("running")  # before anything that can fail
    try:
        device = prepare(spec)
        trial.row["device"] = describe_device(device)
        genotype = _settled_genotype(spec, config)
        if genotype is None:  # else no cell is computed
            trial.row["cell_evaluation"] = choose(cell_evaluation(config.execution, config.method), device)
            peak = _search(spec, config, device, trial)
        else:
            row = genotype_row(genotype, stage=0, max_skips=config.max_skips, inherited_accuracy=None)
            write_rows(spec.folder, "genotypes", spec.trial_id, [{"trial_id": spec.trial_id} | row])
            peak = None
    except MemoryLimitError as error:  # a result: another attempt would end the same way
        trial.write("out_of_memory", peak=error.needed, error=error_text(error))
        Storage(spec.folder).remove(spec.checkpoint)
        tune.report({"finished": True})
        return
    except Exception as error:
        needed = error.needed if isinstance(error, StageMemoryError) else None
        trial.write(failure_status(error), peak=needed, error=error_text(error))
        raise
    trial.write("completed", peak=peak)  # a later failure does not change it
    Storage(spec.folder).remove(spec.checkpoint)
    if genotype is not None:
        tune.report({"finished": True})


def _search(spec: TrialSpec, config: SearchConfig, device: torch.device, trial: TrialRow) -> int:
    """Searches to the end. Returns peak bytes."""
    trial.write("running")
    storage = Storage(spec.folder)
    rows = _SearchRows(spec, config)
    # To the CPU: Adam reads its step counts at every step, and waits for a GPU if they are there.
    saved = load_checkpoint(storage, spec.checkpoint, torch.device("cpu"))
    search = Search(config, device, settled_moments(storage, "trials", config, saved))
    trial.row |= image_columns(search.dataset)
    trial.row["graph"] = search.steps.graphs.on
    if saved is not None:
        search.load_state_dict(saved)
        rows.write(search.records)
    for _ in search.epochs():
        save_checkpoint(search.state_dict(), storage, spec.checkpoint)
        rows.write(search.records)
        trial.write("running")
        tune.report(_progress(search.records, config))
    if spec.keep_weights:
        moments = {"mean": list(search.dataset.mean), "std": list(search.dataset.std)}
        save_weights(search.network, moments, storage, spec.weights)
    trial.row["left_out"] = len(search.dataset.left_out)
    return max(record.peak_bytes for record in search.records)


def _settled_genotype(spec: TrialSpec, config: SearchConfig) -> Genotype | None:
    """The genotype of a method that trains nothing to find it."""
    method = config.method
    if isinstance(method, Given):
        return Genotype.parse(method.genotype)
    if not isinstance(method, RandomSampling):
        return None
    skips, exactly = config.max_skips, method.exactly
    if pair := paired_variant(method):  # as many skip-connects as the cell of another search, at its own skip limit
        name = search_id(pair, config.seed)
        status, genotype = _last_genotype(spec.folder, name)
        if genotype is None:
            raise RuntimeError(
                f"search {name} is {status}, so its skip-connects are not known; they are drawn once it is completed"
            )
        skips, exactly = genotype["skips"], True
    return random_genotype(random.Random(derive_seed(config.seed, "genotype")), skips, exactly, config.start)


def _last_genotype(folder: str, trial_id: str) -> tuple[str, Any]:
    """The status of a search of the study, and the row of the genotype that it ends with, if it is completed."""
    for trial in read_rows(folder, "trials", trial_id):
        return trial["status"], final_genotype(trial, read_rows(folder, "genotypes", trial_id))
    return "not there", None


def training_progress(epoch: EvalEpoch, epochs: int) -> dict[str, Any]:
    """What Tune's display shows of an epoch of a training from scratch."""
    held_out = not math.isnan(epoch.validation_accuracy)
    return {
        "position": f"epoch {epoch.epoch + 1}/{epochs}",
        "accuracy": ("validation", epoch.validation_accuracy) if held_out else ("training", epoch.train_accuracy),
        "done_epochs": epoch.epoch + 1,
        "total_epochs": epochs,
        "epoch_seconds": epoch.seconds,
    }


class TrialRow:
    """The row in `trials` of an attempt at a search, rewritten when its status changes. Attempts are counted over restarts."""

    def __init__(self, spec: TrialSpec, config: SearchConfig) -> None:
        self.spec = spec
        before = read_rows(spec.folder, "trials", spec.trial_id, ("status", "started", "attempts"))
        self.before = before[0]["status"] if before else None  # the status after an earlier attempt
        self.row: dict[str, Any] = {
            "study": Storage(spec.folder).name,
            "variant": spec.variant,
            "trial_id": spec.trial_id,
            "seed": config.seed,
            "split_seed": config.split_seed,
            "method": config.method.name,
            "data": config.data,
            **stage_columns(config),
            "max_skips": config.max_skips,
            "channels": config.channels,
            "batch_size": config.batch_size,
            **asdict(config.execution),
            "cell_evaluation": None,
            "graph": None,
            "space": config.space if isinstance(config.space, str) else "own",
            "remedies": "+".join(remedy.name for remedy in config.remedies),
            "config": json.dumps(to_dict(config)),
            "config_id": config_id(config),
            "commit": spec.commit,
            "versions": json.dumps({"python": platform.python_version(), "torch": torch.__version__, "ray": ray.__version__}),
            "device": None,
            "started": before[0]["started"] if before else datetime.now(UTC),
            "attempts": before[0]["attempts"] + 1 if before else 1,
            "left_out": None,
            "train_images": None,
            "mean": None,
            "std": None,
        }

    def write(self, status: str, *, peak: int | None = None, error: str | None = None) -> None:
        """Writes the row. Its seconds are those of the epochs in the table, over all attempts."""
        epochs = read_rows(self.spec.folder, "epochs", self.spec.trial_id, ("seconds", "diagnostic_seconds"))
        finished = None if status == "running" else datetime.now(UTC)
        state: dict[str, Any] = {"status": status, "error": error, "finished": finished, "peak_bytes": peak}
        state |= {name: sum(epoch[name] for epoch in epochs) for name in ("seconds", "diagnostic_seconds")}
        write_rows(self.spec.folder, "trials", self.spec.trial_id, [self.row | state])


def prepare(spec: TrialSpec) -> torch.device:
    """The trial's device. Sets the threads of this process and its part of the GPU's memory, and starts a new memory peak.

    Raises:
        RuntimeError: the trial was given a GPU that PyTorch cannot use. It never falls back to the CPU.
    """
    torch.set_num_threads(spec.threads)
    keep_freed_memory()
    device = torch.device("cuda" if spec.gpus and PRETEND not in os.environ else "cpu")
    if device.type == "cuda":
        if problem := cuda_problem():
            raise RuntimeError(f"the trial was given a GPU that PyTorch cannot use: {problem}")
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(memory_fraction(spec.gpus, total))
    give_back_freed_memory(device)  # of the trial that this process ran before
    reset_peak_bytes(device)
    return device


class _SearchRows:
    """The rows of a search in `epochs`, `alphas` and `genotypes`. After an epoch only new rows are made and checked."""

    def __init__(self, spec: TrialSpec, config: SearchConfig) -> None:
        self.spec, self.config = spec, config
        self.epochs, self.alphas = (GrowingTable(spec.folder, table, spec.trial_id) for table in ("epochs", "alphas"))
        self.written = 0  # records

    def write(self, records: list[EpochRecord]) -> None:
        """Writes the rows of all records of the search so far."""
        new = records[self.written :]
        self.epochs.add(self._named(map(epoch_row, new)))
        self.alphas.add(self._named(row for record in new for row in alpha_rows(record)))
        if self.written == 0 or any(record.derived_epoch is not None for record in new):  # a stage has ended
            write_rows(self.spec.folder, "genotypes", self.spec.trial_id, self._named(genotype_rows(records, self.config)))
        self.written = len(records)

    def _named(self, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"trial_id": self.spec.trial_id} | row for row in rows]


def _progress(records: list[EpochRecord], config: SearchConfig) -> dict[str, Any]:
    """What Tune's display shows of a search's last epoch, with a warning once a stage: its cell has collapsed, or it ends early."""
    record, rounds, warnings = records[-1], plan_rounds(config.method, config.stages), []
    noun = "candidate" if isinstance(config.method, RandomSearch) else "stage"
    skips, collapsed = record.genotype(max_skips=8).normal.skips, ""
    if _has_collapsed(record):
        collapsed = f", collapsed: {skips} skip-connects in the normal cell"
        if not any(_has_collapsed(other) for other in records[:-1] if other.stage == record.stage):
            warnings.append(f"{skips} of the normal cell's 8 operations are skip-connects now; the search goes on")
    if record.derived_epoch is not None and record.derived_epoch != record.epoch:
        by_skips = record.epoch - record.derived_epoch == 1  # the eigenvalue's rule goes back further
        reason = f"its cell has {skips} skip-connects" if by_skips else "the Hessian's eigenvalue has grown too much"
        warnings.append(f"the stage ends early, {reason}; what counts are the alphas of epoch {record.derived_epoch + 1}")
    return {
        "position": f"{noun} {record.stage}/{len(rounds)}, epoch {record.epoch + 1}/{rounds[record.stage - 1].epochs}{collapsed}",
        "accuracy": ("validation", record.validation_accuracy),
        "done_epochs": len(records),
        "total_epochs": sum(stage.epochs for stage in rounds),
        "epoch_seconds": record.seconds + record.diagnostic_seconds,
        "warning": f"stage {record.stage}, epoch {record.epoch + 1}: {'; '.join(warnings)}" if warnings else "",
    }


def _has_collapsed(record: EpochRecord) -> bool:
    """Never while alphas are frozen: then the cell is as it was initialised."""
    return record.phase == "both" and has_collapsed(record.genotype(max_skips=8).normal)


OBJECTIVES = ("evaluation_error", "search_seconds", "peak_bytes")  # percent, seconds, bytes; all minimised
EVALUATED = "evaluated_epochs"  # of the training from scratch; ASHA compares trials at the same number


def run_schedule(settings: dict[str, Any]) -> None:
    """The function that Ray Tune runs in a worker: a search and its evaluation. Continues from tables and checkpoints."""
    spec = TrialSpec(**settings["trial"])
    folder = spec.folder
    run_search(spec)
    (trial,) = read_rows(folder, "trials", spec.trial_id)
    costs = {"search_seconds": trial["seconds"], "peak_bytes": trial["peak_bytes"] or 0}
    if trial["status"] != "completed":  # over its memory limit: there is no genotype
        tune.report({"evaluation_error": 100.0, **costs})
        return
    config, job = from_dict(EvalConfig, settings["evaluation"]), evaluation_job(spec, settings["evaluation"])

    def report(epoch: EvalEpoch) -> None:
        progress = training_progress(epoch, config.epochs)
        progress["position"] = f"evaluation, {progress['position']}"
        # After the last epoch only the test is left, so ASHA is not asked.
        compared = {EVALUATED: epoch.epoch + 1} if epoch.epoch + 1 < config.epochs else {}
        tune.report(progress | compared | {"evaluation_error": 100 * (1 - epoch.validation_accuracy)} | costs)

    run_eval_job(job, prepare(spec), report)
    (evaluation,) = read_rows(folder, "evaluations", job.trial_id)
    tune.report({"evaluation_error": 100 * (1 - evaluation["last_validation_accuracy"]), **costs})


def evaluation_job(spec: TrialSpec, evaluation: dict[str, Any]) -> EvalJob:
    """The training of a completed search's genotype. Two trials with the same genotype each train it."""
    _, genotype = _last_genotype(spec.folder, spec.trial_id)
    config = from_dict(EvalConfig, evaluation)
    trial_id = f"{spec.trial_id}-{config.recipe_id}-seed{config.seed}"
    return EvalJob(trial_id, spec.folder, genotype["genotype"], evaluation)
