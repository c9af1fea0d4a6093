"""Costs of operations and architectures against hand figures, the penalty on them against its formula, measured latencies."""

import itertools
import json
import math
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from benchmarks.latency import main as measure
from pdarts_tune.config.methods import FirstOrder, PartialChannels, RandomSampling, SecondOrder
from pdarts_tune.config.remedies import BetaDecay, Latencies, ResourcePenalty
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.config.serialize import ConfigError, from_dict
from pdarts_tune.networks.build import build_network, build_optimizers
from pdarts_tune.networks.operations import OPERATIONS
from pdarts_tune.networks.supernet import Supernet
from pdarts_tune.pdarts.genotype import CellGenotype, Genotype
from pdarts_tune.pdarts.progressive_depth import Stage
from pdarts_tune.pdarts.space import PRIMITIVES, SearchSpace
from pdarts_tune.search.diagnostics import genotype_space
from pdarts_tune.search.loop import Search
from pdarts_tune.search.records import epoch_row
from pdarts_tune.search.resources import (
    SNAS_WEIGHTS,
    check_latencies,
    count_resources,
    expected_cost,
    needed_latencies,
    operation_cost,
    relative_costs,
)
from pdarts_tune.search.steps import build_steps

CPU = torch.device("cpu")


def count_by_hand(network, size):
    """Parameters, multiply-adds and memory accesses of a network's cells without their preprocessing, from a real image."""
    macs = accesses = 0

    def count(module, inputs, output):
        nonlocal macs, accesses
        accesses += inputs[0].numel() + output.numel() + sum(weight.numel() for weight in module.parameters())
        if isinstance(module, nn.Conv2d):
            macs += output.numel() // module.out_channels * module.weight.numel()

    edges = [edge for cell in network.cells for edge in cell.edges]
    hooks = [
        module.register_forward_hook(count)
        for edge in edges
        for module in edge.modules()
        if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d | nn.Identity)
    ]
    network.eval()(torch.zeros(1, 1, size, size))
    for hook in hooks:
        hook.remove()
    return sum(parameter.numel() for edge in edges for parameter in edge.parameters()), macs, accesses


def test_the_expected_cost_of_each_resource_is_its_mean_over_all_architectures():
    """Two edges of the normal cell and one of the reduction cell have a choice: all eight architectures as networks of their own,
    counted from an image that passes through them, each with its probability."""
    torch.manual_seed(0)
    choices = {
        ("normal", 0): ("skip_connect", "sep_conv_3x3"),
        ("normal", 13): ("none", "dil_conv_5x5"),
        ("reduce", 1): ("max_pool_3x3", "sep_conv_5x5"),
    }

    def space(chosen):
        return SearchSpace(*(tuple(chosen.get((cell, e), ("none",)) for e in range(14)) for cell in ("normal", "reduce")))

    network = Supernet(space(choices), 4, 4, 10, 1, alpha_init_scale=1.0)
    chances = dict(zip(("normal", "reduce"), network.probs(), strict=True))
    means = [0.0, 0.0, 0.0]
    for picks in itertools.product(*choices.values()):
        single = Supernet(
            space({place: (name,) for place, name in zip(choices, picks, strict=True)}), 4, 4, 10, 1, evaluation="plain"
        )
        chance = math.prod(chances[cell][edge][name] for (cell, edge), name in zip(choices, picks, strict=True))
        means = [mean + chance * count for mean, count in zip(means, count_by_hand(single, 9), strict=True)]
    for (name, resource), mean in zip(count_resources(network, 9).items(), means, strict=True):
        assert mean > 0, name
        assert resource.expected(chances) == pytest.approx(mean, rel=1e-6), name
        costs = relative_costs([resource], network)
        assert resource.most * expected_cost(network.operation_weights(), costs).item() == pytest.approx(mean, rel=1e-5), name


def test_a_stronger_penalty_moves_the_alphas_further_towards_cheap_operations():
    """Descending the penalty alone, by each of its three strengths."""
    found = []
    for name in ("mild", "moderate", "aggressive"):
        torch.manual_seed(0)
        network = Supernet(SearchSpace.full(), 4, 4, 10, 1)
        costs = relative_costs([*count_resources(network, 8).values()], network)
        optimizer = torch.optim.SGD(network.arch_parameters(), 10.0)
        for _ in range(20):
            optimizer.zero_grad()
            (SNAS_WEIGHTS[name] * expected_cost(network.mixing(), costs)).backward()
            optimizer.step()
        found.append(expected_cost(network.mixing(), costs).item())
    assert found[0] > found[1] > found[2]


