"""Training a genotype from scratch, and testing it once (paper, section 4.3).

The whole state of an `Evaluation` can be saved after any epoch. A resumed training gives the same bits as an uninterrupted one, on
the same machine with the same number of threads.

Several processes can train one network together (`workers`). All of them draw alike for whole batches, so that batch order,
augmentation and drop path are those of one process. Gradients are means over the whole batch. With `sync_batch_norm` so are the
statistics of batch norms, and the result equals one process's within rounding. Without it each process normalises its own share, as
in the papers' multi-GPU trainings: the result depends on their number.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from pdarts_tune.config.evaluation import EvalConfig, learning_rate
from pdarts_tune.config.execution import allows_graphs, cell_evaluation
from pdarts_tune.config.serialize import ConfigError, config_id, derive_seed
from pdarts_tune.data.batches import Batches, Workers
from pdarts_tune.data.datasets import load_dataset
from pdarts_tune.data.normalisation import Moments
from pdarts_tune.data.splits import split_train
from pdarts_tune.networks.build import clip_gradients, first_not_finite, in_one_call
from pdarts_tune.networks.checkpoint import restore_generators
from pdarts_tune.networks.cost import network_cost, network_shape
from pdarts_tune.networks.evaluation_network import EvalNetwork
from pdarts_tune.networks.graphs import StepGraphs, load_optimizer, set_rate
from pdarts_tune.networks.runtime import compile_cells, switched
from pdarts_tune.pdarts.genotype import Genotype

ALONE = Workers()


@dataclass(frozen=True)
class EvalEpoch:
    """The record of an epoch. Accuracies are fractions; `epoch` counts from 0."""

    epoch: int
    train_loss: float  # of the main head with smoothed labels, on augmented images, while the weights change
    train_accuracy: float
    validation_accuracy: float  # nan without a validation part
    learning_rate: float
    seconds: float


@dataclass(frozen=True)
class TestResult:
    """A network's result on images that are never augmented."""

    accuracy: float  # a fraction; top-1
    top5_accuracy: float
    loss: float  # mean cross-entropy
    correct: list[bool]  # per image in file order, for paired tests between networks
    params: int  # without the auxiliary head, see networks/cost.py
    macs: int


