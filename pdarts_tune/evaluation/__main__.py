"""Trains or tests genotypes outside a study.

    python -m pdarts_tune.evaluation --genotype PDARTS_C10 --data cifar10 --recipe cifar
    python -m pdarts_tune.evaluation --genotype PDARTS_C10 --data cifar10 --weights cifar10_model.pt
    python -m pdarts_tune.evaluation --weights results/depth_gap/weights/TRIAL.pt
    python -m pdarts_tune.evaluation --genotype results/depth_gap --max-skips 0..8 --data cifar10 --recipe cifar
    python -m pdarts_tune.evaluation --genotype PDARTS_C10 random:0 random:1 --seeds 2 --data cifar10 --recipe cifar-short
    python -m pdarts_tune.evaluation --genotype PDARTS_C10 DARTS_V2 --estimator nb301:FOLDER

Several genotypes or seeds end in a table, which compares them with the random ones. The same command continues a training that was
stopped or killed, and prints the results of complete ones.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path

from pdarts_tune.config.command_line import change_settings, parse
from pdarts_tune.config.evaluation import EvalConfig, find_recipe
from pdarts_tune.config.serialize import ConfigError, absolute_name, from_dict, to_dict


@dataclass(frozen=True)
class Arguments:
    """Settings that are left out are the recipe's. A change of the recipe gives it another id."""

    genotype: tuple[str, ...] = ()
    """One or more: published names (PDARTS_C10), texts, files, random:SEED, studies' results folders. Of a file with several
    genotypes: FILE:last, FILE:LINE or FILE:NAME."""
    data: str | None = None
    """Data set: digits, cifar10, cifar100, imagenet, folder:PATH or parquet:PATH."""
    recipe: str | None = None
    """cifar (unless weights know theirs), cifar-large, cifar-short, cifar-small, cifar-bf16, imagenet-mobile,
    imagenet-mobile-256 or imagenet-mobile-short."""
    weights: Path | None = None
    """Test these weights instead of training: a state dict of ours or of DARTS-family code. Those that a study or this command kept
    know their genotype, data set and recipe."""
    mean: tuple[float, ...] | None = None
    """With --weights whose file does not hold it: the mean per channel of the images that trained them, scaled to [0, 1]."""
    std: tuple[float, ...] | None = None
    """The standard deviation. Without the two, the constants of the family (CIFAR-10's, CIFAR-100's, ImageNet's)."""
    estimator: tuple[str, ...] = ()
    """Train and test nothing: print what nb301:FOLDER (or nb301:FOLDER@EPOCH) predicts or table:FILE knows; with both, the
    rank of the prediction among those of the table's cells."""
    results: Path = Path("results")
    """The tables go to the folder `trainings` in this folder."""
    max_skips: str | None = None
    """Skip limits of the cells from results folders and of random genotypes, each distinct cell once: 2, 0,2 or 0..8."""
    devices: int = 1
    """Train each network on so many GPUs (without GPUs: in so many processes), through Ray Train."""
    address: str | None = None
    """A running Ray cluster for more than one device, e.g. auto; without it, this machine."""
    set: tuple[str, ...] = ()
    """NAME=VALUE of any setting of the recipe: warmup_epochs=5 weight_decay=1e-4 auxiliary_weight=0."""
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
    """On several devices: batch norms use the whole batch; off, each device's share, as in the papers."""
    channels_last: bool = False
    compile: bool = False
    tf32: bool = False
    """On GPUs, round the factors of products and convolutions to TensorFloat-32."""
    graph: str = "auto"
    """auto: on a GPU each training step is one CUDA graph; off: operator by operator."""
    skip_bad_images: bool = False


def main(arguments: Sequence[str] | None = None) -> None:
    """Exits with 0, 1 (a training failed), 2 (bad input) or 130 (Ctrl-C; every finished epoch is kept)."""
    settings = parse(Arguments, arguments, prog="python -m pdarts_tune.evaluation", description=__doc__ or "")
    from pdarts_tune.evaluation.compare import find_origin, run  # imports torch, which --help does without

    try:
        if settings.estimator:
            _print_estimates(settings)
            return
        with _short_warnings():
            kept = find_origin(settings.weights) if settings.weights else None
            genotype = settings.genotype or ((str(kept[0]),) if kept else ())
            run(replace(settings, genotype=genotype), build_config(settings, kept and kept[1]))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (RuntimeError, FloatingPointError) as error:
        print(f"failed: {str(error).splitlines()[0]} (the evaluations table has the whole message)", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("\nstopped; the same command continues from the last finished epoch", file=sys.stderr)
        sys.exit(130)


def _print_estimates(settings: Arguments) -> None:
    """A Markdown table with a line a genotype. Raises ConfigError."""
    from tabulate import tabulate

    from pdarts_tune.evaluation.compare import find_all
    from pdarts_tune.evaluation.estimates import describe_estimates

    if not settings.genotype:
        raise ConfigError("genotype: is missing, give --genotype")
    for option in fields(Arguments):
        if option.name not in ("genotype", "max_skips", "estimator") and getattr(settings, option.name) != option.default:
            raise ConfigError(f"{option.name}: has no effect beside --estimator, which trains nothing; leave it out")
    columns = describe_estimates(find_all(settings.genotype, settings.max_skips)[0], settings.estimator)
    rows = [{"genotype": label} | texts for label, texts in columns.items()]
    print(tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True))


@contextmanager
def _short_warnings() -> Iterator[None]:
    """Prints each warning once, as `warning: ...`, without its place in the code."""
    shown: set[str] = set()

    def show(message: Warning | str, *_: object) -> None:
        if str(message) not in shown:
            shown.add(str(message))
            print(f"warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show  # type: ignore[assignment]
        yield


def build_config(settings: Arguments, kept: EvalConfig | None = None) -> EvalConfig:
    """The recipe with the changes of the command line. Raises ConfigError, naming the setting.

    Args:
        kept: the recipe that weights were trained by, taken where the command line names none.
    """
    for name in ("devices", "seeds"):
        if getattr(settings, name) < 1:
            raise ConfigError(f"{name}: {getattr(settings, name)} is wrong, it must be at least 1")
    for name, other in (("mean", "std"), ("std", "mean")):
        if getattr(settings, name) is not None and getattr(settings, other) is None:
            raise ConfigError(f"{name}: given without {other}, give both")
    if settings.mean is not None and settings.weights is None:
        raise ConfigError("mean, std: are for --weights; a training takes those of its images, or ImageNet's where images stream")
    recipe = kept if kept is not None and settings.recipe is None else find_recipe(settings.recipe or "cifar")
    known = {field.name for field in fields(EvalConfig)} - {"recipe"}
    given = ((option.name, getattr(settings, option.name)) for option in fields(Arguments) if option.name in known)
    changes = {name: value for name, value in given if value != getattr(Arguments, name)}
    config = from_dict(EvalConfig, change_settings(to_dict(replace(recipe, **changes)), settings.set))
    if settings.data is None and kept is None:
        raise ConfigError("data: is missing, give --data")
    return replace(config, data=absolute_name(config.data))


if __name__ == "__main__":
    main()
