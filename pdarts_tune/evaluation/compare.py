"""Trains or tests the genotypes of a command line, and compares them in a table."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from tabulate import tabulate
from torch import Tensor

from pdarts_tune.config.evaluation import EvalConfig
from pdarts_tune.config.execution import cell_evaluation
from pdarts_tune.config.serialize import ConfigError, config_id, to_dict
from pdarts_tune.data.batches import Batches
from pdarts_tune.data.datasets import Dataset, check_dataset, load_dataset
from pdarts_tune.data.normalisation import FAMILIES, Moments, check_moments, find_family
from pdarts_tune.evaluation.genotype_source import RANDOM, find_genotypes, has_limits
from pdarts_tune.evaluation.job import (
    EvalJob,
    data_columns,
    describe_device,
    epoch_line,
    error_text,
    failure_status,
    run_eval_job,
    settled_moments,
    test_columns,
    write_eval_row,
)
from pdarts_tune.evaluation.trained import weights_origin
from pdarts_tune.evaluation.training import evaluate
from pdarts_tune.networks.checkpoint import load_checkpoint
from pdarts_tune.networks.cost import network_cost, network_shape
from pdarts_tune.networks.darts_weights import find_state_dict, load_darts_state_dict, network_size
from pdarts_tune.networks.evaluation_network import CIFAR, IMAGENET_MOBILE, EvalNetwork, NetworkConfig
from pdarts_tune.networks.kernels.build import announce
from pdarts_tune.networks.runtime import keep_freed_memory, peak_bytes, reset_peak_bytes
from pdarts_tune.pdarts.genotype import Genotype
from pdarts_tune.pdarts.published import PUBLISHED
from pdarts_tune.results.storage import Storage
from pdarts_tune.results.tables import read_rows

if TYPE_CHECKING:
    from pdarts_tune.evaluation.__main__ import Arguments


def run(settings: Arguments, config: EvalConfig) -> None:
    """Trains or tests every genotype of the settings. Raises ConfigError for bad input, before any work."""
    if not settings.genotype:
        raise ConfigError("genotype: is missing, give --genotype")
    genotypes, controls = find_all(settings.genotype, settings.max_skips)
    if settings.weights is not None and len(genotypes) * settings.seeds > 1:
        raise ConfigError(f"weights: {settings.weights} are of one network, --genotype and --seeds ask for more")
    keep_freed_memory()
    weights = None if settings.weights is None else read_weights(settings.weights, settings.mean, settings.std, config)
    dataset = load_dataset(config, weights and weights.moments)  # refuses bad images before anything is written
    folder = settings.results.absolute() / "trainings"
    rows: dict[str, list[dict[str, Any]]] = {label: [] for label in genotypes}
    for seed in range(config.seed, config.seed + settings.seeds):
        for label, genotype in genotypes.items():
            shape = network_shape(genotype, config, dataset)
            print(describe(label, genotype, shape, config))
            if weights is None:
                rows[label].append(train(label, genotype, replace(config, seed=seed), dataset, settings, folder))
            else:
                print(f"{_normalised(*weights.moments)}: {weights.origin}")
                test_weights(label, genotype, config, dataset, weights, folder)
    if len(genotypes) * settings.seeds > 1:
        print(compare_genotypes(rows, controls))


def find_all(sources: Sequence[str], max_skips: str | None) -> tuple[dict[str, Genotype], set[str]]:
    """The distinct genotypes of all sources by label, and the labels of random ones.

    Raises:
        ConfigError: a source names no genotype; there are skip limits but no source takes any.
    """
    labels: dict[Genotype, list[str]] = {}
    random: set[Genotype] = set()
    limited = [source for source in sources if has_limits(source)]
    if max_skips is not None and not limited:
        raise ConfigError(f"max_skips: {max_skips} is for results folders and random genotypes, --genotype has none")
    for source in sources:
        for label, genotype in find_genotypes(source, max_skips if source in limited else None).items():
            labels.setdefault(genotype, []).append(label)
            random |= {genotype} if source.startswith(RANDOM) else set()
    genotypes = {"; ".join(dict.fromkeys(names)): genotype for genotype, names in labels.items()}
    return genotypes, {label for label, genotype in genotypes.items() if genotype in random}


def describe(label: str, genotype: Genotype, shape: NetworkConfig, config: EvalConfig) -> str:
    """The genotype, and its cost in both ways of counting beside the figures that its paper prints."""
    published = next((p for p in PUBLISHED.values() if p.genotype == genotype), None)
    on_cifar = published.params_millions if published else None
    on_imagenet = (published.imagenet_params_millions, published.imagenet_madds_millions) if published else (None, None)
    network = f"{shape.cells} cells, {shape.channels} channels, {shape.stem} stem, {shape.image_size} px"
    lines = [
        f"{label}  {genotype}",
        f"recipe {config.recipe_id}: {network}, {config.epochs} epochs, batch {config.batch_size}",
        f"{'':16} {'params':>9} {'printed':>8} {'conv + linear':>14} {'as papers count':>16} {'printed':>8}",
    ]
    for setting, other, params, madds in (
        ("this training", shape, None, None),
        ("CIFAR setting", CIFAR, on_cifar, None),
        ("ImageNet mobile", IMAGENET_MOBILE, *on_imagenet),
    ):
        cost = network_cost(genotype, other)
        lines.append(
            f"{setting:16} {cost.params / 1e6:8.2f}M {_millions(params, 1):>8} {cost.macs / 1e6:13.1f}M "
            f"{cost.madds / 1e6:15.1f}M {_millions(madds, 0):>8}"
        )
    if published and published.note:
        lines.append(f"note: {published.note}")
    return "\n".join(lines)


def _millions(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}M"


def train(
    label: str, genotype: Genotype, config: EvalConfig, dataset: Dataset, settings: Arguments, folder: Path
) -> dict[str, Any]:
    """Trains or continues, with a line an epoch; only prints a completed training. Returns its row of `evaluations`."""
    trial_id = f"{genotype.genotype_id}-{config.recipe_id}-seed{config.seed}-{config_id(config)}"
    job = EvalJob(trial_id, str(folder), str(genotype), to_dict(config), keep_weights=True)
    rows = read_rows(folder, "evaluations", trial_id)
    if not rows:
        _tell_others(job, config)
    if not rows or rows[0]["status"] != "completed":
        saved = load_checkpoint(Storage(folder), job.checkpoint, torch.device("cpu"))
        moments = settled_moments(Storage(folder), "evaluations", config, saved and saved["evaluation"])
        moments = moments or (dataset.mean, dataset.std)
        print(_normalised(*moments) + "".join(f": those of {name}" for name, constants in FAMILIES.items() if constants == moments))
        if settings.devices > 1:
            from pdarts_tune.evaluation.distributed import train_on_devices

            train_on_devices(job, settings.devices, settings.address)
            print(job.log.read_text() if job.log.exists() else "", end="")
        else:
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            if device.type == "cpu":
                announce({cell_evaluation(config.execution)})
            reset_peak_bytes(device)
            run_eval_job(job, device, lambda epoch: print(epoch_line(epoch, config), flush=True))
        rows = read_rows(folder, "evaluations", trial_id)
    row = rows[0]
    result = _result(row["accuracy"], row["top5_accuracy"], len(row["correct"]))
    left_out = f", {row['left_out']} images left out" if row["left_out"] else ""
    print(f"{label}, seed {config.seed}: {result}, {row['seconds']:.0f} s{left_out}")
    print(f"weights {folder / job.weights}\n")
    return row


def _tell_others(job: EvalJob, config: EvalConfig) -> None:
    """Says that a training starts anew, and why, where the folder has one of this genotype and seed by another recipe."""
    start, seed = job.trial_id.partition("-")[0], f"-seed{config.seed}-"
    names = Storage(job.folder).stamps("evaluations")
    for name in (name for name in names if name.startswith(start) and seed in name):
        (row,) = read_rows(job.folder, "evaluations", name.removesuffix(".parquet"))
        before, now = json.loads(row["config"]), job.config
        changes = [f"{key} {before.get(key)}, now {value}" for key, value in now.items() if before.get(key) != value]
        if before["data"] == now["data"] and changes:
            print(f"starts anew: the training in {job.folder} differs in {'; '.join(changes)}")
            return


class Weights(NamedTuple):
    """Weights from a file, and the moments of the images that trained them."""

    file: Path
    state: Mapping[str, Any]
    moments: Moments
    origin: str  # of the moments, as the command prints it


def find_origin(file: Path) -> tuple[Genotype, EvalConfig] | None:
    """The genotype and the recipe of the weights, where a study or this command kept them. ConfigError if they cannot be read."""
    study = Storage(file.absolute().parent.parent) if file.absolute().parent.name == "weights" else None
    return weights_origin(load_weights(file)[0], study, file.stem)


def load_weights(file: Path) -> tuple[Mapping[str, Any], Mapping[str, Tensor]]:
    """What the file holds, tensors and plain types alone, and the state dict in it. ConfigError if there is none."""
    if not file.is_file():
        raise ConfigError(f"weights: {file} is not a file")
    try:
        saved = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch's readers raise many kinds of errors
        raise ConfigError(f"weights: {file}: {_load_reason(file, error)}") from None
    try:
        return saved, find_state_dict(saved)
    except ValueError as error:
        raise ConfigError(f"weights: {file}: {error}") from None


def read_weights(file: Path, mean: tuple[float, ...] | None, std: tuple[float, ...] | None, config: EvalConfig) -> Weights:
    """Reads weights. Their moments are from the file, or else from the command line, or else the constants of the family.

    Nothing is measured: other training images would change the test of the same weights.

    Raises:
        ConfigError: the file cannot be read; its moments are impossible or not those of the command line; no constants are known
            for such images.
    """
    saved, state = load_weights(file)
    info = check_dataset(config)
    options: Moments | None = None
    if mean is not None and std is not None:
        options = mean, std
        check_moments(options, info.in_channels, config.data)
    if "mean" in saved and "std" in saved:
        try:
            own = tuple(map(float, saved["mean"])), tuple(map(float, saved["std"]))
            check_moments(own, info.in_channels, config.data)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"weights: {file}: {_first_line(error)}") from None
        if options is not None and options != own:
            raise ConfigError(f"mean, std: {file} says that its {_normalised(*own)}; leave them out")
        return Weights(file, state, own, f"{file} says so")
    if options is not None:
        return Weights(file, state, options, "as given")
    family = find_family(config, info.in_channels, info.image_size, info.num_classes)
    if family is None:
        raise ConfigError(
            f"weights: {file} does not say what its images were normalised with, and nothing is known of networks for "
            f"{config.data}; give --mean and --std"
        )
    origin = f"those of {family}, assumed, for {file} does not say it (--mean and --std would)"
    return Weights(file, state, FAMILIES[family], origin)


def test_weights(label: str, genotype: Genotype, config: EvalConfig, dataset: Dataset, weights: Weights, folder: Path) -> None:
    """Tests weights and writes their row, under a recipe of their own, since nobody knows how they were trained."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    reset_peak_bytes(device)
    started = datetime.now(UTC)
    network = EvalNetwork(genotype, network_shape(genotype, config, dataset), auxiliary=False)
    network.evaluation = cell_evaluation(config.execution)
    try:
        load_darts_state_dict(network, weights.state)
    except Exception as error:  # the file may hold anything
        raise ConfigError(f"weights: {weights.file}: {_first_line(error)}{_fitting_size(weights.state, network.config)}") from None
    digest = hashlib.sha256(weights.file.read_bytes()).hexdigest()[:8]
    job = EvalJob(f"{genotype.genotype_id}-weights-{digest}-{config_id(config)}", str(folder), str(genotype), to_dict(config))
    own: dict[str, Any] = {"recipe": "weights", "recipe_id": f"weights-{digest}", "epochs": 0, "seconds": 0.0, "started": started}

    def write(outcome: dict[str, Any]) -> None:
        write_eval_row(job, own | {"device": describe_device(device), "peak_bytes": peak_bytes(device)} | outcome)

    try:
        batches = Batches(dataset.test, dataset, config.batch_size, device, augment=False)
        result = evaluate(network.to(device), batches, config, "test")
    except Exception as error:
        write({"status": failure_status(error), "failure": error_text(error)})
        raise
    write({"status": "completed"} | test_columns(result) | data_columns(dataset) | {"train_images": None})  # nobody knows how many
    print(f"{label}: {_result(result.accuracy, result.top5_accuracy, len(result.correct))}\n")


