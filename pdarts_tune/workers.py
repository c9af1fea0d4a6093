"""Several processes, a device each, that train one network together: who takes which images, sums over all, shared statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Place(NamedTuple):
    """Where a process's images stand in a batch that several processes share."""

    start: int  # of them
    total: int  # images in the batch
    fewest: int  # images that any of the processes has


@dataclass(frozen=True)
class Workers:
    """The processes of one training, and which of them this is. More than one need an initialised `torch.distributed` group."""

    rank: int = 0
    count: int = 1

    def share(self, total: int) -> slice:
        """This process's images of a batch of `total`: consecutive, as equal in number as can be."""
        return slice(total * self.rank // self.count, total * (self.rank + 1) // self.count)

    def place(self, total: int) -> Place:
        """Where this process's share of a batch of `total` stands."""
        return Place(self.share(total).start, total, total // self.count)

    def find_place(self, own: int, device: torch.device) -> Place:
        """The same where only each process knows how many images it has, since it left some out."""
        counts = torch.zeros(self.count, dtype=torch.int64, device=device)
        counts[self.rank] = own
        each = self.total(counts).tolist()
        return Place(sum(each[: self.rank]), sum(each), min(each))

    def union(self, lines: set[str]) -> set[str]:
        """What any of the processes has in its set."""
        every: list[Any] = [lines] * self.count
        if self.count > 1:
            dist.all_gather_object(every, lines)
        return set().union(*every)

    def total(self, values: Tensor) -> Tensor:
        """The sum of all processes' values, the same in each of them."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def align_buffers(self, network: nn.Module) -> None:
        """Gives every process the first one's running statistics: without shared ones each has those of its own share."""
        if self.count > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, src=0)


class _Sum(torch.autograd.Function):
    """The sum over all processes. Each of them reads it, so the gradient of an addend is the sum of all their gradients."""

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:  # noqa: ARG004
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:  # noqa: ARG004
        total = gradient.clone()
        dist.all_reduce(total)
        return total


def _sum(values: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(values)
    return total


class SyncBatchNorm(nn.BatchNorm2d):
    """Batch norm with the statistics of all processes' images, on any device (PyTorch's own needs GPUs)."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        # Two passes, in float32 at least: the difference of mean square and squared mean would lose digits.
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        pixels_here = exact.new_full((1,), x.numel() / x.shape[1])
        sums = _sum(torch.cat((exact.sum(dim=(0, 2, 3)), pixels_here)))
        pixels = sums[-1].item()
        mean = sums[:-1] / pixels
        centred = exact - mean[:, None, None]
        variance = _sum(centred.square().sum(dim=(0, 2, 3))) / pixels
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
            self.running_var.lerp_((variance * pixels / max(pixels - 1, 1)).to(self.running_var), self.momentum)
        scaled = centred * (variance + self.eps).rsqrt()[:, None, None]
        if self.affine:
            scaled = scaled * self.weight[:, None, None] + self.bias[:, None, None]
        return scaled.to(x.dtype)


def synchronise_batch_norms(network: nn.Module, device: torch.device) -> None:
    """Replaces every batch norm by one with the statistics of all processes' images; names of weights stay."""
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return
    for module in network.modules():
        for name, child in module.named_children():
            if type(child) is nn.BatchNorm2d:
                assert child.running_mean is not None
                norm = SyncBatchNorm(
                    child.num_features, child.eps, child.momentum, child.affine, device=device, dtype=child.running_mean.dtype
                )
                norm.load_state_dict(child.state_dict())
                setattr(module, name, norm)
