"""The step of each search method: how weights and alphas train on a batch.

The stage loop calls `train_alphas` and `train_weights` without knowing the method. `Alternating` serves P-DARTS, DARTS' first
order, PC-DARTS and random search; `Remedied` adds remedies against collapse, `Unrolled` serves DARTS' second order, `Sampled` SNAS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pdarts_tune.config.execution import allows_graphs
from pdarts_tune.config.methods import FirstOrder, SecondOrder, Snas
from pdarts_tune.config.remedies import (
    AuxiliarySkip,
    BetaDecay,
    DropPath,
    FrozenOperations,
    IndependentWeights,
    PerturbedAlphas,
)
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.networks.build import clip_gradients, in_one_call
from pdarts_tune.networks.graphs import Number, StepGraphs
from pdarts_tune.networks.operations import frozen_statistics
from pdarts_tune.networks.supernet import Mixing, Supernet
from pdarts_tune.pdarts.progressive_depth import Stage
from pdarts_tune.search.remedies import Freezer, alpha_decay, attack, disturb, scheduled, zero_one_loss
from pdarts_tune.search.resources import count_resources, expected_cost, penalty_of, relative_costs

Batch = tuple[Tensor, Tensor]  # images, labels
Loss = Callable[[], Tensor]  # the same function at each call: same images, same dropout masks


def build_steps(
    config: SearchConfig,
    stage: Stage,
    network: Supernet,
    optimizers: tuple[torch.optim.Optimizer, torch.optim.Optimizer],
    image_size: int,
    generator: torch.Generator,
) -> Alternating:
    """The steps of the configuration's method.

    Args:
        optimizers: of weights and of alphas.
        image_size: side of the images, in pixels.
        generator: draws architectures, and what remedies draw.
    """
    kinds = {SecondOrder: Unrolled, Snas: Sampled, FirstOrder: Remedied if config.remedies else Alternating}
    return kinds.get(type(config.method), Alternating)(config, stage, network, optimizers, image_size, generator)


class Alternating:
    """Weights and alphas take turns, each step with the other group fixed."""

    trains_alphas_apart = True  # on images of their own, before each step of the weights

    def __init__(
        self,
        config: SearchConfig,
        stage: Stage,
        network: Supernet,
        optimizers: tuple[torch.optim.Optimizer, torch.optim.Optimizer],
        image_size: int,
        generator: torch.Generator,
    ) -> None:
        self.config = config
        self.stage = stage
        self.network = network
        self.generator = generator
        self.weight_optimizer, self.alpha_optimizer = optimizers
        self.weights = network.weight_parameters()
        self.alphas = network.arch_parameters()
        self.resources = count_resources(network, image_size, config.start, config.penalty.latencies)
        self.penalty_weight, names = penalty_of(config)
        self.costs = relative_costs([self.resources[name] for name in names], network)
        self.graphs = StepGraphs(
            network.alphas_normal.device,
            config.batch_size,
            (network.dropout_generator, None if self.trains_alphas_apart else generator),  # SNAS draws in each step
            self.weight_optimizer,
            allows_graphs(config.execution, config.method, config.remedies),
        )

    def start_epoch(self, epoch: int) -> None:
        """Called before the steps of an epoch, counted from 0 in its stage."""

    def state_dict(self) -> dict[str, Any]:
        """What the next step depends on beside network, optimizers and generators."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes what `state_dict` gave."""

    def sampler(self, seed: int) -> Callable[[], Mixing] | None:  # noqa: ARG002
        """Draws mixing weights for a batch of validation; None: they are the softmax of the alphas."""
        return None

    def train(self, batch: Batch, alpha_batch: Batch | None, both: bool) -> tuple[Tensor, Tensor]:
        """A step of the alphas, if they have a batch of their own, then one of the weights, as one graph where there are graphs.

        Returns the loss (scalar) and the logits before the weights' step; they hold until the next step. `both`: alphas train in
        this epoch.
        """

        def step(images: Tensor, labels: Tensor, *of_alphas: Tensor) -> tuple[Tensor, Tensor]:
            if of_alphas:
                self.train_alphas((of_alphas[0], of_alphas[1]), (images, labels))
            return self.train_weights((images, labels), both)

        loss, logits = self.graphs.run((both, self.network.skip_dropout > 0), step, *batch, *(alpha_batch or ()))
        return loss, logits

    def train_alphas(self, batch: Batch, weight_batch: Batch) -> None:  # noqa: ARG002
        """One step of the alphas on their own images. `weight_batch` is the weights' next one."""
        self._step(batch, self.alpha_optimizer, self.alphas, self.weights, penalty=self._penalty)

    def _penalty(self) -> Tensor | float:
        """What the alphas' loss has beside the cross-entropy: the weighted expected cost (`search/resources.py`)."""
        if not self.penalty_weight:
            return 0.0
        return self.penalty_weight * expected_cost(self.network.operation_weights(), self.costs)

    def train_weights(self, batch: Batch, both: bool) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """One step of the weights, and the loss (scalar) and logits before it. `both`: alphas train in this epoch."""
        return self._step(batch, self.weight_optimizer, self.weights, self.alphas)

    def _step(
        self,
        batch: Batch,
        optimizer: torch.optim.Optimizer,
        trained: list[nn.Parameter],
        fixed: list[nn.Parameter],
        mixing: Mixing | None = None,
        penalty: Callable[[], Tensor | float] = float,
    ) -> tuple[Tensor, Tensor]:
        """A step down the cross-entropy and a penalty; the loss returned is the cross-entropy alone."""
        images, labels = batch
        require_gradients(trained, True)
        require_gradients(fixed, False)  # no work is spent on them
        optimizer.zero_grad()
        logits = self.network(images, mixing)
        loss = cross_entropy(logits, labels)
        (loss + penalty()).backward()
        clip_gradients(trained, self.config.gradient_clip)
        optimizer.step()
        return loss.detach(), logits.detach()


