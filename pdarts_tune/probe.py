"""How long a step takes on the device at hand: three of them are timed, on noise in the shape of the images."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from pdarts_tune.backends import switched
from pdarts_tune.config import EvalConfig, SearchConfig
from pdarts_tune.cost import even_space
from pdarts_tune.data import DatasetInfo
from pdarts_tune.genotype import Genotype
from pdarts_tune.methods import trains_alphas
from pdarts_tune.network import EvalNetwork
from pdarts_tune.network_shape import network_shape
from pdarts_tune.search_network import build_network, build_optimizers
from pdarts_tune.stages import Stage
from pdarts_tune.steps import build_steps
from pdarts_tune.training import autocast

STEPS = 3


@dataclass(frozen=True)
class StepTimes:
    """Seconds of one batch."""

    weights: float  # a step of the weights alone
    both: float  # a step of the weights and one of the alphas
    forward: float  # without training


def probe_stage(config: SearchConfig, stage: Stage, info: DatasetInfo, device: torch.device) -> StepTimes:
    """Times a stage of a search, its operations spread evenly over the edges."""
    space = even_space(stage.operations)
    network = build_network(config, space, stage.cells, info.num_classes, info.in_channels, seed=0).to(device)
    network.dropout_generator = torch.Generator(device).manual_seed(0)
    network.set_skip_dropout(stage.skip_dropout)
    steps = build_steps(
        config, stage, network, build_optimizers(config, network), info.image_size, torch.Generator(device).manual_seed(0)
    )
    batch = _noise(config.batch_size, info, device)
    learns = trains_alphas(config.method)

    def both() -> None:
        if learns and steps.trains_alphas_apart:
            steps.train_alphas(batch, batch)
        steps.train_weights(batch, learns)

    with switched(config.execution, device):
        steps.start_epoch(stage.epochs - 1)
        weights = _time(lambda: steps.train_weights(batch, False), device)
        together = _time(both, device) if stage.warmup_epochs < stage.epochs else weights
        network.eval()
        with torch.no_grad():
            forward = _time(lambda: network(batch[0]), device)
    return StepTimes(weights, together, forward)


def probe_evaluation(genotype: Genotype, config: EvalConfig, info: DatasetInfo, device: torch.device) -> StepTimes:
    """Times the training of a genotype from scratch; `both` is the same as `weights`."""
    network = EvalNetwork(genotype, network_shape(genotype, config, info), auxiliary=config.auxiliary_weight > 0).to(device)
    if config.channels_last:
        network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), 1e-3)
    images, labels = _noise(config.batch_size, info, device)

    def train() -> None:
        optimizer.zero_grad()
        with autocast(config, device):
            logits, auxiliary = network(images)
        loss = cross_entropy(logits.float(), labels)
        if auxiliary is not None:
            loss = loss + config.auxiliary_weight * cross_entropy(auxiliary.float(), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), config.gradient_clip)
        optimizer.step()

    weights = _time(train, device)
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
    return sorted(seconds[1:])[STEPS // 2]
