"""One evaluation from start to row: continues from its checkpoint, trains, tests once, writes its row of `evaluations`.

Trials of studies, trainings from the command line and trainings on several devices all run this way.
"""

from __future__ import annotations

import json
import math
import platform
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch

from pdarts_tune.config.evaluation import EvalConfig
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.config.serialize import from_dict, to_dict
from pdarts_tune.data.batches import Workers
from pdarts_tune.data.datasets import Dataset, load_dataset
from pdarts_tune.data.normalisation import Moments, sample_moments
from pdarts_tune.data.streaming import StreamedSet
from pdarts_tune.evaluation.training import ALONE, EvalEpoch, Evaluation, TestResult
from pdarts_tune.networks.checkpoint import load_checkpoint, save_checkpoint, save_weights
from pdarts_tune.networks.kernels.build import choose
from pdarts_tune.networks.runtime import is_out_of_memory, peak_bytes
from pdarts_tune.pdarts.genotype import Genotype
from pdarts_tune.results.schemas import SCHEMAS
from pdarts_tune.results.storage import Storage
from pdarts_tune.results.tables import read_rows, read_table, write_rows


@dataclass(frozen=True)
class EvalJob:
    """A training and the place of its results; travels to other processes as a plain dict."""

    trial_id: str
    folder: str  # of the study: an absolute path or a URI
    genotype: str  # as text
    config: dict[str, Any]
    keep_weights: bool = False  # in weights/<trial_id>.pt, with the moments of the images

    @property
    def checkpoint(self) -> str:
        """A file of the study's folder, replaced after every epoch, removed after the row is written."""
        return f"checkpoints/{self.trial_id}.pt"

    @property
    def weights(self) -> str:
        return f"weights/{self.trial_id}.pt"

    @property
    def log(self) -> Path:
        """Lines of progress of a training on several devices, whose processes have no terminal."""
        return Path(self.folder) / "checkpoints" / f"{self.trial_id}.log"


def run_eval_job(job: EvalJob, device: torch.device, report: Callable[[EvalEpoch], None], workers: Workers = ALONE) -> None:
    """Runs or continues one evaluation; calls `report` after each epoch, when its checkpoint is on disk.

    The row has the evaluation's status from the start. An error is written there and raised. A completed evaluation does not run
    again. Of several workers the first writes.
    """
    config = from_dict(EvalConfig, job.config)
    first = workers.rank == 0
    storage = Storage(job.folder)
    before = read_rows(storage, "evaluations", job.trial_id, ("status", "started", "attempts"))
    if before and before[0]["status"] == "completed":
        return
    attempt = {"started": before[0]["started"], "attempts": before[0]["attempts"] + 1} if before else {"started": datetime.now(UTC)}

    def write(outcome: dict[str, Any]) -> None:
        if first:
            write_eval_row(job, attempt | {"device": describe_device(device, workers), "peak_bytes": peak_bytes(device)} | outcome)

    write({"status": "running", "finished": None, "peak_bytes": None})
    try:
        saved = load_checkpoint(storage, job.checkpoint, device)
        moments = settled_moments(storage, "evaluations", config, None if saved is None else saved["evaluation"])
        evaluation = Evaluation(Genotype.parse(job.genotype), config, device, workers, moments)
        if saved is not None:
            evaluation.load_state_dict(saved["evaluation"])
        for epoch in evaluation.epochs():
            if first:
                save_checkpoint({"evaluation": evaluation.state_dict()}, storage, job.checkpoint)
            report(epoch)
        result = evaluation.test()
        if first and job.keep_weights:
            dataset = evaluation.dataset
            about = {"mean": list(dataset.mean), "std": list(dataset.std), "class_names": list(dataset.class_names)}
            about |= {"genotype": job.genotype, "config": job.config}  # as load_trained and --weights read them
            save_weights(evaluation.network, about, storage, job.weights)
    except Exception as error:
        write({"status": failure_status(error), "failure": error_text(error)})
        raise
    outcome = {"status": "completed"} | test_columns(result) | epoch_columns(evaluation.records)
    outcome["cell_evaluation"] = choose(evaluation.network.evaluation, device)
    outcome["graph"] = evaluation.graphs.on
    write(outcome | data_columns(evaluation.dataset))
    if first:
        storage.remove(job.checkpoint)


def epoch_line(epoch: EvalEpoch, config: EvalConfig) -> str:
    """One line of progress."""
    held_out = "" if math.isnan(epoch.validation_accuracy) else f", validation {100 * epoch.validation_accuracy:.2f} %"
    remaining = epoch.seconds * (config.epochs - epoch.epoch - 1)
    accuracy = f"training {100 * epoch.train_accuracy:.2f} %{held_out}"
    return (
        f"epoch {epoch.epoch + 1}/{config.epochs}: loss {epoch.train_loss:.4f}, {accuracy}, "
        f"rate {epoch.learning_rate:.4g}, {epoch.seconds:.1f} s, about {remaining / 60:.0f} min left"
    )