class Remedied(Alternating):
    """First order with remedies against collapse (`config/remedies.py`)."""

    def __init__(self, config: SearchConfig, stage: Stage, network: Supernet, *further: Any) -> None:
        super().__init__(config, stage, network, *further)
        self.epoch = 0
        self.perturbed = next((r for r in config.remedies if isinstance(r, PerturbedAlphas)), None)
        frozen = next((r for r in config.remedies if isinstance(r, FrozenOperations)), None)
        self.freezer = None if frozen is None else Freezer(network, frozen)
        self.of_alphas: list[Tensor] = []  # the weights' gradients on the alphas' batch, in this step

    def _scheduled(self, remedy: AuxiliarySkip | BetaDecay | PerturbedAlphas) -> float:
        return scheduled(remedy.start, remedy.end, self.epoch, self.stage.epochs)

    def start_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        for remedy in self.config.remedies:
            if isinstance(remedy, AuxiliarySkip):
                self.network.auxiliary_weight = self._scheduled(remedy)
            elif isinstance(remedy, DropPath):
                self.network.drop_path = scheduled(0.0, remedy.rate, epoch, self.stage.epochs)

    def train_alphas(self, batch: Batch, weight_batch: Batch) -> None:  # noqa: ARG002
        watched = [] if self.freezer is None else self.freezer.training()
        if watched:
            require_gradients(self.weights, True)
            self.weight_optimizer.zero_grad()
        self._step(batch, self.alpha_optimizer, self.alphas, [] if watched else self.weights, penalty=self._penalty)
        self.of_alphas = [gradient_of(weight) for weight in watched]

    def _penalty(self) -> Tensor | float:
        penalty = super()._penalty()
        for remedy in self.config.remedies:
            if isinstance(remedy, BetaDecay):
                penalty = penalty + self._scheduled(remedy) * alpha_decay(self.network)
            elif isinstance(remedy, IndependentWeights):
                penalty = penalty + remedy.zero_one * zero_one_loss(self.network)
        return penalty

    def train_weights(self, batch: Batch, both: bool) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        mixing = None if self.perturbed is None else self.network.with_auxiliary(self._disturbed(batch, self.perturbed))
        results = self._step(batch, self.weight_optimizer, self.weights, self.alphas, mixing)
        if self.freezer is not None and self.of_alphas:
            # Clipping scales all gradients alike, which leaves their cosines as they are.
            if self.freezer.observe(self.of_alphas, [gradient_of(weight) for weight in self.freezer.training()]):
                self._freeze()
            self.of_alphas = []
        return results

    def _disturbed(self, batch: Batch, remedy: PerturbedAlphas) -> Mixing:
        distance = self._scheduled(remedy)
        if remedy.attack == "random":
            return disturb(self.network, distance, self.generator)
        require_gradients(self.weights, False)
        generators = [g for g in (self.network.dropout_generator, self.network.path_generator) if g is not None]
        states = [generator.get_state() for generator in generators]

        def rewind() -> None:
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)

        def loss(weights: Mixing) -> Tensor:
            rewind()  # the same masks at each call
            return cross_entropy(self.network(batch[0], self.network.with_auxiliary(weights)), batch[1])

        with frozen_statistics(self.network):
            weights = attack(self.network, loss, distance, remedy.ascents, self.generator)
        rewind()  # and in the step
        return weights

    def _freeze(self) -> None:
        assert self.freezer is not None
        operations = {weight for weights in self.freezer.operations.values() for weight in weights}
        stopped = operations - set(self.freezer.training())
        for weight in stopped:
            weight.grad = None  # the optimizer skips it, decay and momentum too
            weight.requires_grad_(False)
        self.weights = [weight for weight in self.weights if weight not in stopped]

    def state_dict(self) -> dict[str, Any]:
        return {} if self.freezer is None else self.freezer.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self.freezer is not None:
            self.freezer.load_state_dict(state)
            self._freeze()


