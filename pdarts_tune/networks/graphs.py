"""Training steps as CUDA graphs: captured once, then replayed by one call that launches every operator.

A graph repeats the same operators on the same memory. So whatever changes from step to step lives in tensors that stay where they
are: images and labels are copied into them, rates are numbers on the device. What Python decides (which parameters train, whether
there is dropout) makes another kind of step, which has a graph of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

Step = Callable[..., tuple[Tensor, ...]]


class Number:
    """A number that operators read from the device's memory, so that graphs see its changes."""

    def __init__(self, value: float) -> None:
        self.value = value
        self._tensor: Tensor | None = None

    def set(self, value: float) -> None:
        self.value = value
        if self._tensor is not None:
            self._tensor.fill_(value)

    def on(self, device: torch.device) -> Tensor:
        """The number as a float64 tensor without dimensions, always the same one on the same device."""
        if self._tensor is None or self._tensor.device != device:
            self._tensor = torch.full((), self.value, dtype=torch.float64, device=device)
        return self._tensor


# On a CPU PyTorch draws faster from a rate that is a Python number, and other bits than from a tensor; a graph needs a tensor.
_LIBRARY = torch.library.Library("pdarts_tune", "DEF")
_LIBRARY.define("bernoulli_(Tensor(a!) values, Tensor share, Generator? generator) -> ()")
_LIBRARY.impl("bernoulli_", lambda values, share, generator: void(values.bernoulli_(share.item(), generator=generator)), "CPU")
_LIBRARY.impl("bernoulli_", lambda values, share, generator: void(values.bernoulli_(share, generator=generator)), "CUDA")
_LIBRARY.impl("bernoulli_", lambda values, share, generator: None, "Meta")  # noqa: ARG005


def void(_: object) -> None:
    """What operators without a result return."""


def draw_ones(values: Tensor, share: Tensor, generator: torch.Generator | None) -> Tensor:
    """Fills `values` with ones, each with probability `share` (a tensor without dimensions), and zeros. Returns `values`."""
    torch.ops.pdarts_tune.bernoulli_(values, share, generator)
    return values


class Graph(Protocol):
    """A step that can be replayed. `capture` gives the tensors that each replay fills with the step's results."""

    pool: Any  # its memory

    def warm_up(self, step: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]: ...
    def capture(self, step: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]: ...
    def replay(self) -> None: ...


@cache
def _side_stream(device: int) -> torch.cuda.Stream:
    """The one stream on which this process warms up and captures. cuBLAS keeps a workspace for each stream that it has run on.

    On an H100 these are 32 MiB a stream and thread, and one that a capture made would keep the pool of its graph for good.
    """
    return torch.cuda.Stream(device)


class CudaGraph:
    """One CUDA graph. Graphs may share a pool of memory where the results of each are read before the next one runs."""

    def __init__(self, generators: Iterable[torch.Generator], pool: Any) -> None:
        self.pool = pool or torch.cuda.graph_pool_handle()
        self._graph = torch.cuda.CUDAGraph()
        for generator in generators:
            self._graph.register_generator_state(generator)

    def warm_up(self, step: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Runs the step beside the default stream, as PyTorch asks for before a capture.

        PyTorch keeps freed memory for the stream that had it. Given back, it does not lie beside this step's; `capture` gives back
        this step's.
        """
        torch.cuda.empty_cache()
        stream, main = _side_stream(torch.cuda.current_device()), torch.cuda.current_stream()
        stream.wait_stream(main)
        with torch.cuda.stream(stream):
            results = step()
        main.wait_stream(stream)
        return results

    def capture(self, step: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        # Threads that pin batches in memory may go on meanwhile.
        stream = _side_stream(torch.cuda.current_device())
        with torch.cuda.graph(self._graph, pool=self.pool, stream=stream, capture_error_mode="thread_local"):
            return step()

    def replay(self) -> None:
        self._graph.replay()


GRAPHS: dict[str, Callable[[Iterable[torch.Generator], Any], Graph]] = {"cuda": CudaGraph}
"""By device type, how a graph is made. Tests add a double for CPUs."""


@dataclass
class _Kind:
    inputs: tuple[Tensor, ...]
    graph: Graph
    results: tuple[Tensor, ...] | None = None  # of the captured step; None: not captured yet


class StepGraphs:
    """The graphs of a network's training steps.

    The first step of a kind runs operator by operator: it makes the optimizer's state, and libraries choose their algorithms. The
    second is captured. Batches of another size than `batch_size` run operator by operator, and so do all steps with `on=False` and
    on devices without graphs.

    Args:
        generators: all that a step draws from.
        optimizer: the one whose learning rate changes. The rate becomes a tensor, which `set_rate` fills.
    """

    def __init__(
        self,
        device: torch.device,
        batch_size: int,
        generators: Sequence[torch.Generator | None],
        optimizer: torch.optim.Optimizer,
        on: bool,
    ) -> None:
        self.peak_bytes = 0  # of the captured steps: replays ask for no memory, so PyTorch's own figure misses them
        self._device, self._batch_size = device, batch_size
        self._generators = [generator for generator in generators if generator is not None]
        self._kinds: dict[Hashable, _Kind] = {}
        self.on = on and device.type in GRAPHS
        if self.on:
            for group in optimizer.param_groups:
                group["lr"] = torch.tensor(group["lr"], dtype=torch.float32, device=device)

    def run(self, kind: Hashable, step: Step, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Runs the step on a batch. Its results hold until the next step.

        Args:
            kind: names the operators that the step runs; the same for steps that differ in numbers on the device alone.
            step: from `inputs` to results. It reads no number from the device.
        """
        if not self.on or any(len(part) != self._batch_size for part in inputs):
            return step(*inputs)
        if kind not in self._kinds:
            pool = next((other.graph.pool for other in self._kinds.values()), None)
            graph = GRAPHS[self._device.type](self._generators, pool)
            self._kinds[kind] = _Kind(tuple(part.clone() for part in inputs), graph)
            return graph.warm_up(lambda: step(*inputs))
        known = self._kinds[kind]
        for place, part in zip(known.inputs, inputs, strict=True):
            place.copy_(part)
        if known.results is None:
            known.results = known.graph.capture(lambda: step(*known.inputs))
            if self._device.type == "cuda":
                self.peak_bytes = max(self.peak_bytes, torch.cuda.max_memory_allocated(self._device))
        known.graph.replay()
        return known.results


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the learning rate, in its place where it is a tensor."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Restores momenta and moments. Settings stay: they are the configuration's, and whether rates are tensors is this device's."""
    optimizer.load_state_dict({"state": state["state"], "param_groups": optimizer.state_dict()["param_groups"]})
