"""Genotypes side by side: what several trainings by one recipe came to, and what each adds to a random cell of the same space."""

from __future__ import annotations

import hashlib
import sys
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from tabulate import tabulate

from common.statistics import mean_sd, relative_improvement
from pdarts_tune.config.command_line import parse
from pdarts_tune.config.evaluation import EvalConfig, find_recipe
from pdarts_tune.config.serialize import ConfigError, absolute_name, config_id, to_dict
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
from pdarts_tune.evaluation.training import evaluate
from pdarts_tune.networks.checkpoint import load_checkpoint
from pdarts_tune.networks.cost import network_cost, network_shape
from pdarts_tune.networks.darts_weights import load_darts_state_dict
from pdarts_tune.networks.evaluation_network import CIFAR, IMAGENET_MOBILE, EvalNetwork, NetworkConfig
from pdarts_tune.networks.runtime import keep_freed_memory, peak_bytes, reset_peak_bytes
from pdarts_tune.pdarts.genotype import Genotype
from pdarts_tune.pdarts.published import PUBLISHED
from pdarts_tune.results.storage import Storage
from pdarts_tune.results.tables import read_rows

# MERGED DOCSTRING
# Trains or tests genotypes outside a study: the command line. The training itself is in training.py.
#
#     python -m pdarts_tune.evaluation --genotype PDARTS_C10 --data cifar10 --recipe cifar
#     python -m pdarts_tune.evaluation --genotype PDARTS_C10 --data cifar10 --weights cifar10_model.pt
#     python -m pdarts_tune.evaluation --genotype results/depth_gap --max-skips 0..8 --data cifar10 --recipe cifar
#     python -m pdarts_tune.evaluation --genotype PDARTS_C10 random:0 random:1 --seeds 2 --data cifar10 --recipe cifar-short
#
# Several genotypes, or several seeds, end in a table, with what each genotype adds to the random ones. The same command continues
# what was stopped or killed, and prints the results that are complete.


def compare_genotypes(rows: Mapping[str, Sequence[Mapping[str, Any]]], controls: Collection[str]) -> str:
    """A Markdown table with a line a genotype: error, mean and standard deviation over seeds, size, and relative improvement.

    That is `100 (accuracy - accuracy of the controls) / accuracy of the controls` (Yang et al., ICLR 2020, section 3), of mean
    accuracies, in percent; a dash where there is no control.

    Args:
        rows: by the genotype's label, its completed rows of `evaluations`, one or more.
        controls: the labels of those that were drawn at random.

    Raises:
        ConfigError: the rows are of several recipes or data sets: such differences are larger than those between genotypes.
    """
    every = [row for found in rows.values() for row in found]
    for column in ("recipe_id", "data"):
        values = sorted({str(row[column]) for row in every})
        if len(values) > 1:
            raise ConfigError(f"{column}: {', '.join(values)} cannot be compared, evaluate all genotypes by one")
    drawn = [fmean(row["accuracy"] for row in found) for label, found in rows.items() if label in controls]
    lines = []
    for label, found in rows.items():
        mean, deviation = mean_sd([100 * (1 - row["accuracy"]) for row in found])
        gain = relative_improvement(fmean(row["accuracy"] for row in found), fmean(drawn)) if drawn else None
        lines.append(
            (
                label,
                len(found),
                f"{mean:.2f}" + (f" ± {deviation:.2f}" if len(found) > 1 else ""),
                f"{100 * (1 - fmean(row['top5_accuracy'] for row in found)):.2f}",
                f"{found[0]['params'] / 1e6:.2f}",
                f"{fmean(row['seconds'] for row in found):.0f}",
                "–" if gain is None else f"{gain:+.2f}",
            )
        )
    headers = (
        "genotype",
        "trainings",
        "test error, %",
        "top-5 test error, %",
        "params, M",
        "seconds each",
        "relative improvement, %",
    )
    where = f"{every[0]['data']}, recipe {every[0]['recipe_id']}, {len(every[0]['correct'])} test images"
    return f"{where}\n\n" + tabulate(lines, headers, tablefmt="github", disable_numparse=True, colalign=("left", *["right"] * 6))


