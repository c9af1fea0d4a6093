"""What a study will take: bytes and seconds of every stage, GPU-hours, disk, trials on one GPU.

Bytes are predicted from shapes. Seconds come from three steps of each distinct stage on this device, on noise in the shape of the
images. The mobile setting's limit on multiply-adds is kept here too, before a training starts.
"""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from statistics import median, median_high

import torch

from pdarts_tune.config.evaluation import EvalConfig
from pdarts_tune.config.execution import allows_graphs, cell_evaluation
from pdarts_tune.config.methods import Given, RandomSampling, plan_rounds, trains_alphas
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.config.serialize import ConfigError, to_dict
from pdarts_tune.data.datasets import DatasetInfo, check_dataset
from pdarts_tune.evaluation.job import EvalJob, write_eval_row
from pdarts_tune.evaluation.training import autocast, training_step
from pdarts_tune.networks.build import build_network, build_optimizers, in_one_call
from pdarts_tune.networks.cost import check_madds, even_space, network_shape, predict_evaluation_bytes, predict_stage_bytes
from pdarts_tune.networks.evaluation_network import EvalNetwork
from pdarts_tune.networks.graphs import StepGraphs
from pdarts_tune.networks.runtime import compile_cells, keep_freed_memory, switched
from pdarts_tune.pdarts.genotype import Genotype, random_genotype
from pdarts_tune.pdarts.progressive_depth import CELL_OVERHEAD, Stage
from pdarts_tune.results.storage import Storage
from pdarts_tune.search.diagnostics import look_every, look_steps
from pdarts_tune.search.steps import build_steps
from pdarts_tune.study.plan import EvalTrial, SearchTrial
from pdarts_tune.study.run import StudyState
from pdarts_tune.study.shares import HEADROOM, PROCESS_BYTES, memory_share, trials_that_fit

STEPS = 3


@dataclass(frozen=True)
class StepTimes:
    """Seconds of one batch."""

    weights: float  # a step of the weights alone
    both: float  # a step of the weights and one of the alphas
    forward: float  # without training


def probe_stage(config: SearchConfig, stage: Stage, info: DatasetInfo, device: torch.device) -> StepTimes:
    """Times a stage of a search, its operations spread evenly over the edges."""
    space = even_space(stage.operations, config.start)
    network = build_network(config, space, stage.cells, info.num_classes, info.in_channels, seed=0).to(device)
    network.dropout_generator = torch.Generator(device).manual_seed(0)
    network.set_skip_dropout(stage.skip_dropout)
    steps = build_steps(
        config, stage, network, build_optimizers(config, network), info.image_size, torch.Generator(device).manual_seed(0)
    )
    batch = _noise(config.batch_size, info, device)
    learns = trains_alphas(config.method)

    alpha_batch = batch if learns and steps.trains_alphas_apart else None
    with switched(config.execution, device):
        steps.start_epoch(stage.epochs - 1)
        weights = _time(lambda: steps.train(batch, None, False), device)
        together = _time(lambda: steps.train(batch, alpha_batch, learns), device) if stage.warmup_epochs < stage.epochs else weights
        network.eval()
        with torch.no_grad():
            forward = _time(lambda: network(batch[0]), device)
    return StepTimes(weights, together, forward)