class Evaluation:
    """One training of a genotype on all training images but the validation part, if the configuration has one.

    The split, and with `digits` the test part, comes from `split_seed`. Initial weights, batch order, augmentation and drop path
    come from `seed`, each from a generator of its own. `moments` normalise the images; None: those of a new training.

    Raises:
        ConfigError: the data set is unknown, unreadable or too small; the images are too small for the cutout; a batch is too small
            for the workers.
    """

    def __init__(
        self,
        genotype: Genotype,
        config: EvalConfig,
        device: torch.device,
        workers: Workers = ALONE,
        moments: Moments | None = None,
    ) -> None:
        if config.batch_size < 2 * workers.count:
            raise ConfigError(
                f"batch_size: {config.batch_size} is too small for {workers.count} devices, each needs at least 2 images"
            )
        self.genotype = genotype
        self.config = config
        self.device = device
        self.workers = workers
        self.records: list[EvalEpoch] = []
        self.dataset = load_dataset(config, moments)
        train = self.dataset.train
        self.validation_batches: Batches | None = None
        if config.validation_fraction > 0:
            split = split_train(train, config.split_seed, config.validation_fraction)
            train = split.weights_and_alphas
            self.validation_batches = Batches(split.validation, self.dataset, config.batch_size, device, augment=False)
        self.batches = Batches(train, self.dataset, config.batch_size, device, augment=True, cutout=config.cutout)
        self.generators = {
            purpose: torch.Generator(device).manual_seed(derive_seed(config.seed, f"evaluation {purpose}"))
            for purpose in ("batches", "drop path")
        }
        self.network_config = network_shape(genotype, config, self.dataset)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(config.seed, "evaluation weights"))
            self.network = EvalNetwork(genotype, self.network_config, auxiliary=config.auxiliary_weight > 0)
        self.network.to(device).to(memory_format=torch.channels_last if config.channels_last else torch.contiguous_format)
        self.network.drop_path_generator = self.generators["drop path"]
        # Norms over all processes' images have no kernels.
        self.network.evaluation = cell_evaluation(config.execution) if workers.count == 1 else "plain"
        self._model: nn.Module = self._prepare_model()
        self.optimizer = torch.optim.SGD(
            self.network.parameters(),
            lr=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            fused=in_one_call(list(self.network.parameters())),
        )
        self.graphs = StepGraphs(
            device,
            config.batch_size,
            [self.generators["drop path"]],
            self.optimizer,
            workers.count == 1 and allows_graphs(config.execution),
        )

    def _prepare_model(self) -> nn.Module:
        """The network, wrapped so that backward averages gradients if there are several workers."""
        if self.workers.count > 1 and self.config.sync_batch_norm:
            synchronise_batch_norms(self.network, self.device)
        if self.config.compile:
            compile_cells(self.network.cells)  # drop path's masks come from outside
        if self.workers.count == 1:
            return self.network
        dead_ends = any(len(cell.reached) < 2 + cell.num_nodes for cell in (self.genotype.normal, self.genotype.reduce))
        device_ids = [self.device] if self.device.type == "cuda" else None
        # Running statistics are alike with synchronised norms, and the first process's after each epoch without (`align_buffers`).
        return DistributedDataParallel(
            self.network, device_ids=device_ids, find_unused_parameters=dead_ends, broadcast_buffers=False
        )

    def epochs(self) -> Iterator[EvalEpoch]:
        """Trains to the last epoch and yields the record of each.

        Raises:
            FloatingPointError: a loss, or a weight after the epoch, is not finite; the message names the epoch and the place.
        """
        while len(self.records) < self.config.epochs:
            with switched(self.config.execution, self.device, benchmark=True):
                record = self._run_epoch(len(self.records))
            self.records.append(record)
            yield record

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next epoch depends on, and the records so far. Plain types and tensors only."""
        return {
            "config_id": config_id(self.config),
            "genotype": str(self.genotype),
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generators": {purpose: generator.get_state() for purpose, generator in self.generators.items()},
            "records": [asdict(record) for record in self.records],
            "left_out": sorted(self.dataset.left_out),
            "mean": list(self.dataset.mean),
            "std": list(self.dataset.std),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a saved state. Raises ValueError if it is of another configuration, genotype or normalisation."""
        for name, own in (("config_id", config_id(self.config)), ("genotype", str(self.genotype))):
            if state[name] != own:
                raise ValueError(f"the checkpoint is of {name} {state[name]}, this is {own}")
        self.dataset.check_saved_moments(state)
        self.network.load_state_dict(state["network"])
        load_optimizer(self.optimizer, state["optimizer"])
        restore_generators(self.generators, state["generators"])
        self.records = [EvalEpoch(**record) for record in state["records"]]
        self.dataset.left_out.update(state["left_out"])

    def test(self) -> TestResult:
        """Tests the network after the last epoch. Nothing else ever uses the test images.

        Raises:
            ValueError: not all epochs are trained, so that nobody can choose one of them by its test accuracy.
            FloatingPointError: the loss of an image is not finite.
        """
        if len(self.records) < self.config.epochs:
            raise ValueError(f"test: only {len(self.records)} of {self.config.epochs} epochs are trained, train all of them first")
        batches = Batches(self.dataset.test, self.dataset, self.config.batch_size, self.device, augment=False)
        result = evaluate(self.network, batches, self.config, "test", self.workers)
        self.dataset.left_out.update(self.workers.union(self.dataset.left_out))
        return result

    def _run_epoch(self, epoch: int) -> EvalEpoch:
        started = time.perf_counter()
        config = self.config
        rate = learning_rate(config, epoch)
        set_rate(self.optimizer, rate)
        self.network.set_drop_path(config.drop_path * epoch / config.epochs)
        loss, accuracy = self._train(epoch)
        self.workers.align_buffers(self.network)
        name = first_not_finite(self.network.state_dict())  # no loss of this epoch depends on the last step
        if name is not None:
            raise FloatingPointError(f"epoch {epoch}: {name} is not finite after the last step")
        self.dataset.left_out.update(self.workers.union(self.dataset.left_out))
        validation_accuracy = math.nan
        if self.validation_batches is not None:
            images = f"epoch {epoch}, validation"
            validation_accuracy = evaluate(self.network, self.validation_batches, config, images, self.workers).accuracy
        return EvalEpoch(epoch, loss, accuracy, validation_accuracy, rate, time.perf_counter() - started)

    def _train(self, epoch: int) -> tuple[float, float]:
        config, workers = self.config, self.workers
        model = self._model.train()
        losses, objectives = [], []
        correct = torch.zeros((), dtype=torch.int64, device=self.device)
        total = 0
        for images, labels, place in self.batches.shared_epoch(self.generators["batches"], workers):
            if not config.sync_batch_norm and place.fewest < 2:
                continue  # batch norm cannot train on one image
            self.network.share = place.start, place.total
            share = workers.count / place.total

            def step(images: Tensor, labels: Tensor, share: float = share) -> tuple[Tensor, ...]:
                return training_step(model, self.optimizer, config, images, labels, share)

            loss, objective, right = self.graphs.run(self.network.drop_path > 0, step, images, labels)
            # They stay on the device until the end of the epoch: a copy after each step would stall a GPU.
            losses.append(loss.clone())
            objectives.append(objective.clone())
            correct += right
            total += place.total
        for index, value in enumerate(workers.total(torch.stack(objectives)).tolist()):
            if not math.isfinite(value):
                raise FloatingPointError(f"epoch {epoch}, step {index}: the training loss is {value}")
        return sum(workers.total(torch.stack(losses)).tolist()) / total, workers.total(correct).item() / total


