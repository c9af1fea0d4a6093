"""The stage loop of P-DARTS (paper, section 3): search, drop operations, grow deeper, search again.

A `Search` is an iterator of epoch records whose whole state can be saved after any epoch. A search that is resumed on the same
machine with the same number of threads gives the same bits as one that was never interrupted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pdarts_tune.approximation import prune
from pdarts_tune.config import SearchConfig, config_id, derive_seed
from pdarts_tune.cost import peak_bytes
from pdarts_tune.data import Batches, load_dataset, split_train
from pdarts_tune.genotype import Genotype, derive_cell, softmax
from pdarts_tune.regularization import limit_skips, skip_dropout
from pdarts_tune.space import SearchSpace
from pdarts_tune.stages import Stage, cosine_rate
from pdarts_tune.supernet import Mixing, Supernet

CELLS = ("normal", "reduce")

# Batches that re-estimate the batch norms' statistics of a derived cell before its accuracy is taken.
CALIBRATION_BATCHES = 20


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch of a search leaves behind. Accuracies are fractions; `epoch` counts from 0 in its stage, `stage` from 1."""

    stage: int
    epoch: int
    phase: str  # "weights": alphas frozen; "both"
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    learning_rate: float
    skip_dropout: float
    seconds: float
    images_per_second: float  # images that trained weights, over the training time
    peak_bytes: int
    finished: float  # Unix time
    alphas: Mapping[str, list[dict[str, float]]]  # by cell type, per edge, by operation
    probabilities: Mapping[str, list[dict[str, float]]]
    inherited_accuracy: float | None  # of the derived cell with the search network's weights; at the end of a stage only

    def genotype(self, max_skips: int) -> Genotype:
        """The genotype that would be derived after this epoch, with at most `max_skips` skip-connects in the normal cell."""
        normal, reduce = (tuple(self.probabilities[cell]) for cell in CELLS)
        return Genotype(limit_skips(normal, max_skips), derive_cell(reduce))