def test_costs_by_hand():
    # 4 channels, 6 x 6 pixels: two depthwise 3x3 (36 weights) and two pointwise (16) convolutions.
    cost = operation_cost("sep_conv_3x3", 4, 1, 6)
    assert cost.params == 2 * (36 + 16)
    assert cost.macs == 36 * 2 * (36 + 16)
    assert cost.accesses == 4 * 2 * 144 + cost.params
    skip, none = operation_cost("skip_connect", 4, 1, 6), operation_cost("none", 4, 1, 6)
    assert (skip.params, skip.macs, skip.accesses) == (0, 0, 2 * 144)
    assert (none.params, none.macs, none.accesses) == (0, 0, 0)
    assert operation_cost("max_pool_3x3", 4, 2, 6).accesses == 144 + 36
    for name in PRIMITIVES:
        assert operation_cost(name, 4, 2, 6).params == sum(p.numel() for p in OPERATIONS[name](4, 2, False).parameters())


def test_the_costliest_network_costs_one_and_nothing_costs_nothing():
    network = Supernet(SearchSpace.full(), 5, 4, 10, 1)
    costs = relative_costs([*count_resources(network, 8).values()], network)
    assert sum(cost.amax(dim=1).sum().item() for cost in costs) == pytest.approx(1.0, abs=1e-6)
    assert all(cost[:, 0].abs().max() == 0 for cost in costs)  # none
    order = [PRIMITIVES.index(name) for name in ("skip_connect", "dil_conv_3x3", "sep_conv_3x3", "sep_conv_5x5")]
    assert (costs[0][:, order].diff(dim=1) > 0).all()


def test_with_the_imagenet_stem_costs_are_those_of_an_eighth_of_the_side():
    eighth = count_resources(Supernet(SearchSpace.full(), 4, 4, 10, 3), 8)
    assert count_resources(Supernet(SearchSpace.full(), 4, 4, 10, 3, stem="imagenet"), 64) == eighth


GENOTYPE = Genotype(  # operations of every kind, on edges of both strides
    CellGenotype(tuple(zip(PRIMITIVES[1:] + PRIMITIVES[4:5], (0, 1, 0, 2, 1, 3, 0, 4), strict=True))),
    CellGenotype(tuple(zip(PRIMITIVES[:0:-1] + PRIMITIVES[3:4], (0, 1, 1, 2, 0, 2, 1, 3), strict=True))),
)


def test_the_expected_cost_of_a_one_hot_distribution_is_the_real_figure_of_that_architecture():
    """Counted from an image that passes through the genotype's own network."""
    network = Supernet(SearchSpace.full(), 5, 4, 10, 1)
    single = Supernet(genotype_space(GENOTYPE), 5, 4, 10, 1, evaluation="plain")
    normal, reduce = single.probs()
    for resource, real in zip(count_resources(network, 9).values(), count_by_hand(single, 9), strict=True):
        assert real > 0
        assert resource.expected({"normal": normal, "reduce": reduce}) == real
        assert resource.derived(GENOTYPE) == real
        costs = relative_costs([resource], network)
        assert expected_cost(network.one_hot_mixing(GENOTYPE), costs).item() == pytest.approx(real / resource.most, rel=1e-5)


def test_an_edge_saves_the_same_share_whatever_its_stage_has_dropped():
    """A stage that keeps two operations has the full space's costliest architecture as its unit."""
    full = Supernet(SearchSpace.full(), 5, 4, 10, 1)
    kept = Supernet(SearchSpace.uniform("max_pool_3x3", "skip_connect"), 5, 4, 10, 1)
    whole, part = (relative_costs([count_resources(n, 8, SearchSpace.full())["macs"]], n) for n in (full, kept))
    columns = [PRIMITIVES.index(name) for name in kept.space.normal[0]]
    assert all(torch.equal(a[:, columns], b) for a, b in zip(whole, part, strict=True))
    own = relative_costs([count_resources(kept, 8)["macs"]], kept)
    assert own[1].max() > 5 * part[1].max() > 0


def test_a_space_in_which_nothing_costs_anything_has_no_penalty():
    network = Supernet(SearchSpace.uniform("none", "max_pool_3x3"), 4, 4, 10, 1)
    costs = relative_costs([count_resources(network, 8)["params"]], network)
    assert all(cost.abs().max() == 0 for cost in costs)


