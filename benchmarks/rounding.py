"""How far two exact evaluations of one search network drift apart through rounding alone.

    python benchmarks/rounding.py

Trains the laptop preset's first stage twice from one seed, on the same batches: once with plain cells, once with kernels.
They compute the same function, so in float64 the losses agree; in float32 the last bits differ and training amplifies them.
Takes about half a minute.
"""

from __future__ import annotations

from typing import Literal

import torch
from tabulate import tabulate
from torch import nn
from torch.nn.functional import cross_entropy

from pdarts_tune.config.presets import PRESETS
from pdarts_tune.search.loop import Search

EPOCHS = 2
Evaluation = Literal["plain", "kernels"]


def losses(evaluation: Evaluation, dtype: torch.dtype) -> list[float]:
    """The loss of every weight step while the alphas are frozen."""
    config = PRESETS["laptop"].search
    search = Search(config, torch.device("cpu"))
    network = search.network.to(dtype).train()
    network.evaluation = evaluation
    weights = network.weight_parameters()
    optimizer = torch.optim.SGD(weights, config.learning_rate, config.momentum, weight_decay=config.weight_decay)
    found = []
    for _ in range(EPOCHS):
        for images, labels in search.weight_batches.epoch(search.generators["weight batches"]):
            optimizer.zero_grad()
            loss = cross_entropy(network(images.to(dtype)), labels)
            loss.backward()
            nn.utils.clip_grad_norm_(weights, config.gradient_clip)
            optimizer.step()
            found.append(loss.item())
    return found


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for dtype in (torch.float64, torch.float32):
        plain, kernels = losses("plain", dtype), losses("kernels", dtype)
        apart = [abs(a - b) for a, b in zip(plain, kernels, strict=True)]
        rows += [[str(dtype), step + 1, plain[step], kernels[step], apart[step]] for step in (0, 4, 8, len(plain) - 1)]
    print(tabulate(rows, ["precision", "step", "plain", "kernels", "apart"], floatfmt=("", "d", ".9f", ".9f", ".1e")))


if __name__ == "__main__":
    main()
