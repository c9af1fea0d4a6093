"""The search network that a configuration asks for."""

from __future__ import annotations

import torch

from pdarts_tune.config import SearchConfig
from pdarts_tune.methods import PartialChannels
from pdarts_tune.partial import PartialSupernet
from pdarts_tune.space import SearchSpace
from pdarts_tune.supernet import Supernet


def build_network(config: SearchConfig, space: SearchSpace, cells: int, num_classes: int, in_channels: int, seed: int) -> Supernet:
    """The search network of the configuration's method, its weights and alphas drawn from `seed` alone."""
    method, execution, shape = config.method, config.execution, (space, cells, config.channels, num_classes, in_channels)
    network: Supernet
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(method, PartialChannels):
            network = PartialSupernet(
                *shape,
                share=method.k,
                edge_normalization=method.edge_normalization,
                alpha_init_scale=config.alpha_init_scale,
                dropout_on_reduce=config.dropout_on_reduce,
            )
        else:
            network = Supernet(
                *shape,
                alpha_init_scale=config.alpha_init_scale,
                evaluation=execution.cell_evaluation,
                recompute=execution.recompute,
                dropout_on_reduce=config.dropout_on_reduce,
            )
    network.precision = execution.precision
    network.channels_last = execution.channels_last
    return network
