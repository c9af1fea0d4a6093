"""The formulas of the remedies in `config/remedies.py`; `search/steps.py` has the step that uses them.

The auxiliary skip-connect, independent weights and drop path are parts of the network (`networks/supernet.py`), the stop at
skip-connects is one of the stage loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pdarts_tune.config.remedies import FrozenOperations
from pdarts_tune.networks.supernet import Cell, Mixing, Supernet

HALVINGS = 40  # of the interval of a projection's shift: to the last bit of a float32


def scheduled(start: float, end: float, epoch: int, epochs: int) -> float:
    """The value in `epoch`, counted from 0: linear from `start` in a stage's first epoch to `end` in its last one."""
    return start + (end - start) * epoch / max(1, epochs - 1)


def alpha_decay(network: Supernet) -> Tensor:
    """The mean over the edges of both cell types of logsumexp(alphas) (Ye et al., 2022). Its gradient is softmax / edges."""
    rows = [
        alphas.masked_fill(~kept, -torch.inf).logsumexp(dim=1)
        for alphas, kept in ((network.alphas_normal, network.kept_normal), (network.alphas_reduce, network.kept_reduce))
    ]
    return torch.cat(rows).mean()


def zero_one_loss(network: Supernet) -> Tensor:
    """Minus the mean of (sigmoid(alpha) - 0.5)^2 over all alphas: least where each sigmoid is 0 or 1 (Chu et al., 2020)."""
    normal, reduce = network.operation_weights()
    weights = torch.cat([normal[network.kept_normal], reduce[network.kept_reduce]])
    return -(weights - 0.5).square().mean()


def project(values: Tensor, centre: Tensor, kept: Tensor, distance: float) -> Tensor:
    """Row by row the nearest distribution that differs from `centre` by at most `distance` in each place.

    Args:
        centre: rows are distributions over the places that are `kept`, zero elsewhere.
    """
    low, high = (centre - distance).clamp_min(0), (centre + distance).clamp_max(1) * kept
    least, most = (values - high).amin(dim=1, keepdim=True), (values - low).amax(dim=1, keepdim=True)
    for _ in range(HALVINGS):  # the sum falls as the shift grows
        middle = (least + most) / 2
        above = (values - middle).clamp(low, high).sum(dim=1, keepdim=True) > 1
        least, most = torch.where(above, middle, least), torch.where(above, most, middle)
    return (values - (least + most) / 2).clamp(low, high)


def disturb(network: Supernet, distance: float, generator: torch.Generator) -> Mixing:
    """The operations' weights with uniform noise in [-distance, distance], as distributions again (Chen & Hsieh, 2020)."""
    with torch.no_grad():
        weights = network.operation_weights()
        normal, reduce = (
            project(part + distance * torch.empty_like(part).uniform_(-1, 1, generator=generator), part, kept, distance)
            for part, kept in zip(weights, (network.kept_normal, network.kept_reduce), strict=True)
        )
    return normal, reduce


def attack(
    network: Supernet, loss: Callable[[Mixing], Tensor], distance: float, ascents: int, generator: torch.Generator
) -> Mixing:
    """The operations' weights after steps of 2 distance / ascents along the signs of the loss's gradient, from a random start and
    never further than `distance` from the undisturbed ones (Chen & Hsieh, 2020). If the loss has not grown, the undisturbed ones.

    Args:
        loss: a function of the weights, the same at each call. It is called `ascents` + 2 times.
    """
    undisturbed, now = network.operation_weights(), disturb(network, distance, generator)
    kept = network.kept_normal, network.kept_reduce
    for _ in range(ascents):
        points = [part.detach().requires_grad_() for part in now]
        gradients = torch.autograd.grad(loss((points[0], points[1])), points)
        with torch.no_grad():
            normal, reduce = (
                project(point + 2 * distance / ascents * gradient.sign(), centre, on, distance)
                for point, gradient, centre, on in zip(points, gradients, undisturbed, kept, strict=True)
            )
        now = normal, reduce
    with torch.no_grad():
        normal, reduce = (part.detach() for part in undisturbed)
        return now if loss(now) > loss((normal, reduce)) else (normal, reduce)


class Freezer:
    """Which operations of the cells have stopped to train (OLES; Jiang et al., 2023).

    An operation's figure in a step is the mean over its weight tensors of the cosine between the gradients on the alphas' and on
    the weights' images; 0 where a gradient is zero. After every `steps` steps those whose mean figure is below the threshold stop:
    they have no gradients, so the optimizer leaves their weights as they are.
    """

    def __init__(self, network: Supernet, setting: FrozenOperations) -> None:
        self.setting = setting
        self.operations = {
            f"cells.{index}.edges.{edge}.{name}": parameters
            for index, cell in enumerate(network.cells)
            if isinstance(cell, Cell)
            for edge, operations in enumerate(cell.edges)
            for name, operation in operations.items()  # type: ignore[operator]
            if (parameters := list(operation.parameters()))
        }
        self.frozen: set[str] = set()
        self.sums = torch.zeros(len(self.operations), device=network.alphas_normal.device)  # of the figures of those that train
        self.observed = 0  # steps in these sums

    def observe(self, of_alphas: Sequence[Tensor], of_weights: Sequence[Tensor]) -> bool:
        """Takes the gradients of the training operations' weights, in the order of `training`, on the two batches of a step.

        Returns whether more operations have stopped.
        """
        names = [name for name in self.operations if name not in self.frozen]
        counts = [len(self.operations[name]) for name in names]
        one, other = (torch.cat([part.flatten() for part in parts]) for parts in (of_alphas, of_weights))
        lengths = torch.tensor([part.numel() for part in of_alphas], device=one.device)
        dots, squares, others = (
            torch.segment_reduce(product, "sum", lengths=lengths) for product in (one * other, one.square(), other.square())
        )
        cosines = dots / (squares.sqrt() * others.sqrt()).clamp_min(torch.finfo(one.dtype).tiny)
        figures = torch.stack([part.mean() for part in cosines.split(counts)])
        self.sums = figures if self.observed == 0 else self.sums + figures
        self.observed += 1
        if self.observed < self.setting.steps:
            return False
        below = (self.sums / self.observed < self.setting.threshold).tolist()
        self.frozen |= {name for name, stops in zip(names, below, strict=True) if stops}
        self.observed = 0
        return any(below)

    def training(self) -> list[nn.Parameter]:
        """The weights of the operations that train."""
        return [weight for name, weights in self.operations.items() if name not in self.frozen for weight in weights]

    def state_dict(self) -> dict[str, Any]:
        return {"frozen": sorted(self.frozen), "sums": self.sums, "observed": self.observed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.frozen, self.observed = set(state["frozen"]), state["observed"]
        self.sums = state["sums"].to(self.sums.device)
