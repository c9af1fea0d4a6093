"""The stage loop of P-DARTS (paper, section 3): search, drop operations, grow deeper, search again.

A `Search` is an iterator of epoch records whose whole state can be saved after any epoch. A search that is resumed on the same
machine with the same number of threads gives the same bits as one that was never interrupted. How one step goes is the method's
business (`steps.py`); random search runs through the same loop, a network per candidate in place of one per stage.
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
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.config.serialize import config_id, derive_seed
from pdarts_tune.data.batches import Batches
from pdarts_tune.data.datasets import load_dataset
from pdarts_tune.data.normalisation import Moments
from pdarts_tune.data.splits import split_train
from pdarts_tune.networks.build import build_network, build_optimizers
from pdarts_tune.networks.cost import peak_bytes, predict_stage_bytes, reset_peak_bytes
from pdarts_tune.networks.operations import first_not_finite
from pdarts_tune.networks.partial_channels import PartialSupernet
from pdarts_tune.networks.runtime import check_limit, compile_cells, give_back_freed_memory, is_out_of_memory, stage_error, switched
from pdarts_tune.pdarts.approximation import draw_operations, keep_choice, prune
from pdarts_tune.pdarts.genotype import random_genotype, softmax
from pdarts_tune.pdarts.progressive_depth import Stage, cosine_rate
from pdarts_tune.pdarts.regularization import skip_dropout
from pdarts_tune.pdarts.space import SearchSpace
from pdarts_tune.search.diagnostics import WINDOW, Examination, evaluate, examine, has_sharpened, look_every, only
from pdarts_tune.search.records import CELLS, Choice, EpochRecord
from pdarts_tune.search.steps import build_steps


class Search:
    """One search, by any method but random sampling (which trains nothing).

    `moments` are what images are normalised with; None: those of a new run.

    Raises:
        ConfigError: the data set is unknown, unreadable or too small.
    """

    def __init__(self, config: SearchConfig, device: torch.device, moments: Moments | None = None) -> None:
        self.config = config
        self.device = device
        self.rounds = plan_rounds(config.method, config.stages)
        self.records: list[EpochRecord] = []
        self._texts: list[str] = []  # of the records, as far as they were saved
        self.dataset = load_dataset(config, moments)
        split = split_train(self.dataset.train, config.split_seed, config.validation_fraction)

        def batches(part: Any, augment: bool) -> Batches:
            return Batches(part, self.dataset, config.batch_size, device, augment=augment)

        self.weight_batches = batches(split.weights, True)
        self.alpha_batches = batches(split.alphas, True)
        self.validation_batches = batches(split.validation, False)
        # One generator for each purpose: the images that weights see in a given epoch do not depend on the network's depth, on the
        # method or on whether alphas train, so that variants with the same seed can be compared as pairs.
        self.generators = {
            purpose: torch.Generator(device).manual_seed(derive_seed(config.seed, purpose))
            for purpose in ("weight batches", "alpha batches", "skip dropout", "architectures")
        }
        self._start_stage(0, self._space(0))

    @property
    def stage(self) -> Stage:
        return self.rounds[self.stage_index]

    def epochs(self) -> Iterator[EpochRecord]:
        """Runs the search from where it is, a record after each epoch.

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
                    raise stage_error(self.stage_index + 1, self._stage_bytes(), error) from error
                raise
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
        self.weight_optimizer.load_state_dict(state["weight_optimizer"])
        self.alpha_optimizer.load_state_dict(state["alpha_optimizer"])
        for purpose, generator in self.generators.items():
            generator.set_state(state["generators"][purpose].cpu())
        # Older checkpoints hold them as dicts.
        records = [json.loads(record) if isinstance(record, str) else record for record in state["records"]]
        self.records, self._texts = [EpochRecord(**_of_training_alone(record)) for record in records], []
        self.dataset.left_out.update(state["left_out"])

    def _records_as_text(self) -> list[str]:
        """A line of JSON each: pickled, their thousands of numbers would take as long as an epoch of a small search."""
        self._texts += [json.dumps(asdict(record)) for record in self.records[len(self._texts) :]]
        return list(self._texts)

    def _space(self, index: int) -> SearchSpace:
        """What a round's network offers: everything, what is left of the round before, or one candidate's operations."""
        if isinstance(self.config.method, RandomSearch):
            rng = random.Random(derive_seed(self.config.seed, f"candidate {index + 1}"))
            return only(random_genotype(rng, self.config.max_skips))
        keep = self.rounds[index].operations
        before = SearchSpace.full() if index == 0 else self.network.space
        if index == 0 or self.config.dropping == "random":
            rng = random.Random(derive_seed(self.config.seed, f"operations {index + 1}"))
            return SearchSpace(draw_operations(rng, before.normal, keep), draw_operations(rng, before.reduce, keep))
        last = self.records[-1]
        (kept,) = (r for r in self.records if (r.stage, r.epoch) == (last.stage, last.derived_epoch))
        normal, reduce = (tuple(kept.probabilities[cell]) for cell in CELLS)
        return SearchSpace(keep_choice(normal, prune(normal, keep)), keep_choice(reduce, prune(reduce, keep)))

    def _start_stage(self, index: int, space: SearchSpace) -> None:
        """A new network with new weights and new alphas: nothing but the kept operations passes from stage to stage."""
        config = self.config
        self.stage_index, self.epoch, self.space = index, 0, space
        if config.memory_limit is not None:
            check_limit(index + 1, self._stage_bytes(), config.memory_limit)
        shape = self.stage.cells, self.dataset.num_classes, self.dataset.in_channels
        self.network = build_network(config, space, *shape, derive_seed(config.seed, f"stage {index + 1}")).to(self.device)
        self.network.dropout_generator = self.generators["skip dropout"]
        if config.execution.compile:
            compile_cells(self.network)
        self.weight_optimizer, self.alpha_optimizer = build_optimizers(config, self.network)
        self.steps = build_steps(
            config,
            self.stage,
            self.network,
            (self.weight_optimizer, self.alpha_optimizer),
            self.dataset.image_size,
            self.generators["architectures"],
        )
        if self.device.type == "cpu":
            give_back_freed_memory()  # of the stage before, whose network is gone: each stage's peak is its own

    def _stage_bytes(self) -> int:
        shape = self.dataset.image_size, self.dataset.num_classes, self.dataset.in_channels
        return predict_stage_bytes(self.config, self.stage, *shape, space=self.space)

    def _run_epoch(self) -> EpochRecord:
        started = time.perf_counter()
        reset_peak_bytes(self.device)
        both = self.epoch >= self.stage.warmup_epochs
        learning_rate = cosine_rate(self.config.learning_rate, self.epoch, self.stage.epochs)
        rate = skip_dropout(self.stage, self.epoch)
        for group in self.weight_optimizer.param_groups:
            group["lr"] = learning_rate
        self.network.set_skip_dropout(rate)
        self.steps.start_epoch(self.epoch)
        train_loss, train_accuracy, images = self._train(both)
        trained = time.perf_counter() - started
        sampler = self.steps.sampler(derive_seed(self.config.seed, f"validation {self.stage_index} {self.epoch}"))
        validation_loss, validation_accuracy = evaluate(self.network, self.validation_batches, sampler)
        for name, loss in (("training", train_loss), ("validation", validation_loss)):
            if not math.isfinite(loss):
                raise FloatingPointError(f"stage {self.stage_index + 1}, epoch {self.epoch}: {name} loss is {loss}")
        wrong = first_not_finite(self.network.state_dict())  # what the last step did no training loss of this epoch has seen
        if wrong is not None:
            raise FloatingPointError(f"stage {self.stage_index + 1}, epoch {self.epoch}: {wrong} is not finite after the last step")
        measured, peak = time.perf_counter(), peak_bytes(self.device)
        alphas = dict(zip(CELLS, self._alphas_by_name(), strict=True))
        probabilities = {cell: [softmax(edge) for edge in edges] for cell, edges in alphas.items()}
        choice = Choice(alphas, probabilities, self._edge_weights())
        examination = self._examine(choice, validation_accuracy)
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
            **asdict(examination),
            derived_epoch=self._derived_epoch(both, examination.hessian_eigenvalue),
        )

    def _train(self, both: bool) -> tuple[float, float, int]:
        """One pass over the weights' half; before each weight step, in the phase for both, one alpha step."""
        self.network.train()
        loss_sum = torch.zeros((), device=self.device)
        correct = torch.zeros((), device=self.device)
        images_seen = 0
        alpha_batches = self._alpha_stream() if both and self.steps.trains_alphas_apart else None
        for batch in self.weight_batches.epoch(self.generators["weight batches"]):
            if alpha_batches is not None:
                self.steps.train_alphas(next(alpha_batches), batch)
            loss, logits = self.steps.train_weights(batch, both)
            labels = batch[1]
            # Summed on the device: reading a number back after each step would stall a GPU.
            loss_sum += loss * len(labels)
            correct += (logits.argmax(dim=1) == labels).sum()
            images_seen += len(labels)
        return loss_sum.item() / images_seen, correct.item() / images_seen, images_seen

    def _alpha_stream(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from self.alpha_batches.epoch(self.generators["alpha batches"])

    def _examine(self, choice: Choice, validation_accuracy: float) -> Examination:
        if isinstance(self.config.method, RandomSearch):  # no alphas, and the network is the derived one
            return Examination(inherited_accuracy=validation_accuracy)
        done, every = self.epoch + 1, self.config.eigenvalue_every
        between = look_every(self.config, len(self.weight_batches), len(self.validation_batches))
        return examine(
            self.config,
            self.network,
            choice.genotype(self.config.max_skips),
            (self.weight_batches, self.alpha_batches, self.validation_batches),
            self.dataset.num_classes,
            self.dataset.in_channels,
            derive_seed(self.config.seed, f"diagnostics {self.stage_index} {self.epoch}"),
            # Counted back from the stage's last epoch, which is always looked at.
            look=done == self.stage.epochs or (done >= between and (self.stage.epochs - done) % between == 0),
            eigenvalue=every > 0 and done % every == 0,
        )

    def _derived_epoch(self, both: bool, eigenvalue: float | None) -> int | None:
        """At the end of a stage, the epoch whose alphas count: the last one, or after an early stop the one before the rise."""
        ratio = self.config.early_stop_ratio
        if ratio is not None and both and eigenvalue is not None:
            here = [r for r in self.records if r.stage == self.stage_index + 1 and r.phase == "both"]
            known = [r.hessian_eigenvalue for r in here if r.hessian_eigenvalue is not None]
            if has_sharpened([*known, eigenvalue], ratio):
                return self.epoch - WINDOW
        return self.epoch if self.epoch + 1 == self.stage.epochs else None

    def _alphas_by_name(self) -> Iterator[list[dict[str, float]]]:
        spaces = (self.network.space.normal, self.network.space.reduce)
        for operations, alphas in zip(spaces, (self.network.alphas_normal, self.network.alphas_reduce), strict=True):
            rows = alphas.detach().tolist()
            yield [dict(zip(names, row, strict=False)) for names, row in zip(operations, rows, strict=True)]

    def _edge_weights(self) -> dict[str, list[float]] | None:
        if not isinstance(self.network, PartialSupernet):
            return None
        return dict(zip(CELLS, (weights.tolist() for weights in self.network.edge_weights()), strict=True))


def _of_training_alone(record: dict[str, Any]) -> dict[str, Any]:
    """A record of a release whose seconds held the diagnostics, as this one has them."""
    if "diagnostic_peak_bytes" in record:
        return record
    return record | {"seconds": record["seconds"] - record["diagnostic_seconds"], "diagnostic_peak_bytes": None}
