"""The stage loop of P-DARTS (paper, section 3): search, drop operations, grow deeper, search again.

A `Search` is an iterator of epoch records. Its whole state can be saved after any epoch. On the same machine with the same number
of threads a resumed search gives the same bits as an uninterrupted one. `search/steps.py` has the step of each method. A random
search runs through the same loop, with a candidate in place of a stage.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from pdarts_tune.config.methods import RandomSearch, plan_rounds
from pdarts_tune.config.remedies import StopAtSkips
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.config.serialize import config_id, derive_seed
from pdarts_tune.data.batches import Batches
from pdarts_tune.data.datasets import load_dataset
from pdarts_tune.data.normalisation import Moments
from pdarts_tune.data.splits import split_train
from pdarts_tune.networks.build import build_network, build_optimizers, first_not_finite
from pdarts_tune.networks.checkpoint import restore_generators
from pdarts_tune.networks.cost import predict_stage_bytes
from pdarts_tune.networks.graphs import load_optimizer, set_rate
from pdarts_tune.networks.partial_channels import PartialSupernet
from pdarts_tune.networks.runtime import (
    compile_cells,
    give_back_freed_memory,
    is_out_of_memory,
    peak_bytes,
    reset_peak_bytes,
    switched,
)
from pdarts_tune.pdarts.approximation import draw_operations, keep_choice, prune
from pdarts_tune.pdarts.genotype import Genotype, random_genotype, sigmoid, softmax
from pdarts_tune.pdarts.progressive_depth import Stage, cosine_rate
from pdarts_tune.pdarts.regularization import skip_dropout
from pdarts_tune.pdarts.space import NUM_NODES, SearchSpace
from pdarts_tune.search.diagnostics import WINDOW, Diagnostics, diagnose, evaluate, genotype_space, has_sharpened, look_every
from pdarts_tune.search.records import CELLS, Choice, EpochRecord
from pdarts_tune.search.steps import build_steps


class StageMemoryError(MemoryError):
    """A stage (counted from 1) ran out of memory. `needed` is its memory by prediction, in bytes."""

    def __init__(self, stage: int, needed: int, reason: str) -> None:
        super().__init__(f"stage {stage}: takes {needed:,} bytes by prediction{reason}")
        self.needed = needed


class MemoryLimitError(StageMemoryError):
    """A stage would take more than the search's `memory_limit`. Another attempt would end alike."""