class Search:
    """One differentiable search (first-order DARTS updates in every stage).

    Raises:
        ConfigError: the data set is unknown, unreadable or too small.
    """

    def __init__(self, config: SearchConfig, device: torch.device) -> None:
        self.config = config
        self.device = device
        self.records: list[EpochRecord] = []
        self.dataset = load_dataset(config.data, config.split_seed, config.train_images, config.test_images)
        split = split_train(self.dataset.train, config.split_seed, config.validation_fraction)

        def batches(part: Any, augment: bool) -> Batches:
            return Batches(part, self.dataset, config.batch_size, device, augment=augment)

        self.weight_batches = batches(split.weights, True)
        self.alpha_batches = batches(split.alphas, True)
        self.validation_batches = batches(split.validation, False)
        # One generator for each purpose: the images that weights see in a given epoch do not depend on the network's depth or
        # on whether alphas train, so that variants with the same seed can be compared as pairs.
        self.generators = {
            purpose: torch.Generator(device).manual_seed(derive_seed(config.seed, purpose))
            for purpose in ("weight batches", "alpha batches", "skip dropout")
        }
        self._start_stage(0, SearchSpace.full())

    @property
    def stage(self) -> Stage:
        return self.config.stages[self.stage_index]

    def epochs(self) -> Iterator[EpochRecord]:
        """Runs the search from where it is, a record after each epoch.

        Raises:
            FloatingPointError: a loss is not finite; the message names the stage and the epoch.
        """
        while True:
            if self.epoch == self.stage.epochs:
                if self.stage_index + 1 == len(self.config.stages):
                    return
                keep = self.config.stages[self.stage_index + 1].operations
                normal, reduce = (prune(tuple(self.records[-1].probabilities[cell]), keep) for cell in CELLS)
                self._start_stage(self.stage_index + 1, SearchSpace(normal, reduce))
            record = self._run_epoch()
            self.epoch += 1
            self.records.append(record)
            yield record

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next epoch depends on, and the records so far; loads with `torch.load(weights_only=True)`."""
        return {
            "config_id": config_id(self.config),
            "stage_index": self.stage_index,
            "epoch": self.epoch,
            "space": asdict(self.network.space),
            "network": self.network.state_dict(),
            "weight_optimizer": self.weight_optimizer.state_dict(),
            "alpha_optimizer": self.alpha_optimizer.state_dict(),
            "generators": {purpose: generator.get_state() for purpose, generator in self.generators.items()},
            "records": [asdict(record) for record in self.records],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a saved state. Raises ValueError if it was saved by another configuration."""
        if state["config_id"] != config_id(self.config):
            raise ValueError(f"the checkpoint is of configuration {state['config_id']}, this is {config_id(self.config)}")
        self._start_stage(state["stage_index"], SearchSpace(**state["space"]))
        self.epoch = state["epoch"]
        self.network.load_state_dict(state["network"])
        self.weight_optimizer.load_state_dict(state["weight_optimizer"])
        self.alpha_optimizer.load_state_dict(state["alpha_optimizer"])
        for purpose, generator in self.generators.items():
            generator.set_state(state["generators"][purpose].cpu())
        self.records = [EpochRecord(**record) for record in state["records"]]

    def _start_stage(self, index: int, space: SearchSpace) -> None:
        """A new network with new weights and new alphas: nothing but the kept operations passes from stage to stage."""
        config = self.config
        self.stage_index, self.epoch = index, 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(config.seed, f"stage {index + 1}"))
            network = Supernet(
                space,
                self.stage.cells,
                config.channels,
                self.dataset.num_classes,
                self.dataset.in_channels,
                alpha_init_scale=config.alpha_init_scale,
            )
        self.network = network.to(self.device)
        self.network.dropout_generator = self.generators["skip dropout"]
        self.weight_optimizer = torch.optim.SGD(
            self.network.weight_parameters(),
            lr=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
        self.alpha_optimizer = torch.optim.Adam(
            self.network.arch_parameters(),
            lr=config.alpha_learning_rate,
            betas=config.alpha_betas,
            weight_decay=config.alpha_weight_decay,
        )

    def _run_epoch(self) -> EpochRecord:
        started = time.perf_counter()
        both = self.epoch >= self.stage.warmup_epochs
        learning_rate = cosine_rate(self.config.learning_rate, self.epoch, self.stage.epochs)
        rate = skip_dropout(self.stage, self.epoch)
        for group in self.weight_optimizer.param_groups:
            group["lr"] = learning_rate
        self.network.set_skip_dropout(rate)
        train_loss, train_accuracy, images = self._train(both)
        trained = time.perf_counter() - started
        validation_loss, validation_accuracy = evaluate(self.network, self.validation_batches)
        inherited = self._inherited_accuracy() if self.epoch + 1 == self.stage.epochs else None
        for name, loss in (("training", train_loss), ("validation", validation_loss)):
            if not math.isfinite(loss):
                raise FloatingPointError(f"stage {self.stage_index + 1}, epoch {self.epoch}: {name} loss is {loss}")
        alphas = dict(zip(CELLS, self._alphas_by_name(), strict=True))
        return EpochRecord(
            stage=self.stage_index + 1,
            epoch=self.epoch,
            phase="both" if both else "weights",
            train_loss=train_loss,
            train_accuracy=train_accuracy,
            validation_loss=validation_loss,
            validation_accuracy=validation_accuracy,
            learning_rate=learning_rate,
            skip_dropout=rate,
            seconds=time.perf_counter() - started,
            images_per_second=images / trained,
            peak_bytes=peak_bytes(self.device),
            finished=time.time(),
            alphas=alphas,
            probabilities={cell: [softmax(edge) for edge in edges] for cell, edges in alphas.items()},
            inherited_accuracy=inherited,
        )

    def _train(self, both: bool) -> tuple[float, float, int]:
        """One pass over the weights' half; before each weight step, in the phase for both, one alpha step."""
        network = self.network.train()
        loss_sum = torch.zeros((), device=self.device)
        correct = torch.zeros((), device=self.device)
        images_seen = 0
        alpha_batches = self._alpha_stream() if both else None
        for images, labels in self.weight_batches.epoch(self.generators["weight batches"]):
            if alpha_batches is not None:
                self._step(*next(alpha_batches), self.alpha_optimizer, network.arch_parameters(), network.weight_parameters())
            loss, logits = self._step(images, labels, self.weight_optimizer, network.weight_parameters(), network.arch_parameters())
            # Summed on the device: reading a number back after each step would stall a GPU.
            loss_sum += loss * len(labels)
            correct += (logits.argmax(dim=1) == labels).sum()
            images_seen += len(labels)
        return loss_sum.item() / images_seen, correct.item() / images_seen, images_seen

    def _step(
        self,
        images: Tensor,
        labels: Tensor,
        optimizer: torch.optim.Optimizer,
        trained: list[nn.Parameter],
        frozen: list[nn.Parameter],
    ) -> tuple[Tensor, Tensor]:
        """One step of one group of parameters; no gradient is spent on the other group."""
        for parameters, on in ((trained, True), (frozen, False)):
            for parameter in parameters:
                parameter.requires_grad_(on)
        optimizer.zero_grad()
        logits = self.network(images)
        loss = cross_entropy(logits, labels)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, self.config.gradient_clip)
        optimizer.step()
        return loss.detach(), logits.detach()

    def _alpha_stream(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from self.alpha_batches.epoch(self.generators["alpha batches"])

    def _inherited_accuracy(self) -> float:
        """Validation accuracy of the derived cell with the weights of the search network (the discretisation gap from below).

        The batch norms' statistics belong to the mixed cell, so they are estimated anew from un-augmented training images; the
        network is left as it was.
        """
        normal, reduce = (tuple(map(softmax, edges)) for edges in self._alphas_by_name())
        genotype = Genotype(limit_skips(normal, self.config.max_skips), derive_cell(reduce))
        mixing = self.network.one_hot_mixing(genotype)
        norms = [module for module in self.network.modules() if isinstance(module, nn.BatchNorm2d)]
        saved = {name: buffer.clone() for name, buffer in self.network.named_buffers()}
        momenta = [norm.momentum for norm in norms]
        self.network.set_skip_dropout(0.0)
        self.network.train()
        with torch.no_grad():
            for batch, (images, _) in zip(range(CALIBRATION_BATCHES), self.weight_batches.in_order(), strict=False):
                for norm in norms:
                    norm.momentum = 1 / (batch + 1)  # the plain mean over batches
                self.network(images, mixing)
        _, accuracy = evaluate(self.network, self.validation_batches, mixing)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for name, buffer in self.network.named_buffers():
            buffer.copy_(saved[name])
        return accuracy

    def _alphas_by_name(self) -> Iterator[list[dict[str, float]]]:
        spaces = (self.network.space.normal, self.network.space.reduce)
        for operations, alphas in zip(spaces, self.network.arch_parameters(), strict=True):
            rows = alphas.detach().tolist()
            yield [dict(zip(names, row, strict=False)) for names, row in zip(operations, rows, strict=True)]


def evaluate(network: Supernet, batches: Batches, mixing: Mixing | None = None) -> tuple[float, float]:
    """Mean loss and accuracy (fraction) of the network in evaluation mode, on images that are never augmented."""
    network.eval()
    loss_sum = torch.zeros((), device=batches.device)
    correct = torch.zeros((), device=batches.device)
    count = 0
    with torch.no_grad():
        for images, labels in batches.in_order():
            logits = network(images, mixing)
            loss_sum += cross_entropy(logits, labels, reduction="sum")
            correct += (logits.argmax(dim=1) == labels).sum()
            count += len(labels)
    return loss_sum.item() / count, correct.item() / count