def test_columns(result: TestResult) -> dict[str, Any]:
    """The test result as columns of `evaluations`."""
    return asdict(result) | {"error_percent": 100 * (1 - result.accuracy)}


def data_columns(dataset: Dataset) -> dict[str, Any]:
    """The numbers of bad and of shared images, and the moments, as columns of `evaluations`."""
    return {"left_out": len(dataset.left_out), "shared": dataset.shared} | image_columns(dataset)


def image_columns(dataset: Dataset) -> dict[str, Any]:
    """The number of training images and the images' moments, as columns of `trials` and `evaluations`."""
    return {"train_images": len(dataset.train), "mean": list(dataset.mean), "std": list(dataset.std)}


def settled_moments(
    storage: Storage, table: str, config: SearchConfig | EvalConfig, saved: Mapping[str, Any] | None
) -> Moments | None:
    """The moments of a run that continues, or of a further run of an old study; None: those of a new run (data/normalisation.py).

    A checkpoint `saved` holds its run's moments. Those of earlier releases do not; where images stream they were of a sample. Such
    a run keeps them to its end. So do further runs of a study that has finished such runs on the same data, so that its figures
    stay comparable.

    Raises:
        ConfigError: as `load_dataset`; a table cannot be read.
    """
    if saved is not None and "mean" in saved:
        return tuple(saved["mean"]), tuple(saved["std"])
    if config.image_size is None or config.data == "imagenet":  # the same in all releases
        return None
    if saved is None and not _has_earlier(storage, table, config):
        return None
    dataset = load_dataset(config)
    assert isinstance(dataset.train, StreamedSet)
    return sample_moments(dataset.train)


def _has_earlier(storage: Storage, table: str, config: SearchConfig | EvalConfig) -> bool:
    """Whether a study holds finished runs on streamed images of the data set whose rows have no moments."""
    if table not in storage.folders():
        return False
    rows = read_table(storage, table, ["data", "status", "seconds", "config", "mean"])
    rows = rows[(rows["data"] == config.data) & (rows["status"] == "completed") & (rows["seconds"] > 0) & rows["mean"].isna()]
    return any(json.loads(text).get("image_size") is not None for text in rows["config"].unique())


def epoch_columns(records: list[EvalEpoch]) -> dict[str, Any]:
    """The epochs' figures as columns of `evaluations`. Reports take the last epoch; the best is only there to compare."""
    columns: dict[str, Any] = {
        "train_accuracies": [record.train_accuracy for record in records],
        "seconds": sum(record.seconds for record in records),
    }
    validation = [record.validation_accuracy for record in records]
    if not math.isnan(validation[-1]):
        best = max(range(len(validation)), key=validation.__getitem__)
        columns |= {
            "last_validation_accuracy": validation[-1],
            "best_validation_accuracy": validation[best],
            "best_epoch": best,
            "validation_accuracies": validation,
        }
    return columns


def write_eval_row(job: EvalJob, outcome: Mapping[str, Any]) -> None:
    """Writes the trial's row of `evaluations`: the columns of `outcome` and what is known beforehand; all others are null."""
    config, now = from_dict(EvalConfig, job.config), datetime.now(UTC)
    row = dict.fromkeys(SCHEMAS["evaluations"].names) | {
        "genotype_id": Genotype.parse(job.genotype).genotype_id,
        "trial_id": job.trial_id,
        "config": json.dumps(to_dict(config)),
        "device": "unknown",
        "started": now,
        "finished": now,
        "attempts": 1,
    }
    for name in ("data", "recipe", "recipe_id", "seed", "split_seed", "epochs", "tf32"):
        row[name] = getattr(config, name)
    write_rows(job.folder, "evaluations", job.trial_id, [{**row, **outcome}])


def error_text(error: BaseException) -> str:
    """An error as the tables keep it: type and message in the first line, then the traceback."""
    return f"{type(error).__name__}: {error}\n{''.join(traceback.format_exception(error))}"


def failure_status(error: BaseException) -> str:
    """The status of a trial with this error. Out of memory has its own, since studies of memory count it."""
    return "out_of_memory" if is_out_of_memory(error) else "failed"


def describe_device(device: torch.device, workers: Workers = ALONE) -> str:
    """The device's name and number, and a CPU's instructions: a search with AVX-512 took 0.7 of its time with AVX2."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"cpu ({_processor()}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads)"
    return name if workers.count == 1 else f"{workers.count} x {name}"


@cache
def _processor() -> str:
    with suppress(OSError):  # Linux alone has the file
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":  # Arm CPUs do not report this
                return value.strip()
    return platform.processor() or platform.machine()