def probe_evaluation(genotype: Genotype, config: EvalConfig, info: DatasetInfo, device: torch.device) -> StepTimes:
    """Times the training of a genotype from scratch; `both` is the same as `weights`."""
    network = EvalNetwork(genotype, network_shape(genotype, config, info), auxiliary=config.auxiliary_weight > 0).to(device)
    if config.channels_last:
        network.to(memory_format=torch.channels_last)
    network.evaluation = cell_evaluation(config.execution)
    parameters = list(network.parameters())
    optimizer = torch.optim.SGD(parameters, 1e-3, momentum=config.momentum, fused=in_one_call(parameters))
    images, labels = _noise(config.batch_size, info, device)
    graphs = StepGraphs(device, config.batch_size, (), optimizer, allows_graphs(config.execution))
    if config.compile:
        compile_cells(network.cells)

    def step(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return training_step(network, optimizer, config, images, labels, 1 / config.batch_size)

    with switched(config.execution, device, benchmark=True):
        weights = _time(lambda: graphs.run("step", step, images, labels), device)
        network.eval()
        with torch.no_grad(), autocast(config, device):
            forward = _time(lambda: network(images), device)
    return StepTimes(weights, weights, forward)


def _noise(count: int, info: DatasetInfo, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    shape = (count, info.in_channels, info.image_size, info.image_size)
    images = torch.randn(shape, generator=generator, device=device)
    return images, torch.randint(info.num_classes, (count,), generator=generator, device=device)


def _time(step: Callable[[], object], device: torch.device) -> float:
    """The median of three steps after one that warms up."""
    seconds = []
    for _ in range(1 + STEPS):
        started = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return median(seconds[1:])


def refuse_large(trial: SearchTrial | EvalTrial, folder: Storage) -> str | None:
    """Why the mobile setting does not allow an evaluation's network, which is then in the trial's row; None: it is allowed.

    Given genotypes are refused before a study starts. Genotypes of searches are known only here.
    """
    if isinstance(trial, SearchTrial) or trial.config.stem != "imagenet":
        return None
    genotype = Genotype.parse(trial.genotype)
    try:
        check_madds(genotype, trial.config, _info(trial.config), f"genotype {genotype.genotype_id}")
    except ConfigError as error:
        job = EvalJob(trial.trial_id, str(folder), trial.genotype, to_dict(trial.config))
        write_eval_row(job, {"status": "failed", "failure": f"refused: {error}", "device": "none"})
        return f"refused: {error}"
    return None


# Measured on the tables of a small study: a trial's files without rows, and each row of alphas and epochs.
SEARCH_TABLE_BYTES, ALPHA_ROW_BYTES, EPOCH_ROW_BYTES, EVALUATION_TABLE_BYTES = 45_000, 21, 400, 16_000
MIRROR_BYTES = 250_000  # of a trial in MLflow
EIGENVALUE_STEPS = 13  # of the weights: the time of one estimate, 9 to 16 as measured
KNOWN_GPU_BYTES = {"16 GB": 16 * 10**9, "24 GB": 24 * 10**9, "80 GB": 80 * 10**9}


@dataclass(frozen=True)
class StageForecast:
    """One stage of a variant's searches, or one training from scratch. Seconds are nan where nothing is timed."""

    needed_bytes: int
    seconds: float = math.nan  # of training and validation alone, as in the tables
    diagnostic_seconds: float = 0.0
    timed: bool = True  # False: scaled from another stage's seconds

    def __str__(self) -> str:
        if math.isnan(self.seconds):
            return "–"
        return ("" if self.timed else "~") + show_duration(self.seconds)


@dataclass
class Forecaster:
    """Predicts bytes and times steps, once for stages of one shape.

    `patience` is the limit of all probes in seconds. Later stages are scaled from the timed ones.
    """

    device: torch.device
    patience: float
    _bytes: dict[str, int] = field(default_factory=dict)
    _times: dict[str, StepTimes] = field(default_factory=dict)
    _rates: dict[str, float] = field(default_factory=dict)  # seconds of a weight step per unit of work, of each timed stage
    _spent: float = 0.0

    def search_bytes(self, config: SearchConfig, stage: Stage, info: DatasetInfo) -> int:
        key = _shape(config, stage, info)
        if key not in self._bytes:
            sizes = info.image_size, info.num_classes, info.in_channels
            self._bytes[key] = predict_stage_bytes(config, stage, *sizes, device=self.device)
        return self._bytes[key]

    def search_stage(self, config: SearchConfig, stage: Stage, info: DatasetInfo) -> StageForecast:
        needed, key = self.search_bytes(config, stage, info), _shape(config, stage, info)
        work = stage.cells * (stage.operations + CELL_OVERHEAD) * config.batch_size * config.channels * info.image_size**2
        times = self._step_times(key, lambda: probe_stage(config, stage, info, self.device))
        timed = times is not None
        if times is not None:
            self._rates[key] = times.weights / work
        elif self._rates:
            weights = work * median_high(self._rates.values())
            times = StepTimes(weights, 2 * weights, weights / 3)
        else:
            return StageForecast(needed)
        held_out = round(config.validation_fraction * info.train_images)
        half = (info.train_images - held_out) / 2
        steps, validation = math.ceil(half / config.batch_size), math.ceil((held_out or half) / config.batch_size)
        trained = steps * (stage.warmup_epochs * times.weights + (stage.epochs - stage.warmup_epochs) * times.both)
        looking = _diagnostic_steps(config, stage, steps, validation) * times.weights
        return StageForecast(needed, trained + stage.epochs * validation * times.forward, looking, timed)

    def evaluation_bytes(self, genotype: Genotype, config: EvalConfig, info: DatasetInfo) -> int:
        needed = predict_evaluation_bytes(genotype, network_shape(genotype, config, info), config, self.device)
        return needed + _image_bytes(config, info)

    def evaluation(self, genotype: Genotype, config: EvalConfig, info: DatasetInfo) -> StageForecast:
        needed = self.evaluation_bytes(genotype, config, info)
        times = self._step_times(repr((genotype, config, info)), lambda: probe_evaluation(genotype, config, info, self.device))
        if times is None:
            return StageForecast(needed)
        held_out = round(config.validation_fraction * info.train_images)
        images = info.train_images - held_out, held_out, info.test_images
        steps, validation, test = (math.ceil(count / config.batch_size) for count in images)
        epoch = steps * times.weights + validation * times.forward
        return StageForecast(needed, config.epochs * epoch + test * times.forward)

    def _step_times(self, shape: str, probe: Callable[[], StepTimes]) -> StepTimes | None:
        """Those of a shape, which are probed once; None if there is no patience for it."""
        if shape not in self._times and self._spent < self.patience:
            started = time.perf_counter()
            self._times[shape] = probe()
            self._spent += time.perf_counter() - started
        return self._times.get(shape)


_ON_GPU = Forecaster(torch.device("cuda"), 0.0)  # times nothing


def forecast(state: StudyState, forecaster: Forecaster, gpu_bytes: int | None) -> str:
    """The text that a dry run adds to its list of trials: what the rest of the study takes.

    `gpu_bytes` is the memory of this machine's GPU; None: the text is about usual sizes.
    """
    plan, lines, total, diagnostics, disk = state.plan, [], 0.0, 0.0, 0
    needs: dict[str, int] = {}
    counts = Counter(trial.variant for trial in state.missing)
    width = max(len(variant.name) for variant in plan.variants)
    for variant in plan.variants:
        count, config = counts[variant.name], variant.search
        if not count:
            lines.append(f"  {variant.name:{width}}  done")
            continue
        stages = [forecaster.search_stage(config, stage, _info(config)) for stage in _rounds(config)]
        needs[variant.name] = max((stage.needed_bytes for stage in stages), default=0)
        disk += count * (_table_bytes(config) + MIRROR_BYTES)
        own_diagnostics = count * sum(stage.diagnostic_seconds for stage in stages)
        diagnostics += own_diagnostics
        total += count * sum(stage.seconds for stage in stages) + own_diagnostics
        parts = [f"{show_bytes(stage.needed_bytes)} {stage}" for stage in stages] or ["nothing is trained"]
        alike = len(parts) > 4 and len(set(parts)) == 1  # the candidates of a random search: one is shown
        lines.append(f"  {variant.name:{width}}  {'   '.join(parts[:1] if alike else parts)}")
    time_needed = "time not probed"
    if not math.isnan(total):
        time_needed = f"{show_duration(total)} of one device, of which diagnostics take {show_duration(diagnostics)}"
    explained = f"; predicted peak bytes and seconds of each stage's training, {forecaster.device.type} (~: scaled)"
    lines.append(f"searches: {time_needed}{explained}" if counts.total() else "searches: done")
    given = [v.search.method.genotype for v in plan.variants if isinstance(v.search.method, Given)]
    example = Genotype.parse(given[0]) if given else random_genotype(random.Random(0), 2, exactly=True)
    for recipe, count in state.evaluations_left.items():
        name, info = f"{recipe.recipe} on {recipe.data}", _info(recipe)
        if not count:
            lines.append(f"evaluations by {name}: done")
            continue
        one = forecaster.evaluation(example, recipe, info)
        total += count * one.seconds
        disk += count * (EVALUATION_TABLE_BYTES + info.test_images // 8)
        needs[name] = one.needed_bytes
        lines.append(f"evaluations by {name}: {show_bytes(one.needed_bytes)}, {one} each, at most {count}")
    device = "GPU" if forecaster.device.type == "cuda" else "CPU core"
    hours = "not known in part" if math.isnan(total) else f"{total / 3600:.3g} {device}-hours"
    lines.append(f"total: {hours}; disk: about {show_bytes(disk)}, and a checkpoint for each trial that runs")
    return "\n".join(lines + _packing_lines(needs, gpu_bytes))


def forecast_here(state: StudyState, patience: float) -> str:
    """The forecast for this machine. A trial has a GPU, or one core of the CPU."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    keep_freed_memory()  # as a trial does
    try:
        gpu_bytes = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
        return forecast(state, Forecaster(device, patience), gpu_bytes)
    finally:
        torch.set_num_threads(threads)


@lru_cache(10_000)
def predict_need(trial: SearchTrial | EvalTrial) -> int:
    """The predicted memory of a trial on a GPU in bytes; 0 for a trial that trains nothing. Any machine will do."""
    info = _info(trial.config)
    if isinstance(trial, SearchTrial):
        stages = [_ON_GPU.search_bytes(trial.config, stage, info) for stage in _rounds(trial.config)]
        return max(stages) + _image_bytes(trial.config, info) if stages else 0
    return _ON_GPU.evaluation_bytes(Genotype.parse(trial.genotype), trial.config, info)


def check_gpu(trials: Iterable[SearchTrial], gpu_bytes: int) -> None:
    """Raises ConfigError if not even the smallest stage of all searches fits on a GPU of this size."""
    stages = [
        (_ON_GPU.search_bytes(trial.config, stage, _info(trial.config)), number, trial)
        for trial in trials
        for number, stage in enumerate(_rounds(trial.config), start=1)
    ]
    needed, number, trial = min(stages, key=lambda stage: stage[0], default=(0, 0, None))
    if trial is not None and not trials_that_fit(needed, gpu_bytes):
        remedy = show_fitting_batch(trial.config, _rounds(trial.config)[number - 1], _info(trial.config), gpu_bytes)
        raise ConfigError(
            f"address: the smallest stage, {number} of {trial.variant}, takes {show_bytes(needed)} of a GPU by prediction, and the "
            f"smallest GPU has {show_bytes(gpu_bytes)}; {remedy}"
        )


def show_fitting_batch(config: SearchConfig, stage: Stage, info: DatasetInfo, gpu_bytes: int) -> str:
    """Which batch would let a stage fit on a GPU that it is too large for."""
    batch = config.batch_size
    while batch > 1:
        needed = _ON_GPU.search_bytes(replace(config, batch_size=batch), stage, info)
        if trials_that_fit(needed, gpu_bytes):
            return f"a batch of {batch} images would fit (--set batch_size={batch})"
        batch = int(batch * max(0.0, min(0.95, (gpu_bytes - PROCESS_BYTES) / (HEADROOM * needed))))
    return "no batch would fit"


def _info(config: SearchConfig | EvalConfig) -> DatasetInfo:
    return _checked(SearchConfig(**{name: getattr(config, name) for name in _DATA_FIELDS}))


_DATA_FIELDS = ("data", "train_images", "test_images", "image_size", "downsample", "skip_bad_images")
_checked = lru_cache(check_dataset)  # a search's and a recipe's images are often the same


def show_bytes(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"


def show_duration(seconds: float) -> str:
    for unit, size in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.3g} seconds"


def _packing_lines(needs: dict[str, int], gpu_bytes: int | None) -> list[str]:
    devices = KNOWN_GPU_BYTES if gpu_bytes is None else {f"this GPU ({show_bytes(gpu_bytes)})": gpu_bytes}
    lines = []
    for name, size in devices.items():
        fits = {what: trials_that_fit(needed, size) for what, needed in needs.items() if needed}
        fewest, most = min(fits, key=fits.__getitem__), max(fits, key=fits.__getitem__)
        too_large = [what for what, count in fits.items() if not count]
        counts, shares = f"{fits[fewest]} trials", f"{memory_share(needs[fewest], size):g}"
        if fits[most] > fits[fewest]:
            counts += f" ({fewest}) to {fits[most]} ({most})"
            shares += f" to {memory_share(needs[most], size):g}"
        lines.append(
            f"one GPU of {name}: {counts} at a time, {shares} of it each"
            + (f"; too large for it: {', '.join(too_large)}" if too_large else "")
        )
    return lines


def _rounds(config: SearchConfig) -> tuple[Stage, ...]:
    return () if isinstance(config.method, RandomSampling | Given) else plan_rounds(config.method, config.stages)


def _image_bytes(config: SearchConfig | EvalConfig, info: DatasetInfo) -> int:
    """Bytes of the images that live on the device, a byte a pixel and channel; those of a set that streams do not.

    A search without a validation part of its own validates on the alphas' images, of which it holds a second copy.
    """
    if config.image_size is not None:
        return 0
    images = info.train_images
    if isinstance(config, EvalConfig):
        images += info.test_images
    elif config.validation_fraction == 0:
        images += images // 2
    return images * info.in_channels * info.image_size**2


def _shape(config: SearchConfig, stage: Stage, info: DatasetInfo) -> str:
    alike = (stage.cells, stage.operations, stage.skip_dropout > 0, stage.warmup_epochs < stage.epochs)
    further = config.method, config.remedies, config.space, config.stem, config.execution, config.dropout_on_reduce
    return repr((alike, config.channels, config.batch_size, further, info))


def _diagnostic_steps(config: SearchConfig, stage: Stage, steps: int, validation: int) -> float:
    """The time of a stage's diagnostics, in steps of the weights; 0 for a random search."""
    if not trains_alphas(config.method):
        return 0.0
    looks = math.ceil(stage.epochs / look_every(config, steps, validation))
    eigenvalues = stage.epochs // config.eigenvalue_every if config.eigenvalue_every else 0
    return looks * look_steps(steps, validation) + eigenvalues * EIGENVALUE_STEPS


def _table_bytes(config: SearchConfig) -> int:
    rounds = _rounds(config)
    epochs = sum(stage.epochs for stage in rounds)
    alphas = sum(stage.epochs * 28 * stage.operations for stage in rounds)
    return SEARCH_TABLE_BYTES + EPOCH_ROW_BYTES * epochs + ALPHA_ROW_BYTES * alphas