def gradient_of(weight: nn.Parameter) -> Tensor:
    """The gradient that a backward pass left; zeros if the loss does not depend on the weight."""
    return torch.zeros_like(weight) if weight.grad is None else weight.grad


class Unrolled(Alternating):
    """DARTS' second order. A step of the alphas takes four passes forward and back, where first order takes one."""

    def train_alphas(self, batch: Batch, weight_batch: Batch) -> None:
        assert isinstance(self.config.method, SecondOrder)
        require_gradients(self.weights, True)
        require_gradients(self.alphas, True)
        generator = self.network.dropout_generator
        assert generator is not None
        before = after = generator.get_state()

        def train_loss() -> Tensor:
            generator.set_state(before)  # the same masks at each call
            return cross_entropy(self.network(weight_batch[0]), weight_batch[1])

        def validation_loss() -> Tensor:
            nonlocal after
            loss = cross_entropy(self.network(batch[0]), batch[1])
            after = generator.get_state()
            return loss + self._penalty()

        with frozen_statistics(self.network):
            gradients = unrolled_gradient(
                train_loss,
                validation_loss,
                self.weights,
                self.alphas,
                self._update,
                self.weight_optimizer.param_groups[0]["lr"],
                self.config.method.finite_difference,
            )
        generator.set_state(after)
        for parameter, gradient in zip(self.alphas, gradients, strict=True):
            parameter.grad = gradient
        clip_gradients(self.alphas, self.config.gradient_clip)
        self.alpha_optimizer.step()

    def _update(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """The step that momentum and weight decay make of a gradient (PyTorch's SGD)."""
        (group,) = self.weight_optimizer.param_groups
        weights = [weight.detach() for weight in self.weights]
        steps = torch._foreach_add(tuple(gradients), torch._foreach_mul(weights, group["weight_decay"]))
        buffers = [self.weight_optimizer.state[weight].get("momentum_buffer") for weight in self.weights]
        if None not in buffers:  # before the first step there are none
            torch._foreach_add_(steps, torch._foreach_mul(buffers, group["momentum"]))
        return list(steps)


def unrolled_gradient(
    train_loss: Loss,
    validation_loss: Loss,
    weights: Sequence[nn.Parameter],
    alphas: Sequence[nn.Parameter],
    update: Callable[[Sequence[Tensor]], Sequence[Tensor]],
    learning_rate: float,
    distance: float,
) -> list[Tensor]:
    """The alphas' gradient of the validation loss after one training step of the weights (Liu et al., 2019, equation 7).

    Args:
        update: the weights' optimizer without its learning rate: from gradients to steps, a tensor for each weight.
        learning_rate: of the weights' step, xi in the paper.
        distance: see `mixed_product`.

    Returns:
        A tensor for each of the alphas. The weights are as before.
    """
    saved = _copies(weights)
    steps = update(torch.autograd.grad(train_loss(), list(weights)))
    _assign(weights, torch._foreach_sub(saved, torch._foreach_mul(tuple(steps), learning_rate)))
    gradients = torch.autograd.grad(validation_loss(), [*alphas, *weights])
    at_alphas, at_weights = gradients[: len(alphas)], gradients[len(alphas) :]
    _assign(weights, saved)
    products = mixed_product(train_loss, weights, alphas, at_weights, distance)
    return [direct - learning_rate * product for direct, product in zip(at_alphas, products, strict=True)]


def mixed_product(
    loss: Loss, weights: Sequence[nn.Parameter], alphas: Sequence[nn.Parameter], vector: Sequence[Tensor], distance: float
) -> list[Tensor]:
    """The second derivative of the loss by alphas and weights, times a vector shaped like the weights (equation 8).

    It is a central difference of the alphas' gradient: weights move by `distance` to either side along the vector, and come back to
    the same bits. It takes first derivatives only, so any evaluation of the network will do. Returns a tensor per alpha tensor.

    On smooth networks the error is below 1e-4 at the paper's distance, 0.01. A search network is not smooth: the alphas' gradient
    jumps where a ReLU changes its sign. On new networks of the laptop preset (8 operations, batch 64), at 0.01, the cosine with the
    exact product is 0.3 and the error four to five times its norm. Smaller distances are worse, in float64 as well.
    """
    saved = _copies(weights)
    norm = nn.utils.get_total_norm(vector, foreach=in_one_call(weights))
    step = distance / norm.clamp_min(torch.finfo(norm.dtype).tiny)  # the product with zeros is zero, and not 0 / 0
    sides = []
    for sign in (1, -1):
        _assign(weights, torch._foreach_add(saved, torch._foreach_mul(tuple(vector), sign * step)))
        sides.append(torch.autograd.grad(loss(), list(alphas)))
    _assign(weights, saved)
    return [(above - below) / (2 * step) for above, below in zip(*sides, strict=True)]


def _copies(weights: Sequence[nn.Parameter]) -> tuple[Tensor, ...]:
    """Copies of all weights, made in one call."""
    return torch._foreach_mul([weight.detach() for weight in weights], 1.0)


def _assign(weights: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        torch._foreach_copy_(tuple(weights), tuple(values))


def temperature(method: Snas, stage: Stage, epoch: int) -> float:
    """The temperature of an epoch (from 0): constant while alphas are frozen, then it falls geometrically."""
    falls = stage.epochs - stage.warmup_epochs - 1
    if epoch < stage.warmup_epochs or falls < 1:
        return method.temperature
    progress = (epoch - stage.warmup_epochs) / falls
    return float(method.temperature * (method.final_temperature / method.temperature) ** progress)


def sample_choice(alphas: Tensor, kept: Tensor, temperature: float | Tensor, generator: torch.Generator) -> Tensor:
    """A draw from the concrete distribution per row: shaped like the alphas, rows sum to 1, zero where not `kept`."""
    exponential = torch.empty_like(alphas, requires_grad=False).exponential_(generator=generator)
    # -log of an exponential variable is a Gumbel variable; of a draw that rounds to 0 it would be infinite.
    gumbel = -exponential.clamp_min(torch.finfo(alphas.dtype).tiny).log()
    return ((alphas + gumbel) / temperature).masked_fill(~kept, -torch.inf).softmax(dim=-1)


def sample_mixing(network: Supernet, temperature: float | Tensor, generator: torch.Generator) -> Mixing:
    """Mixing weights of one sampled architecture, through which the alphas get their gradient."""
    normal = sample_choice(network.alphas_normal, network.kept_normal, temperature, generator)
    reduce = sample_choice(network.alphas_reduce, network.kept_reduce, temperature, generator)
    return normal, reduce


class Sampled(Alternating):
    """SNAS: each step samples an architecture, and weights and alphas descend the same loss on the same images (Xie et al., 2019).

    An edge's choice of operation is softmax((alpha + G) / temperature) with G from the Gumbel distribution (section 2.2). All cells
    of a type share a draw. At temperature 0 the choice is one-hot, operation o with probability softmax(alpha)[o].
    """

    trains_alphas_apart = False

    def __init__(self, config: SearchConfig, *further: Any) -> None:
        super().__init__(config, *further)
        assert isinstance(config.method, Snas)
        self.method = config.method
        self.temperature = Number(self.method.temperature)

    def start_epoch(self, epoch: int) -> None:
        self.temperature.set(temperature(self.method, self.stage, epoch))

    def sampler(self, seed: int) -> Callable[[], Mixing] | None:
        """Samples architectures at this epoch's temperature, since the weights train in such and not in their average."""
        generator = torch.Generator(self.generator.device).manual_seed(seed)
        return lambda: self._sample(generator)

    def _sample(self, generator: torch.Generator) -> Mixing:
        return sample_mixing(self.network, self.temperature.on(self.network.alphas_normal.device), generator)

    def train_weights(self, batch: Batch, both: bool) -> tuple[Tensor, Tensor]:
        images, labels = batch
        require_gradients(self.weights, True)
        require_gradients(self.alphas, both)
        self.weight_optimizer.zero_grad()
        self.alpha_optimizer.zero_grad()
        logits = self.network(images, self._sample(self.generator))
        loss = cross_entropy(logits, labels)
        (loss + self._penalty() if both else loss).backward()
        clip_gradients(self.weights, self.config.gradient_clip)
        self.weight_optimizer.step()
        if both:
            clip_gradients(self.alphas, self.config.gradient_clip)
            self.alpha_optimizer.step()
        return loss.detach(), logits.detach()


def require_gradients(parameters: Sequence[nn.Parameter], on: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad_(on)