@dataclass(frozen=True)
class Arguments:
    """The command line. What is left out is as the recipe has it; whatever is changed gives the recipe another id."""

    genotype: tuple[str, ...]
    """One or more: published names (PDARTS_C10), texts of genotypes, files that hold one, random:SEED, studies' results folders."""
    data: str
    """Data set: digits, cifar10, cifar100, imagenet, folder:PATH or parquet:PATH."""
    recipe: str = "cifar"
    """cifar, cifar-large, cifar-short, imagenet-mobile, imagenet-mobile-256 or imagenet-mobile-short."""
    weights: Path | None = None
    """Test these weights instead of training: a state dict of ours or of DARTS-family code."""
    mean: tuple[float, ...] | None = None
    """With --weights whose file does not say it: the mean per channel that their images were normalised with, scaled to [0, 1]."""
    std: tuple[float, ...] | None = None
    """The same for the standard deviation; without the two, what the family takes (CIFAR-10's, CIFAR-100's, ImageNet's)."""
    results: Path = Path("results")
    """Folder for the tables, in its folder `trainings`."""
    max_skips: str | None = None
    """Of results folders and random genotypes: the skip limits whose cells are taken, each distinct one once: 2, 0,2 or 0..8."""
    devices: int = 1
    """Train on so many GPUs together (without GPUs: so many processes), through Ray Train."""
    address: str | None = None
    """A running Ray cluster for more than one device, e.g. auto; without it, this machine."""
    seed: int = 0
    seeds: int = 1
    """Trainings of each genotype, with seeds from `seed` on."""
    split_seed: int = 0
    epochs: int | None = None
    cells: int | None = None
    channels: int | None = None
    auto_width: bool = False
    """In place of the recipe's channels, the widest even number under 600M multiply-adds."""
    batch_size: int | None = None
    learning_rate: float | None = None
    drop_path: float | None = None
    cutout: int | None = None
    image_size: int | None = None
    """Stream images, cropped to so many pixels; needed for sets that do not fit on the device."""
    train_images: int | None = None
    test_images: int | None = None
    validation_fraction: float | None = None
    """Of the training images, held out to follow training."""
    precision: str | None = None
    """fp32 or bf16."""
    sync_batch_norm: bool = True
    """On several devices: statistics of the whole batch; off, of each device's share, as in the papers."""
    channels_last: bool = False
    compile: bool = False
    skip_bad_images: bool = False


