"""What a search method brings to the stage loop: how one step of weights and alphas goes.

The loop calls `train_alphas` and `train_weights` and need not know which method it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pdarts_tune.config import SearchConfig
from pdarts_tune.methods import SecondOrder, Snas
from pdarts_tune.search_network import clip_gradients
from pdarts_tune.snas import PENALTY_WEIGHTS, expected_cost, relative_costs, sample_mixing, temperature
from pdarts_tune.stages import Stage
from pdarts_tune.supernet import Mixing, Supernet
from pdarts_tune.unrolled import frozen_statistics, unrolled_gradient

Batch = tuple[Tensor, Tensor]  # images, labels


class Alternating:
    """Weights and alphas take turns, each step with the other group fixed: P-DARTS, DARTS' first order, PC-DARTS."""

    trains_alphas_apart = True  # on images of their own, before each step of the weights

    def __init__(
        self, network: Supernet, weight_optimizer: torch.optim.Optimizer, alpha_optimizer: torch.optim.Optimizer, clip: float
    ) -> None:
        self.network = network
        self.weight_optimizer = weight_optimizer
        self.alpha_optimizer = alpha_optimizer
        self.clip = clip  # largest norm of a gradient, for weights and for alphas
        self.weights = network.weight_parameters()
        self.alphas = network.arch_parameters()

    def start_epoch(self, epoch: int) -> None:
        """Called before the steps of an epoch, counted from 0 in its stage."""

    def sampler(self, seed: int) -> Callable[[], Mixing] | None:  # noqa: ARG002
        """What draws the mixing weights that the network is validated with; None: they are the softmax of the alphas."""
        return None

    def train_alphas(self, batch: Batch, weight_batch: Batch) -> None:  # noqa: ARG002
        """One step of the alphas on their own images; `weight_batch` is what the weights train on next."""
        self._step(batch, self.alpha_optimizer, self.alphas, self.weights)

    def train_weights(self, batch: Batch, both: bool) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """One step of the weights; `both` where alphas train in this epoch. Returns the loss (scalar) and the logits."""
        return self._step(batch, self.weight_optimizer, self.weights, self.alphas)

    def _step(
        self, batch: Batch, optimizer: torch.optim.Optimizer, trained: list[nn.Parameter], fixed: list[nn.Parameter]
    ) -> tuple[Tensor, Tensor]:
        images, labels = batch
        require_gradients(trained, True)
        require_gradients(fixed, False)  # no work is spent on them
        optimizer.zero_grad()
        logits = self.network(images)
        loss = cross_entropy(logits, labels)
        loss.backward()
        clip_gradients(trained, self.clip)
        optimizer.step()
        return loss.detach(), logits.detach()


class Unrolled(Alternating):
    """DARTS' second order. An alpha step takes four passes forward and back through the network where first order takes one."""

    def __init__(
        self,
        network: Supernet,
        weight_optimizer: torch.optim.Optimizer,
        alpha_optimizer: torch.optim.Optimizer,
        clip: float,
        method: SecondOrder,
    ) -> None:
        super().__init__(network, weight_optimizer, alpha_optimizer, clip)
        self.method = method

    def train_alphas(self, batch: Batch, weight_batch: Batch) -> None:
        require_gradients(self.weights, True)
        require_gradients(self.alphas, True)
        generator = self.network.dropout_generator
        assert generator is not None
        before = after = generator.get_state()

        def train_loss() -> Tensor:
            generator.set_state(before)  # the same masks at each call: else their noise would be divided by the small step
            return cross_entropy(self.network(weight_batch[0]), weight_batch[1])

        def validation_loss() -> Tensor:
            nonlocal after
            loss = cross_entropy(self.network(batch[0]), batch[1])
            after = generator.get_state()
            return loss

        with frozen_statistics(self.network):
            gradients = unrolled_gradient(
                train_loss,
                validation_loss,
                self.weights,
                self.alphas,
                self._update,
                self.weight_optimizer.param_groups[0]["lr"],
                self.method.finite_difference,
            )
        generator.set_state(after)
        for parameter, gradient in zip(self.alphas, gradients, strict=True):
            parameter.grad = gradient
        clip_gradients(self.alphas, self.clip)
        self.alpha_optimizer.step()

    def _update(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """What momentum and weight decay make of a gradient (PyTorch's SGD)."""
        (group,) = self.weight_optimizer.param_groups
        steps = []
        for weight, gradient in zip(self.weights, gradients, strict=True):
            step = gradient + group["weight_decay"] * weight.detach()
            buffer = self.weight_optimizer.state[weight].get("momentum_buffer")
            steps.append(step if buffer is None else step + group["momentum"] * buffer)
        return steps


class Sampled(Alternating):
    """SNAS: a step samples an architecture, and weights and alphas descend the same loss on the same images."""

    trains_alphas_apart = False

    def __init__(
        self,
        network: Supernet,
        weight_optimizer: torch.optim.Optimizer,
        alpha_optimizer: torch.optim.Optimizer,
        clip: float,
        method: Snas,
        stage: Stage,
        image_size: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__(network, weight_optimizer, alpha_optimizer, clip)
        self.method = method
        self.stage = stage
        self.generator = generator
        self.temperature = method.temperature
        self.penalty = PENALTY_WEIGHTS[method.penalty]
        self.costs = relative_costs(network, image_size)

    def start_epoch(self, epoch: int) -> None:
        self.temperature = temperature(self.method, self.stage, epoch)

    def sampler(self, seed: int) -> Callable[[], Mixing] | None:
        """Architectures sampled at this epoch's temperature: the weights were trained in such, and in no average of them."""
        generator = torch.Generator(self.generator.device).manual_seed(seed)
        return lambda: sample_mixing(self.network, self.temperature, generator)

    def train_weights(self, batch: Batch, both: bool) -> tuple[Tensor, Tensor]:
        images, labels = batch
        require_gradients(self.weights, True)
        require_gradients(self.alphas, both)
        self.weight_optimizer.zero_grad()
        self.alpha_optimizer.zero_grad()
        logits = self.network(images, sample_mixing(self.network, self.temperature, self.generator))
        loss = cross_entropy(logits, labels)
        total = loss
        if both and self.penalty:
            total = loss + self.penalty * expected_cost(self.network.mixing(), self.costs)
        total.backward()
        clip_gradients(self.weights, self.clip)
        self.weight_optimizer.step()
        if both:
            clip_gradients(self.alphas, self.clip)
            self.alpha_optimizer.step()
        return loss.detach(), logits.detach()


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
        generator: of sampled architectures.
    """
    method, (weight_optimizer, alpha_optimizer) = config.method, optimizers
    clip = config.gradient_clip
    if isinstance(method, SecondOrder):
        return Unrolled(network, weight_optimizer, alpha_optimizer, clip, method)
    if isinstance(method, Snas):
        return Sampled(network, weight_optimizer, alpha_optimizer, clip, method, stage, image_size, generator)
    return Alternating(network, weight_optimizer, alpha_optimizer, clip)


def require_gradients(parameters: Sequence[nn.Parameter], on: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad_(on)
