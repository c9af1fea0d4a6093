"""Training a genotype from scratch, and testing it once (paper, section 4.3).

An `Evaluation` is an iterator of epoch records whose whole state can be saved after any epoch. One that is resumed on the same
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

from pdarts_tune.config import EvalConfig, config_id, derive_seed
from pdarts_tune.cost import network_cost
from pdarts_tune.data import Batches, load_dataset, split_train
from pdarts_tune.genotype import Genotype
from pdarts_tune.network import EvalNetwork, NetworkConfig
from pdarts_tune.stages import cosine_rate


@dataclass(frozen=True)
class EvalEpoch:
    """What one epoch of training leaves behind. Accuracies are fractions; `epoch` counts from 0."""

    epoch: int
    train_loss: float  # of the main head, on augmented images, while the weights change
    train_accuracy: float
    validation_accuracy: float  # nan without a validation part
    learning_rate: float
    seconds: float


@dataclass(frozen=True)
class TestResult:
    """What the trained network makes of the test images."""

    accuracy: float  # a fraction
    loss: float  # mean cross-entropy
    correct: list[bool]  # per test image in file order, for paired tests between networks
    params: int  # without the auxiliary head, see cost.Cost
    macs: int


class Evaluation:
    """One training of a genotype. Trains on all training images but the validation part, if the configuration asks for one.

    The split, and with `digits` the test part, comes from `split_seed`; initial weights, batch order, augmentation and drop path
    come from `seed`, each from a generator of its own.

    Raises:
        ConfigError: the data set is unknown, unreadable or too small, or its images are too small for the cutout.
    """

    def __init__(self, genotype: Genotype, config: EvalConfig, device: torch.device) -> None:
        self.genotype = genotype
        self.config = config
        self.device = device
        self.records: list[EvalEpoch] = []
        self.dataset = load_dataset(config.data, config.split_seed, config.train_images, config.test_images)
        train = self.dataset.train
        self.validation_batches: Batches | None = None
        if config.validation_fraction > 0:
            split = split_train(train, config.split_seed, config.validation_fraction)
            train = split.weights.joined(split.alphas)
            self.validation_batches = Batches(split.validation, self.dataset, config.batch_size, device, augment=False)
        self.batches = Batches(train, self.dataset, config.batch_size, device, augment=True, cutout=config.cutout)
        self.generators = {
            purpose: torch.Generator(device).manual_seed(derive_seed(config.seed, f"evaluation {purpose}"))
            for purpose in ("batches", "drop path")
        }
        self.network_config = NetworkConfig(
            config.channels,
            config.cells,
            self.dataset.num_classes,
            self.dataset.image_size,
            "cifar",
            self.dataset.in_channels,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(config.seed, "evaluation weights"))
            network = EvalNetwork(genotype, self.network_config, auxiliary=config.auxiliary_weight > 0)
        self.network = network.to(device)
        self.network.drop_path_generator = self.generators["drop path"]
        self.optimizer = torch.optim.SGD(
            self.network.parameters(), lr=config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay
        )

    def epochs(self) -> Iterator[EvalEpoch]:
        """Trains from where it is to the last epoch, a record after each.

        Raises:
            FloatingPointError: a loss is not finite; the message names the epoch and the step.
        """
        while len(self.records) < self.config.epochs:
            record = self._run_epoch(len(self.records))
            self.records.append(record)
            yield record

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next epoch depends on, and the records so far; loads with `torch.load(weights_only=True)`."""
        return {
            "config_id": config_id(self.config),
            "genotype": str(self.genotype),
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generators": {purpose: generator.get_state() for purpose, generator in self.generators.items()},
            "records": [asdict(record) for record in self.records],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a saved state. Raises ValueError if it was saved for another configuration or genotype."""
        for name, ours in (("config_id", config_id(self.config)), ("genotype", str(self.genotype))):
            if state[name] != ours:
                raise ValueError(f"the checkpoint is of {name} {state[name]}, this is {ours}")
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        for purpose, generator in self.generators.items():
            generator.set_state(state["generators"][purpose].cpu())
        self.records = [EvalEpoch(**record) for record in state["records"]]

    def test(self) -> TestResult:
        """Tests the network as the last epoch left it. Nothing else ever uses the test images.

        Raises:
            ValueError: epochs are left to train, so that a choice between them by test accuracy is not even possible.
        """
        if len(self.records) < self.config.epochs:
            raise ValueError(f"test: only {len(self.records)} of {self.config.epochs} epochs are trained, train all of them first")
        loss, correct = self._evaluate(Batches(self.dataset.test, self.dataset, self.config.batch_size, self.device, augment=False))
        cost = network_cost(self.genotype, self.network_config)
        return TestResult(correct.double().mean().item(), loss, correct.tolist(), cost.params, cost.macs)

    def _run_epoch(self, epoch: int) -> EvalEpoch:
        started = time.perf_counter()
        config = self.config
        learning_rate = cosine_rate(config.learning_rate, epoch, config.epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.network.set_drop_path(config.drop_path * epoch / config.epochs)
        loss, accuracy = self._train(epoch)
        validation_accuracy = math.nan
        if self.validation_batches is not None:
            validation_accuracy = self._evaluate(self.validation_batches)[1].double().mean().item()
        return EvalEpoch(epoch, loss, accuracy, validation_accuracy, learning_rate, time.perf_counter() - started)

    def _train(self, epoch: int) -> tuple[float, float]:
        network = self.network.train()
        losses, objectives, counts = [], [], []
        correct = torch.zeros((), dtype=torch.int64, device=self.device)
        for images, labels in self.batches.epoch(self.generators["batches"]):
            self.optimizer.zero_grad()
            logits, auxiliary = network(images)
            loss = objective = cross_entropy(logits, labels)
            if auxiliary is not None:
                objective = loss + self.config.auxiliary_weight * cross_entropy(auxiliary, labels)
            objective.backward()
            nn.utils.clip_grad_norm_(network.parameters(), self.config.gradient_clip)
            self.optimizer.step()
            # Kept on the device until the end of the epoch: reading a number back after each step would stall a GPU.
            losses.append(loss.detach())
            objectives.append(objective.detach())
            counts.append(len(labels))
            correct += (logits.argmax(dim=1) == labels).sum()
        for step, value in enumerate(torch.stack(objectives).tolist()):
            if not math.isfinite(value):
                raise FloatingPointError(f"epoch {epoch}, step {step}: the training loss is {value}")
        total = sum(counts)
        weighted = sum(loss * count for loss, count in zip(torch.stack(losses).tolist(), counts, strict=True))
        return weighted / total, correct.item() / total

    @torch.no_grad()
    def _evaluate(self, batches: Batches) -> tuple[float, Tensor]:
        """Mean loss, and for each image whether it is classified correctly, bool (N,); never augmented, nothing dropped."""
        network = self.network.eval()
        losses, correct = [], []
        for images, labels in batches.in_order():
            logits, _ = network(images)
            losses.append(cross_entropy(logits, labels, reduction="sum"))
            correct.append(logits.argmax(dim=1) == labels)
        hits = torch.cat(correct)
        return torch.stack(losses).sum().item() / len(hits), hits