SHORT = SearchConfig(
    stages=(Stage(3, 8, 0.3, epochs=2, warmup_epochs=0), Stage(4, 3, 0.5, epochs=2, warmup_epochs=1)),
    data="digits",
    train_images=36,
    validation_fraction=0.2,
    channels=2,
    batch_size=6,
    alpha_learning_rate=0.01,
    gradient_clip=1e9,
)


def table(config, size=8):
    """Latencies of a search on digits; they need not be real."""
    rows = [(*place, 1e-6 * (index + 1)) for index, place in enumerate(needed_latencies(config, size))]
    return Latencies("made up", "0", 1, 1, tuple(rows))


@pytest.mark.parametrize("method", [FirstOrder(), SecondOrder(), PartialChannels(2)], ids=lambda method: method.name)
@pytest.mark.parametrize("resource", ["macs", "latency"])
def test_the_penaltys_gradient_is_its_closed_form(method, resource):
    """Weight times probability times the operation's relative cost less the edge's mean, on top of the gradient without penalty."""
    space = SearchSpace(
        tuple(("none", "skip_connect", "sep_conv_3x3")[: 1 + edge % 3] for edge in range(14)),
        tuple(("max_pool_3x3", "skip_connect", "dil_conv_3x3")[: 1 + (edge + 1) % 3] for edge in range(14)),
    )
    gradients = []
    plain = replace(SHORT, method=method, remedies=(BetaDecay(1.0, 1.0),) if method == FirstOrder() else (), alpha_init_scale=1.0)
    for weight in (0.0, 3.0):
        config = replace(plain, penalty=ResourcePenalty(resource, weight, table(plain)))
        network = build_network(config, space, 3, 4, 1, seed=0).double()
        network.evaluation = "plain"
        network.dropout_generator = torch.Generator().manual_seed(0)
        images, labels = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1)).double(), torch.arange(6) % 4
        optimizers = build_optimizers(config, network)
        steps = build_steps(config, config.stages[0], network, optimizers, 8, torch.Generator().manual_seed(0))
        steps.start_epoch(0)
        chances = [part.detach() for part in network.operation_weights()]
        steps.train_alphas((images, labels), (images, labels))
        gradients.append([alphas.grad.clone() for alphas in network.arch_parameters()])
    costs = steps.resources[resource]
    assert costs.most == pytest.approx(sum(max(edge.values()) for edge in costs.costs[0] + costs.costs[1]))
    for reduction, operations in enumerate((space.normal, space.reduce)):
        for edge, names in enumerate(operations):
            relative = torch.tensor([costs.costs[reduction][edge][name] / costs.most for name in names]).double()
            chance = chances[reduction][edge, : len(names)]
            wanted = 3.0 * chance * (relative - (chance * relative).sum())
            found = (gradients[1][reduction] - gradients[0][reduction])[edge]
            assert torch.allclose(found[: len(names)], wanted, rtol=1e-6, atol=1e-10)
            assert found[len(names) :].abs().sum() == 0
    assert all(torch.equal(one, other) for one, other in zip(gradients[0][2:], gradients[1][2:], strict=True))  # betas


def search(config):
    finished = Search(config, CPU)
    list(finished.epochs())
    return finished


def test_a_penalty_of_weight_zero_is_none_bit_for_bit():
    plain = search(SHORT)
    off = search(replace(SHORT, penalty=ResourcePenalty("latency", 0.0, table(SHORT))))
    ours = off.network.state_dict()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in plain.network.state_dict().items())
    assert [record.alphas for record in plain.records] == [record.alphas for record in off.records]
    assert plain.records[0].derived_latency_seconds is None
    assert off.records[0].expected_latency_seconds > off.records[0].derived_latency_seconds > 0


@pytest.mark.parametrize(("space", "operations", "resource"), [("full", 8, "macs"), ("S2", 2, "params")])
def test_a_larger_weight_gives_a_cheaper_cell_on_digits(space, operations, resource):
    """Expected and derived; in S2 the one choice is between a skip-connect and a convolution."""
    stages = (replace(SHORT.stages[0], operations=operations),)
    config = replace(SHORT, stages=stages, space=space, train_images=100, channels=4, alpha_learning_rate=0.3, max_skips=8)
    free, saving = (epoch_row(search(replace(config, penalty=ResourcePenalty(resource, w))).records[-1]) for w in (0.0, 1000.0))
    assert saving[f"expected_{resource}"] < 0.6 * free[f"expected_{resource}"]
    assert saving[f"derived_{resource}"] < 0.6 * free[f"derived_{resource}"]