def _fitting_size(state: Mapping[str, Any], shape: NetworkConfig) -> str:
    """The size of the network that saved the weights, where it is another: what to give for the weights to fit."""
    size = network_size(state)
    if any(name.endswith("alphas_normal") for name in state):
        return "; it is of a search network, a cell's weights are those of an evaluation"
    if size.get("stem", shape.stem) != shape.stem:
        return f"; it is of a network with the {size['stem']} stem, give a --recipe that has it"
    other = [f"--{name} {size[name]}" for name in ("cells", "channels") if size.get(name) not in (None, getattr(shape, name))]
    return f"; it fits a network of {' '.join(other)}" if other else ""


def _result(accuracy: float, top5: float, images: int) -> str:
    return f"error {100 * (1 - accuracy):.2f} % (top-5 {100 * (1 - top5):.2f} %) on {images} test images"


def _normalised(mean: Sequence[float], std: Sequence[float]) -> str:
    numbers = (" ".join(f"{value:.4f}" for value in values) for values in (mean, std))
    return "images are normalised with mean {} and deviation {}".format(*numbers)


def _load_reason(file: Path, error: Exception) -> str:
    """Why PyTorch does not load a file of weights, and the way on."""
    other = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
    if other is None:
        return _first_line(Exception(str(error).rpartition("WeightsUnpickler error: ")[2] or error))
    names = [other[1]]
    with suppress(ValueError):  # the format before PyTorch 1.6
        names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(file))[:6]
    return (
        f"holds other objects than tensors, numbers and texts, which could run any code: {', '.join(names)}; where they come from, "
        "load the file with weights_only=False, and save the state dict alone: torch.save(network.state_dict(), FILE)"
    )


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def compare_genotypes(rows: Mapping[str, Sequence[Mapping[str, Any]]], controls: Collection[str]) -> str:
    """A Markdown table with a line a genotype: mean and standard deviation of the error over seeds, size, relative improvement.

    The relative improvement (Yang et al., ICLR 2020, section 3) is `100 (accuracy - accuracy of the controls) / accuracy of the
    controls`, of mean accuracies, in percent; a dash without controls.

    Args:
        rows: by the genotype's label, its completed rows of `evaluations`, one or more.
        controls: the labels of random genotypes.

    Raises:
        ConfigError: the rows are of several recipes or data sets: such differences are larger than those between genotypes.
    """
    all_rows = [row for own in rows.values() for row in own]
    for column in ("recipe_id", "data"):
        values = sorted({str(row[column]) for row in all_rows})
        if len(values) > 1:
            raise ConfigError(f"{column}: {', '.join(values)} cannot be compared, evaluate all genotypes by one")
    accuracies = {label: fmean(row["accuracy"] for row in own) for label, own in rows.items()}
    control = fmean(accuracies[label] for label in controls) if controls else None
    lines = []
    for label, own in rows.items():
        errors = [100 * (1 - row["accuracy"]) for row in own]
        lines.append(
            {
                "genotype": label,
                "trainings": len(own),
                "test error, %": f"{fmean(errors):.2f}" + (f" ± {stdev(errors):.2f}" if len(own) > 1 else ""),
                "top-5 test error, %": f"{100 * (1 - fmean(row['top5_accuracy'] for row in own)):.2f}",
                "params, M": f"{own[0]['params'] / 1e6:.2f}",
                "seconds each": f"{fmean(row['seconds'] for row in own):.0f}",
                "relative improvement, %": f"{100 * (accuracies[label] / control - 1):+.2f}" if control else "–",
            }
        )
    where = f"{all_rows[0]['data']}, recipe {all_rows[0]['recipe_id']}, {len(all_rows[0]['correct'])} test images"
    return f"{where}\n\n" + tabulate(
        lines, headers="keys", tablefmt="github", disable_numparse=True, colalign=("left", *["right"] * 6)
    )
