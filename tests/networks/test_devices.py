"""A search's step on devices that are not there: shapes alone, on what says that it is a GPU, and on the meta device.

Fake tensors catch a forward pass that mixes devices. Their backward needs a real GPU, so it runs on the meta device, which knows no
values: whatever would be computed on the host, or depend on a number that only the device knows, fails there. Mixed precision is in
neither: it asks whether there is a GPU.
"""

from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import cross_entropy

from pdarts_tune.config.execution import Execution
from pdarts_tune.config.methods import PartialChannels, SecondOrder, Snas
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.data.batches import Batches
from pdarts_tune.data.datasets import Dataset
from pdarts_tune.data.in_memory import ImageSet
from pdarts_tune.networks.build import build_network
from pdarts_tune.networks.cost import even_space
from pdarts_tune.pdarts.progressive_depth import Stage
from pdarts_tune.search.steps import build_steps, sample_mixing

STAGE = Stage(3, 3, 0.4)
CONFIG = SearchConfig(stages=(STAGE,), channels=4, batch_size=4)
CONFIGS = {
    "plain": CONFIG,  # kernels are for CPUs
    "recompute": replace(CONFIG, execution=Execution(recompute=True)),
    "channels-last": replace(CONFIG, execution=Execution(channels_last=True)),
    "PC-DARTS": replace(CONFIG, method=PartialChannels(2)),
    "SNAS": replace(CONFIG, method=Snas(penalty="mild")),
}


def build(config):
    network = build_network(config, even_space(STAGE.operations), STAGE.cells, 10, 3, seed=0)  # has every operation
    network.set_skip_dropout(STAGE.skip_dropout)
    return network


@pytest.mark.parametrize("name", CONFIGS)
def test_augmentation_and_forward_stay_on_the_accelerator(name):
    with FakeTensorMode(), torch.device("cuda"):
        pixels = torch.zeros(10, 3, 16, 16, dtype=torch.uint8)
        part = ImageSet(pixels, torch.zeros(10, dtype=torch.int64))
        dataset = Dataset("numbered", part, part, tuple(map(str, range(10))), (0.5,) * 3, (0.2,) * 3, flip=True)
        images, labels = next(Batches(part, dataset, 4, torch.device("cuda"), augment=True).epoch(torch.Generator()))
        network = build(CONFIGS[name])
        mixing = sample_mixing(network, 0.5, None) if name == "SNAS" else None
        for training in (True, False):
            loss = cross_entropy(network.train(training)(images, mixing), labels)
            assert loss.device.type == "cuda"


@pytest.mark.parametrize("name", [*CONFIGS, "second order"])
def test_whole_steps_compute_nothing_on_the_host(name):
    config = replace(CONFIG, method=SecondOrder()) if name == "second order" else CONFIGS[name]
    with torch.device("meta"):
        network = build(config)
        network.dropout_generator = torch.Generator()
        batch = torch.empty(4, 3, 16, 16), torch.zeros(4, dtype=torch.int64)
        weights = torch.optim.SGD(network.weight_parameters(), 0.025, momentum=0.9, weight_decay=3e-4)
        alphas = torch.optim.Adam(network.arch_parameters(), 6e-4)
        # No generator of architectures: drawing SNAS' variables from one is not there on the meta device.
        steps = build_steps(config, STAGE, network, (weights, alphas), 16, None)
        if steps.trains_alphas_apart:
            steps.train_alphas(batch, batch)
        loss, logits = steps.train_weights(batch, both=True)
    assert loss.is_meta
    assert logits.is_meta
    assert all(parameter.grad is not None and parameter.grad.is_meta for parameter in network.parameters())