def training_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, config: EvalConfig, images: Tensor, labels: Tensor, share: float
) -> tuple[Tensor, Tensor, Tensor]:
    """One step on a batch. Returns the sums over its images of the loss, the objective, and the right answers of the main head.

    Args:
        model: gives logits, and those of the auxiliary head or None.
        share: of an image in the mean over the batch. DDP averages gradients over workers, whose parts of a batch may differ by an
            image, so there it is the number of workers over the images of the whole batch.
    """
    optimizer.zero_grad()
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    with autocast(config, images.device):
        logits, auxiliary = model(images.contiguous(memory_format=layout))
    smoothing = config.label_smoothing
    loss = objective = cross_entropy(logits.float(), labels, reduction="sum", label_smoothing=smoothing)
    if auxiliary is not None:
        auxiliary_loss = cross_entropy(auxiliary.float(), labels, reduction="sum", label_smoothing=smoothing)
        objective = loss + config.auxiliary_weight * auxiliary_loss
    (objective * share).backward()
    clip_gradients(list(model.parameters()), config.gradient_clip)
    optimizer.step()
    return loss.detach(), objective.detach(), (logits.argmax(dim=1) == labels).sum()


def autocast(config: EvalConfig, device: torch.device) -> torch.autocast:
    """The recipe's precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")


@torch.no_grad()
def evaluate(network: EvalNetwork, batches: Batches, config: EvalConfig, name: str, workers: Workers = ALONE) -> TestResult:
    """Tests a network on images in order, without augmentation and drop path. Each worker takes its share of each batch.

    Raises:
        FloatingPointError: the loss of an image is not finite, so that its class would be a matter of chance. The message begins
            with `name`, that of the images.
    """
    network.eval()
    outcomes = []  # per image: top-1 correct, top-5 correct, loss
    for images, labels, place in batches.shared_in_order(workers):
        outcome = torch.zeros(3, place.total, dtype=torch.float64, device=batches.device)
        if len(labels):
            with switched(config.execution, batches.device), autocast(config, batches.device):
                logits = network(images)[0].float()
            first_five = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
            own = slice(place.start, place.start + len(labels))
            outcome[0, own] = first_five[:, 0].double()
            outcome[1, own] = first_five.any(dim=1).double()
            outcome[2, own] = cross_entropy(logits, labels, reduction="none").double()
        outcomes.append(outcome)
    correct, top5, losses = workers.total(torch.cat(outcomes, dim=1))
    wrong = int((~losses.isfinite()).sum())
    if wrong:
        raise FloatingPointError(f"{name}: the loss of {wrong} of {len(losses)} images is not finite")
    cost = network_cost(network.genotype, network.config)
    return TestResult(
        correct.mean().item(), top5.mean().item(), losses.mean().item(), (correct > 0).tolist(), cost.params, cost.macs
    )


class _Sum(torch.autograd.Function):
    """The sum over all processes. All of them use it, so the gradient of an addend is the sum of their gradients."""

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:  # noqa: ARG004
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return _Sum.forward(context, gradient)


class SyncBatchNorm(nn.BatchNorm2d):
    """Batch norm with the statistics of all processes' images, on any device (PyTorch's own needs GPUs)."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        # Two passes, in float32 at least: the difference of mean square and squared mean would lose digits.
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        sums = _Sum.apply(torch.cat((exact.sum(dim=(0, 2, 3)), exact.new_full((1,), x.numel() / x.shape[1]))))
        pixels = sums[-1].item()
        mean = sums[:-1] / pixels
        centred = exact - mean[:, None, None]
        variance = _Sum.apply(centred.square().sum(dim=(0, 2, 3))) / pixels
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        with torch.no_grad():
            self.num_batches_tracked += 1
            for running, value in ((self.running_mean, mean), (self.running_var, variance * pixels / max(pixels - 1, 1))):
                assert running is not None
                running.lerp_(value.to(running), self.momentum)
        scaled = centred * (variance + self.eps).rsqrt()[:, None, None]
        if self.affine:
            scaled = scaled * self.weight[:, None, None] + self.bias[:, None, None]
        return scaled.to(x.dtype)


def synchronise_batch_norms(network: nn.Module, device: torch.device) -> None:
    """Makes every batch norm use the statistics of all processes' images. Names of weights stay."""
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncBatchNorm  # it has the same state
