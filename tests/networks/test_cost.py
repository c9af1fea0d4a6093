"""Costs equal the reference's and the papers' own figures, and counting disturbs nothing."""

import json
from pathlib import Path

import pytest
import torch

from pdarts_tune.networks.cost import network_cost, peak_bytes
from pdarts_tune.networks.evaluation_network import CIFAR, IMAGENET_MOBILE, EvalNetwork, NetworkConfig
from pdarts_tune.pdarts.genotype import CellGenotype, Genotype

SIZES = json.loads((Path(__file__).parents[1] / "golden" / "sizes.json").read_text())
POOLS = CellGenotype(tuple(("max_pool_3x3", source) for source in (0, 1) * 4))


def genotype(name):
    return Genotype.parse(json.dumps(SIZES[name]["genotype"]))


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize(("setting", "config"), [("cifar10", CIFAR), ("imagenet", IMAGENET_MOBILE)])
def test_costs_of_published_genotypes_equal_the_reference(name, setting, config):
    expected = SIZES[name][setting]
    cost = network_cost(genotype(name), config)
    assert cost.params == expected["params_excl_aux"]
    assert cost.macs == expected["macs"]
    if setting == "imagenet":
        assert cost.madds == expected["madds_as_papers_count"]


def test_pdarts_has_the_multiply_adds_and_parameters_that_its_paper_prints():
    cost = network_cost(genotype("PDARTS"), IMAGENET_MOBILE)
    assert round(cost.madds / 1e6) == 557
    assert round(cost.params / 1e6, 1) == 4.9
    assert round(network_cost(genotype("PDARTS"), CIFAR).params / 1e6, 1) == 3.4


def test_a_small_network_is_counted_as_by_hand():
    config = NetworkConfig(2, 3, 3, 4, "cifar", in_channels=1)
    cost = network_cost(Genotype(POOLS, POOLS), config)
    # Stem 6 channels at 4x4; cell 0: 2 channels at 4x4; cell 1: 4 at 2x2; cell 2: 8 at 1x1. Pools have no parameters, the two
    # preprocessings of each cell have 1x1 convolutions, from (6, 6), (6, 8), (8, 16) channels.
    convolutions = (1 * 9 * 6) + (6 + 6) * 2 + (6 + 8) * 4 + (8 + 16) * 8
    norms = 2 * (6 + 2 * 2 + 2 * 4 + 2 * 8)
    assert cost.params == convolutions + norms + (32 * 3 + 3)
    # Preprocessing happens before a reduction, at the size of the cell's inputs, except that the cell after a reduction halves
    # its first input, whose convolutions have stride 2.
    macs = 16 * 54 + 16 * 24 + 16 * 56 + 4 * (8 + 16) * 8 + 32 * 3
    assert cost.macs == macs
    norm_outputs = 16 * 6 + 16 * 2 * 2 + 16 * 2 * 4 + 4 * 2 * 8
    relu_outputs = 16 * (6 + 6) + 16 * (6 + 8) + (16 * 8 + 4 * 16)
    pool_inputs = 8 * (16 * 2) + 8 * (16 * 4) + 8 * (4 * 8) + 32
    assert cost.madds == macs + 2 * norm_outputs + relu_outputs + pool_inputs


def test_counting_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    network_cost(Genotype(POOLS, POOLS), NetworkConfig(4, 4, 3, 16, "imagenet"))
    assert torch.equal(before, torch.get_rng_state())


def test_a_genotype_is_counted_once():
    config = NetworkConfig(4, 5, 3, 16, "cifar")
    assert network_cost(Genotype(POOLS, POOLS), config) is network_cost(Genotype(POOLS, POOLS), config)


def test_parameters_are_those_of_the_network_without_its_auxiliary_head():
    config = NetworkConfig(4, 5, 3, 16, "cifar", in_channels=1)
    network = EvalNetwork(genotype("PDARTS"), config)
    params = sum(p.numel() for name, p in network.named_parameters() if not name.startswith("auxiliary_head"))
    assert network_cost(genotype("PDARTS"), config).params == params


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel's own figure is read from Linux's /proc")
def test_peak_memory_is_the_kernels_high_water_mark_in_bytes():
    status = Path("/proc/self/status").read_text()
    kibibytes = int(status.split("VmHWM:")[1].split()[0])
    assert 1024 * kibibytes <= peak_bytes(torch.device("cpu")) < 2**44


@pytest.mark.gpu
def test_peak_memory_on_cuda_is_what_pytorch_allocated():
    device = torch.device("cuda")
    torch.cuda.reset_peak_memory_stats()
    block = torch.ones(2**20, device=device)
    assert peak_bytes(device) >= block.nbytes