class Search:
    """One search, by any method that trains a network.

    `moments` normalise the images; None: those of a new run.

    Raises:
        ConfigError: the data set is unknown, unreadable or too small.
    """

    def __init__(self, config: SearchConfig, device: torch.device, moments: Moments | None = None) -> None:
        self.config = config
        self.device = device
        self.rounds = plan_rounds(config.method, config.stages)
        self.records: list[EpochRecord] = []
        self._texts: list[str] = []  # of the saved records
        self.dataset = load_dataset(config, moments)
        split = split_train(self.dataset.train, config.split_seed, config.validation_fraction)

        def batches(part: Any, augment: bool) -> Batches:
            return Batches(part, self.dataset, config.batch_size, device, augment=augment)

        self.weight_batches = batches(split.weights, True)
        self.alpha_batches = batches(split.alphas, True)
        self.validation_batches = batches(split.validation, False)
        # Each purpose has a generator, so the weights' images depend neither on the depth nor on the method: variants with the same
        # seed are pairs.
        self.generators = {
            purpose: torch.Generator(device).manual_seed(derive_seed(config.seed, purpose))
            for purpose in (
                "weight batches",
                "alpha batches",
                "skip dropout",
                "architectures",
                *["drop path"] * bool(config.remedies),
            )
        }
        self._start_stage(0, self._space(0))

    @property
    def stage(self) -> Stage:
        return self.rounds[self.stage_index]

    def epochs(self) -> Iterator[EpochRecord]:
        """Runs the search from its present state, a record after each epoch.

        Raises:
            FloatingPointError: a loss, a weight or an alpha is not finite; the message names the stage and the epoch.
            StageMemoryError: a stage finds too little memory, or would take more than `memory_limit`.
        """
        while True:
            if self.records and self.records[-1].stage == self.stage_index + 1 and self.records[-1].derived_epoch is not None:
                if self.stage_index + 1 == len(self.rounds):
                    return
                self._start_stage(self.stage_index + 1, self._space(self.stage_index + 1))
            try:
                with switched(self.config.execution, self.device):
                    record = self._run_epoch()
            except Exception as error:
                if is_out_of_memory(error):
                    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                    raise StageMemoryError(self.stage_index + 1, self._stage_bytes(), f"; {reason}") from error
                raise
            self.epoch += 1
            self.records.append(record)
            yield record

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next epoch depends on, and the records; loads with `torch.load(weights_only=True)`."""
        return {
            "config_id": config_id(self.config),
            "stage_index": self.stage_index,
            "epoch": self.epoch,
            "space": asdict(self.network.space),
            "network": self.network.state_dict(),
            "weight_optimizer": self.weight_optimizer.state_dict(),
            "alpha_optimizer": self.alpha_optimizer.state_dict(),
            "generators": {purpose: generator.get_state() for purpose, generator in self.generators.items()},
            "steps": self.steps.state_dict(),
            "records": self._records_as_text(),
            "left_out": sorted(self.dataset.left_out),
            "mean": list(self.dataset.mean),
            "std": list(self.dataset.std),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a saved state. Raises ValueError if it was saved by another configuration or normalisation."""
        if state["config_id"] != config_id(self.config):
            raise ValueError(f"the checkpoint is of configuration {state['config_id']}, this is {config_id(self.config)}")
        self.dataset.check_saved_moments(state)
        self._start_stage(state["stage_index"], SearchSpace(**state["space"]))
        self.epoch = state["epoch"]
        self.network.load_state_dict(state["network"])
        load_optimizer(self.weight_optimizer, state["weight_optimizer"])
        load_optimizer(self.alpha_optimizer, state["alpha_optimizer"])
        self.steps.load_state_dict(state.get("steps", {}))
        restore_generators(self.generators, state["generators"])
        self.records, self._texts = [_load_record(text) for text in state["records"]], []
        self.dataset.left_out.update(state["left_out"])

    def _records_as_text(self) -> list[str]:
        """A line of JSON each. Pickling their thousands of numbers would take as long as an epoch of a small search."""
        self._texts += [json.dumps(asdict(record)) for record in self.records[len(self._texts) :]]
        return list(self._texts)

    def _space(self, index: int) -> SearchSpace:
        """The operations of a round's network: all, those that the round before keeps, or those of a candidate."""
        if isinstance(self.config.method, RandomSearch):
            rng = random.Random(derive_seed(self.config.seed, f"candidate {index + 1}"))
            return genotype_space(random_genotype(rng, self.config.max_skips, space=self.config.start))
        keep = self.rounds[index].operations
        before = self.config.start if index == 0 else self.network.space
        if index == 0 or self.config.dropping == "random":
            rng = random.Random(derive_seed(self.config.seed, f"operations {index + 1}"))
            return SearchSpace(draw_operations(rng, before.normal, keep), draw_operations(rng, before.reduce, keep))
        last = self.records[-1]
        (derived,) = (r for r in self.records if (r.stage, r.epoch) == (last.stage, last.derived_epoch))
        normal, reduce = (tuple(derived.probabilities[cell]) for cell in CELLS)
        return SearchSpace(keep_choice(normal, prune(normal, keep)), keep_choice(reduce, prune(reduce, keep)))

    def _start_stage(self, index: int, space: SearchSpace) -> None:
        """Makes a new network with new weights and new alphas. Only the kept operations pass from stage to stage."""
        config = self.config
        self.stage_index, self.epoch, self.space = index, 0, space
        if config.memory_limit is not None and (needed := self._stage_bytes()) > config.memory_limit:
            raise MemoryLimitError(index + 1, needed, f", memory_limit is {config.memory_limit:,}")
        for last in ("network", "weight_optimizer", "alpha_optimizer", "steps"):
            self.__dict__.pop(last, None)
        give_back_freed_memory(self.device)  # of the last stage, so that each stage has its own peak
        shape = self.stage.cells, self.dataset.num_classes, self.dataset.in_channels
        self.network = build_network(config, space, *shape, derive_seed(config.seed, f"stage {index + 1}")).to(self.device)
        self.network.dropout_generator = self.generators["skip dropout"]
        self.network.path_generator = self.generators.get("drop path")
        if config.execution.compile:
            compile_cells(self.network.cells)
        self.weight_optimizer, self.alpha_optimizer = build_optimizers(config, self.network)
        self.steps = build_steps(
            config,
            self.stage,
            self.network,
            (self.weight_optimizer, self.alpha_optimizer),
            self.dataset.image_size,
            self.generators["architectures"],
        )

    def _stage_bytes(self) -> int:
        shape = self.dataset.image_size, self.dataset.num_classes, self.dataset.in_channels
        return predict_stage_bytes(self.config, self.stage, *shape, space=self.space, device=self.device)

    def _run_epoch(self) -> EpochRecord:
        started = time.perf_counter()
        reset_peak_bytes(self.device)
        both = self.epoch >= self.stage.warmup_epochs
        learning_rate = cosine_rate(self.config.learning_rate, self.epoch, self.stage.epochs)
        rate = skip_dropout(self.stage, self.epoch)
        set_rate(self.weight_optimizer, learning_rate)
        self.network.set_skip_dropout(rate)
        self.steps.start_epoch(self.epoch)
        train_loss, train_accuracy, images = self._train(both)
        trained = time.perf_counter() - started
        sampler = self.steps.sampler(derive_seed(self.config.seed, f"validation {self.stage_index} {self.epoch}"))
        validation_loss, validation_accuracy = evaluate(self.network, self.validation_batches, sampler)
        place = f"stage {self.stage_index + 1}, epoch {self.epoch}"
        for name, loss in (("training", train_loss), ("validation", validation_loss)):
            if not math.isfinite(loss):
                raise FloatingPointError(f"{place}: {name} loss is {loss}")
        tensor = first_not_finite(self.network.state_dict())  # no training loss comes after the last step
        if tensor is not None:
            raise FloatingPointError(f"{place}: {tensor} is not finite after the last step")
        measured, peak = time.perf_counter(), max(peak_bytes(self.device), self.steps.graphs.peak_bytes)
        choice = self._choice()
        genotype = choice.genotype(self.config.max_skips)
        diagnostics = self._diagnose(genotype, validation_accuracy)
        finished = time.perf_counter()
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
            seconds=measured - started,
            diagnostic_seconds=finished - measured,
            images_per_second=images / trained,
            peak_bytes=peak,
            finished=time.time(),
            **asdict(choice),
            **asdict(diagnostics),
            **self._cost(choice, genotype),
            derived_epoch=self._derived_epoch(both, choice, diagnostics.hessian_eigenvalue),
        )

    def _train(self, both: bool) -> tuple[float, float, int]:
        """One pass over the weights' images, in the phase for both with a step of the alphas before each of the weights.

        Returns the mean loss, the accuracy (fraction) and the number of images.
        """
        self.network.train()
        loss_sum = torch.zeros((), device=self.device)
        correct = torch.zeros((), device=self.device)
        images_seen = 0
        alpha_batches = self._alpha_stream() if both and self.steps.trains_alphas_apart else None
        for batch in self.weight_batches.epoch(self.generators["weight batches"]):
            loss, logits = self.steps.train(batch, next(alpha_batches) if alpha_batches else None, both)
            labels = batch[1]
            # Sums stay on the device, since reading a number after each step would stall a GPU.
            loss_sum += loss * len(labels)
            correct += (logits.argmax(dim=1) == labels).sum()
            images_seen += len(labels)
        return loss_sum.item() / images_seen, correct.item() / images_seen, images_seen

    def _alpha_stream(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from self.alpha_batches.epoch(self.generators["alpha batches"])

    def _choice(self) -> Choice:
        """The present architecture parameters, by name."""
        network = self.network
        spaces, alphas = (network.space.normal, network.space.reduce), (network.alphas_normal, network.alphas_reduce)
        by_name = {
            cell: [dict(zip(names, row, strict=False)) for names, row in zip(operations, values.tolist(), strict=True)]
            for cell, operations, values in zip(CELLS, spaces, alphas, strict=True)
        }
        edge_weights = None
        if isinstance(network, PartialSupernet):
            edge_weights = dict(zip(CELLS, (weights.tolist() for weights in network.edge_weights()), strict=True))
        weigh = sigmoid if network.independent else softmax
        return Choice(by_name, {cell: [weigh(edge) for edge in edges] for cell, edges in by_name.items()}, edge_weights)

    def _cost(self, choice: Choice, genotype: Genotype) -> dict[str, Any]:
        """The columns of the same names: what architectures cost by the present choice, and what the derived cells cost."""
        columns: dict[str, Any] = {}
        for name, column in (("params", "params"), ("macs", "macs"), ("latency", "latency_seconds")):
            if resource := self.steps.resources.get(name):
                expected = None if self.network.independent else resource.expected(choice.probabilities)
                columns |= {f"expected_{column}": expected, f"derived_{column}": resource.derived(genotype)}
        return columns

    def _diagnose(self, genotype: Genotype, validation_accuracy: float) -> Diagnostics:
        if isinstance(self.config.method, RandomSearch):  # no alphas, and the network is the derived one
            return Diagnostics(inherited_accuracy=validation_accuracy)
        epochs, every = self.epoch + 1, self.config.eigenvalue_every
        between = look_every(self.config, len(self.weight_batches), len(self.validation_batches))
        return diagnose(
            self.config,
            self.network,
            genotype,
            (self.weight_batches, self.alpha_batches, self.validation_batches),
            self.dataset.num_classes,
            self.dataset.in_channels,
            derive_seed(self.config.seed, f"diagnostics {self.stage_index} {self.epoch}"),
            # Counted back from the stage's last epoch, which always has one.
            look=epochs == self.stage.epochs or (epochs >= between and (self.stage.epochs - epochs) % between == 0),
            eigenvalue=every > 0 and epochs % every == 0,
        )

    def _derived_epoch(self, both: bool, choice: Choice, eigenvalue: float | None) -> int | None:
        """The epoch whose alphas count: at the end of a stage the last one, after an early stop one before."""
        limit = next((remedy.skips for remedy in self.config.remedies if isinstance(remedy, StopAtSkips)), None)
        if limit is not None and both and choice.genotype(2 * NUM_NODES).normal.skips >= limit:
            return max(0, self.epoch - 1)
        ratio = self.config.early_stop_ratio
        if ratio is not None and both and eigenvalue is not None:
            before = [r.hessian_eigenvalue for r in self.records if r.stage == self.stage_index + 1 and r.phase == "both"]
            if has_sharpened([*(value for value in before if value is not None), eigenvalue], ratio):
                return self.epoch - WINDOW
        return self.epoch if self.epoch + 1 == self.stage.epochs else None


def _load_record(text: str) -> EpochRecord:
    """A record of a checkpoint. In earlier releases `seconds` included the diagnostics."""
    record = json.loads(text)
    if "diagnostic_peak_bytes" not in record:
        record |= {"seconds": record["seconds"] - record["diagnostic_seconds"], "diagnostic_peak_bytes": None}
    return EpochRecord(**record)