OVERRIDES = (
    "epochs", "cells", "channels", "batch_size", "learning_rate", "drop_path", "cutout", "image_size", "train_images",
    "test_images", "validation_fraction", "precision",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Exits with 0, 1 (a training failed), 2 (bad input) or 130 (Ctrl-C; every finished epoch is kept)."""
    settings = parse(Arguments, arguments, prog="python -m pdarts_tune.evaluation", description=__doc__ or "")
    try:
        with _warnings_in_one_line():
            run(settings)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (RuntimeError, FloatingPointError) as error:
        print(f"failed: {str(error).splitlines()[0]} (the evaluations table has the whole message)", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("\nstopped; the same command continues from the last finished epoch", file=sys.stderr)
        sys.exit(130)


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Each warning once, as `warning: ...`, without the place in the code that it is from."""
    said: set[str] = set()

    def show(message: Warning | str, *_: object) -> None:
        if str(message) not in said:
            said.add(str(message))
            print(f"warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show  # type: ignore[assignment]
        yield


def run(settings: Arguments) -> None:
    """Trains or tests every genotype that the settings name. Raises ConfigError for bad input, before any work."""
    config = build_config(settings)
    for name in ("devices", "seeds"):
        if getattr(settings, name) < 1:
            raise ConfigError(f"{name}: {getattr(settings, name)} is wrong, it must be at least 1")
    if settings.weights is not None and not settings.weights.is_file():
        raise ConfigError(f"weights: {settings.weights} is not a file")
    for given, other in (("mean", "std"), ("std", "mean")):
        if getattr(settings, given) is not None and getattr(settings, other) is None:
            raise ConfigError(f"{given}: given without {other}, give both")
    if settings.mean is not None and settings.weights is None:
        raise ConfigError("mean, std: are for --weights; a training takes those of its images, or ImageNet's where images stream")
    genotypes, controls = find_all(settings.genotype, settings.max_skips)
    if settings.weights is not None and len(genotypes) * settings.seeds > 1:
        raise ConfigError(f"weights: {settings.weights} are of one network, --genotype and --seeds ask for more")
    # Loaded whole before anything is written: a damaged image, or one in both parts, is told here and not in a worker.
    keep_freed_memory()
    state: Mapping[str, Any] = {}
    moments = None
    if settings.weights is not None:
        state, moments, origin = read_weights(settings, config)
    dataset = load_dataset(config, moments)
    folder = settings.results.absolute() / "trainings"
    rows: dict[str, list[dict[str, Any]]] = {label: [] for label in genotypes}
    for seed in range(config.seed, config.seed + settings.seeds):
        for label, genotype in genotypes.items():
            shape = network_shape(genotype, config, dataset)
            print(describe(label, genotype, shape, config))
            if settings.weights is None:
                rows[label].append(train(label, genotype, replace(config, seed=seed), dataset, settings, folder))
            else:
                print(f"{_normalised(dataset.mean, dataset.std)}: {origin}")
                test_weights(label, genotype, config, dataset, settings.weights, state, folder)
    if len(genotypes) * settings.seeds > 1:
        print(compare_genotypes(rows, controls))


def find_all(sources: Sequence[str], max_skips: str | None) -> tuple[dict[str, Genotype], set[str]]:
    """The distinct genotypes of all sources by label, and the labels of those drawn at random.

    Raises:
        ConfigError: a source that stands for no genotype; skip limits where no source has any.
    """
    labels: dict[Genotype, list[str]] = {}
    drawn: set[Genotype] = set()
    limited = [source for source in sources if has_limits(source)]
    if max_skips is not None and not limited:
        raise ConfigError(f"max_skips: {max_skips} is for results folders and random genotypes, --genotype has none")
    for source in sources:
        for label, genotype in find_genotypes(source, max_skips if source in limited else None).items():
            labels.setdefault(genotype, []).append(label)
            drawn |= {genotype} if source.startswith(RANDOM) else set()
    genotypes = {"; ".join(dict.fromkeys(names)): genotype for genotype, names in labels.items()}
    return genotypes, {label for label, genotype in genotypes.items() if genotype in drawn}


def build_config(settings: Arguments) -> EvalConfig:
    """The recipe with what the command line changes. Raises ConfigError, naming the setting."""
    changes = {name: getattr(settings, name) for name in OVERRIDES if getattr(settings, name) is not None}
    switches = ("sync_batch_norm", "channels_last", "compile", "skip_bad_images", "auto_width", "data", "seed", "split_seed")
    config = replace(find_recipe(settings.recipe), **changes, **{name: getattr(settings, name) for name in switches})
    return replace(config, data=absolute_name(config.data))


def describe(label: str, genotype: Genotype, shape: NetworkConfig, config: EvalConfig) -> str:
    """The genotype, and what it costs in both ways of counting, beside what its paper prints."""
    published = next((p for p in PUBLISHED.values() if p.genotype == genotype), None)
    printed: Mapping[str, tuple[float | None, float | None]] = {"this training": (None, None)}
    if published:
        printed = {
            "this training": (None, None),
            "CIFAR setting": (published.params_millions, None),
            "ImageNet mobile": (published.imagenet_params_millions, published.imagenet_madds_millions),
        }
    lines = [f"{label}  {genotype}"]
    lines.append(
        f"recipe {config.recipe_id}: {shape.cells} cells, {shape.channels} channels, {shape.stem} stem, {shape.image_size} px, "
        f"{config.epochs} epochs, batch {config.batch_size}"
    )
    lines.append(f"{'':16} {'params':>9} {'printed':>8} {'conv + linear':>14} {'as papers count':>16} {'printed':>8}")
    for setting, network in (("this training", shape), ("CIFAR setting", CIFAR), ("ImageNet mobile", IMAGENET_MOBILE)):
        cost = network_cost(genotype, network)
        params, madds = printed.get(setting, (None, None))
        lines.append(
            f"{setting:16} {cost.params / 1e6:8.2f}M {_millions(params, 1):>8} {cost.macs / 1e6:13.1f}M "
            f"{cost.madds / 1e6:15.1f}M {_millions(madds, 0):>8}"
        )
    if published and published.note:
        lines.append(f"note: {published.note}")
    return "\n".join(lines)


def _millions(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}M"


def read_weights(settings: Arguments, config: EvalConfig) -> tuple[Mapping[str, Any], Moments, str]:
    """The state dict of a file, what the images of its network were normalised with, and who says so.

    The file says it if it is ours. Otherwise the command line does, or else the family's constants are assumed. Nothing is
    measured: weights would be tested differently beside other training images.

    Raises:
        ConfigError: the file cannot be read; it says another mean or deviation than the command line, or one that cannot be; no
            constants are known for such images.
    """
    weights = settings.weights
    assert weights is not None
    try:
        saved = torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:  # a file of any kind may be given, and PyTorch's readers raise many kinds of errors
        raise ConfigError(f"weights: {weights}: {_first_line(error)}") from None
    info = check_dataset(config)
    given: Moments | None = None
    if settings.mean is not None and settings.std is not None:
        given = settings.mean, settings.std
        check_moments(given, info.in_channels, config.data)
    if not isinstance(saved, dict) or not isinstance(saved.get("state_dict"), dict):
        saved = {"state_dict": saved}
    if "mean" in saved and "std" in saved:
        try:
            own = tuple(map(float, saved["mean"])), tuple(map(float, saved["std"]))
            check_moments(own, info.in_channels, config.data)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"weights: {weights}: {_first_line(error)}") from None
        if given is not None and given != own:
            raise ConfigError(f"mean, std: {weights} says that its {_normalised(*own)}; leave them out")
        return saved["state_dict"], own, f"{weights} says so"
    if given is not None:
        return saved["state_dict"], given, "as given"
    family = find_family(config, info.in_channels, info.image_size, info.num_classes)
    if family is None:
        raise ConfigError(
            f"weights: {weights} does not say what its images were normalised with, and nothing is known of networks for "
            f"{config.data}; give --mean and --std"
        )
    return (
        saved["state_dict"],
        FAMILIES[family],
        f"those of {family}, assumed, for {weights} does not say it (--mean and --std would)",
    )


def _normalised(mean: Sequence[float], std: Sequence[float]) -> str:
    numbers = (" ".join(f"{value:.4f}" for value in values) for values in (mean, std))
    return "images are normalised with mean {} and deviation {}".format(*numbers)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def train(
    label: str, genotype: Genotype, config: EvalConfig, dataset: Dataset, settings: Arguments, folder: Path
) -> dict[str, Any]:
    """Trains or continues, with a line an epoch; a training that the tables hold as completed is only shown again.

    Returns its row of `evaluations`.
    """
    trial_id = f"{genotype.genotype_id}-{config.recipe_id}-seed{config.seed}-{config_id(config)}"
    job = EvalJob(trial_id, str(folder), str(genotype), to_dict(config), keep_weights=True)
    rows = read_rows(folder, "evaluations", trial_id)
    if not rows or rows[0]["status"] != "completed":
        saved = load_checkpoint(Storage(folder), job.checkpoint, torch.device("cpu"))
        moments = settled_moments(Storage(folder), "evaluations", config, saved and saved["evaluation"])
        moments = moments or (dataset.mean, dataset.std)
        print(_normalised(*moments) + "".join(f": those of {name}" for name, known in FAMILIES.items() if known == moments))
        if settings.devices > 1:
            from pdarts_tune.evaluation.distributed import train_on_devices

            train_on_devices(job, settings.devices, settings.address)
            print(job.log.read_text() if job.log.exists() else "", end="")
        else:
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            reset_peak_bytes(device)
            run_eval_job(job, device, lambda epoch: print(epoch_line(epoch, config), flush=True))
        rows = read_rows(folder, "evaluations", trial_id)
    row = rows[0]
    result = _result(row["accuracy"], row["top5_accuracy"], len(row["correct"]))
    left_out = f", {row['left_out']} images left out" if row["left_out"] else ""
    print(f"{label}, seed {config.seed}: {result}, {row['seconds']:.0f} s{left_out}")
    print(f"weights {folder / job.weights}\n")
    return row


def test_weights(
    label: str,
    genotype: Genotype,
    config: EvalConfig,
    dataset: Dataset,
    weights: Path,
    state: Mapping[str, Any],
    folder: Path,
) -> None:
    """Tests weights from a file and writes their row, under a recipe of their own: nobody knows how they were trained."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    reset_peak_bytes(device)
    started = datetime.now(UTC)
    network = EvalNetwork(genotype, network_shape(genotype, config, dataset), auxiliary=False)
    try:
        load_darts_state_dict(network, state)
    except Exception as error:  # a file may hold anything under a weight's name
        raise ConfigError(f"weights: {weights}: {_first_line(error)}") from None
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()[:8]
    job = EvalJob(f"{genotype.genotype_id}-weights-{digest}-{config_id(config)}", str(folder), str(genotype), to_dict(config))
    own: dict[str, Any] = {"recipe": "weights", "recipe_id": f"weights-{digest}", "epochs": 0, "seconds": 0.0}

    def write(outcome: dict[str, Any]) -> None:
        write_eval_row(job, own | outcome, describe_device(device), peak_bytes(device), started, 1)

    try:
        batches = Batches(dataset.test, dataset, config.batch_size, device, augment=False)
        result = evaluate(network.to(device), batches, config, "test")
    except Exception as error:
        write({"status": failure_status(error), "failure": error_text(error)})
        raise
    write({"status": "completed"} | test_columns(result) | data_columns(dataset))
    print(f"{label}: {_result(result.accuracy, result.top5_accuracy, len(result.correct))}\n")


def _result(accuracy: float, top5: float, images: int) -> str:
    return f"error {100 * (1 - accuracy):.2f} % (top-5 {100 * (1 - top5):.2f} %) on {images} test images"


if __name__ == "__main__":
    main()