def test_records_have_the_figures_of_the_network_counted_by_hooks():
    finished = search(replace(SHORT, train_images=24))
    record = finished.records[-1]
    single = Supernet(genotype_space(record.genotype(SHORT.max_skips)), 4, 2, 10, 1, evaluation="plain")
    params, macs, _ = count_by_hand(single, 8)
    assert (record.derived_params, record.derived_macs) == (params, macs)
    mean = 0.0
    for reduction, cell in enumerate(("normal", "reduce")):
        for edge, chances in enumerate(record.probabilities[cell]):
            for name, chance in chances.items():
                for place in (c for c in finished.network.cells if c.reduction == reduction):
                    mean += chance * sum(p.numel() for p in place.edges[edge][name].parameters())
    assert record.expected_params == pytest.approx(mean)


def test_a_table_of_latencies_must_have_every_shape_of_the_search():
    whole = table(SHORT)
    assert ("sep_conv_3x3", 8, 1, 2) in whole.by_shape  # behind both reductions
    assert ("max_pool_3x3", 4, 2, 8) in whole.by_shape
    assert not any(row[0] == "none" for row in whole.seconds)
    check_latencies(replace(SHORT, penalty=ResourcePenalty("latency", 1.0, whole)), 8)
    lacking = replace(whole, seconds=tuple(row for row in whole.seconds if row[:4] != ("skip_connect", 4, 2, 8)))
    config = replace(SHORT, penalty=ResourcePenalty("latency", 1.0, lacking))
    message = (
        "penalty.latencies: has no skip_connect with 4 channels, stride 2, 8 pixels; "
        "benchmarks/latency.py with the settings of this search measures it"
    )
    with pytest.raises(ConfigError) as error:
        check_latencies(config, 8)
    assert str(error.value) == message
    with pytest.raises(ConfigError):
        Search(config, CPU)
    check_latencies(replace(config, method=RandomSampling()), 8)


def test_measured_latencies_are_those_a_search_needs_and_go_into_it(tmp_path, monkeypatch, capsys):
    file = tmp_path / "latency.json"
    options = "--preset smoke --set channels=2 space=S2 stages.operations=2 --turns 2 --batch 3"
    monkeypatch.setattr(sys, "argv", ["latency.py", "--out", str(file), *options.split()])
    measure()
    assert [path.name for path in tmp_path.iterdir()] == ["latency.json"]
    stages = [{"cells": 3, "operations": 2, "epochs": 1, "warmup_epochs": 0}]
    penalty = {"resource": "latency", "weight": 1.0, "latencies": str(file)}
    settings = {"data": "digits", "channels": 2, "train_images": 24, "batch_size": 6, "space": "S2", "stages": stages}
    config = from_dict(SearchConfig, settings | {"penalty": penalty})
    latencies = config.penalty.latencies
    assert (latencies.batch, latencies.threads, latencies.torch) == (3, 1, torch.__version__)
    assert list(latencies.by_shape) == needed_latencies(config, 8)
    assert all(seconds > 0 for seconds in latencies.by_shape.values())
    assert latencies.by_shape["sep_conv_3x3", 2, 1, 8] > latencies.by_shape["skip_connect", 2, 1, 8]
    assert json.loads(file.read_text())["seconds"][0] == list(latencies.seconds[0])
    record = search(config).records[-1]
    by_hand = sum(
        latencies.by_shape[name, channels, 1, size]
        for name, _ in record.genotype(2).normal.edges
        for channels, size in ((2, 8),)  # the one normal cell
    )
    by_hand += sum(
        latencies.by_shape[name, channels, 2 if source < 2 else 1, size if source < 2 else size // 2]
        for name, source in record.genotype(2).reduce.edges
        for channels, size in ((4, 8), (8, 4))
    )
    assert record.derived_latency_seconds == pytest.approx(by_hand)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--preset huge", "preset: 'huge' is unknown, known are smoke, laptop, cifar-small, paper"),
        ("--turns 0", "turns: 0 is wrong, it must be at least 1"),
        ("--set colour=red", "set: 'colour' is unknown"),
    ],
)
def test_a_benchmark_with_wrong_options_writes_nothing(tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.setattr(sys, "argv", ["latency.py", "--out", str(tmp_path / "x.json"), *options.split()])
    with pytest.raises(SystemExit) as exit_:
        measure()
    assert exit_.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert not list(tmp_path.iterdir())
