"""Cells that kernels evaluate compute what the plain modules do, in float64 to 1e-9."""

import copy
import os
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812

from pdarts_tune.networks.evaluation_network import Cell as EvaluationCell
from pdarts_tune.networks.evaluation_network import EvalNetwork, NetworkConfig
from pdarts_tune.networks.kernels.function import joined
from pdarts_tune.networks.supernet import Cell, Dropout, Supernet
from pdarts_tune.pdarts.genotype import GENOTYPE_OPERATIONS, CellGenotype, Genotype
from pdarts_tune.pdarts.published import PUBLISHED
from pdarts_tune.pdarts.space import EDGES, PRIMITIVES, SearchSpace

EXAMPLES = int(os.environ.get("KERNEL_EXAMPLES", "30"))  # fewer under a sanitizer


def random_operations(rng: random.Random, share: float):
    return tuple(tuple(name for name in PRIMITIVES if rng.random() < share) or (rng.choice(PRIMITIVES),) for _ in EDGES)


def random_genotype(rng: random.Random) -> CellGenotype:
    nodes = rng.choice((1, 4, 5))
    edges = [(rng.choice(GENOTYPE_OPERATIONS), rng.randrange(2 + node)) for node in range(nodes) for _ in range(2)]
    concat = sorted(rng.sample(range(2, 2 + nodes), rng.randint(1, nodes)))
    return CellGenotype(tuple(edges), tuple(concat))


def shake_statistics(module):
    """Running statistics that differ from norm to norm."""
    for name, buffer in module.named_buffers():
        if "running" in name:
            buffer.copy_(torch.rand_like(buffer) + 0.5)


def results_of(output, inputs, module, grad):
    """The output, every gradient, and every buffer after the pass, by name."""
    parameters = dict(module.named_parameters())
    grads = torch.autograd.grad(output, [*inputs, *parameters.values()], grad, allow_unused=True)
    names = [*(f"input {index}" for index in range(len(inputs))), *parameters]
    found = {name: grad for name, grad in zip(names, grads, strict=True) if grad is not None}
    return {"output": output.detach(), **found, **dict(module.named_buffers())}


def assert_equal_results(plain, kernels):
    assert plain.keys() == kernels.keys()
    for name, expected in plain.items():
        scale = float(expected.abs().max()) if expected.is_floating_point() and expected.numel() else 0.0
        torch.testing.assert_close(kernels[name], expected, rtol=1e-9, atol=1e-9 * scale + 1e-12, msg=lambda m, n=name: f"{n}: {m}")


@given(
    seed=st.integers(0, 10**6),
    share=st.sampled_from([0.2, 0.5, 1.0]),
    channels=st.sampled_from([2, 4, 6, 8, 10, 16, 24]),
    size=st.tuples(st.integers(1, 10), st.integers(1, 10)),
    batch=st.integers(1, 4),
    reduction=st.booleans(),
    reduction_before=st.booleans(),
    training=st.booleans(),
    masks=st.booleans(),
    dropout_on_reduce=st.booleans(),
    recompute=st.booleans(),
    threads=st.sampled_from([1, 1, 3]),
)
@settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
def test_every_gradient_and_statistic_of_a_search_cell_equals_the_plain_one(
    seed, share, channels, size, batch, reduction, reduction_before, training, masks, dropout_on_reduce, recompute, threads
):
    rng = random.Random(seed)
    torch.manual_seed(seed)
    height, width = size
    half = (-(-height // 2), -(-width // 2)) if reduction else size
    if training and batch * half[0] * half[1] < 4:
        batch = 4
    operations = random_operations(rng, share)
    plain = Cell(operations, 3 * channels, 4 * channels, channels, reduction, reduction_before).double().train(training)
    plain.dropout_on_reduce, plain.recompute = dropout_on_reduce, recompute
    shake_statistics(plain)
    kernels = copy.deepcopy(plain)
    larger = (2 * height - rng.randrange(2), 2 * width - rng.randrange(2)) if reduction_before else size
    before2 = torch.randn(1, batch, *larger, 3 * channels, dtype=torch.float64, requires_grad=True)
    before1 = torch.randn(4, batch, *size, channels, dtype=torch.float64, requires_grad=True)
    mixing = torch.randn(len(EDGES), max(map(len, operations)), dtype=torch.float64, requires_grad=True)
    kept = 0.6 if masks else 1.0
    drawn = torch.rand(len(plain.skip_edges), batch, *half, channels).permute(0, 1, 4, 2, 3) < kept if masks else None
    grad = torch.randn(batch, 4 * channels, *half, dtype=torch.float64)
    inputs = before2, before1, mixing
    out = plain(joined(before2), joined(before1), mixing, Dropout(drawn, kept))
    expected = results_of(out, inputs, plain, grad)
    usual = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        actual = results_of(joined(kernels.by_kernels(*inputs, Dropout(drawn, kept))), inputs, kernels, grad)
    finally:
        torch.set_num_threads(usual)
    assert_equal_results(expected, actual)


@given(
    seed=st.integers(0, 10**6),
    channels=st.sampled_from([2, 4, 6, 12, 16]),
    size=st.tuples(st.integers(2, 9), st.integers(2, 9)),
    batch=st.integers(1, 3),
    reduction=st.booleans(),
    reduction_before=st.booleans(),
    training=st.booleans(),
    drop_path=st.booleans(),
    recompute=st.booleans(),
)
@settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
def test_every_gradient_and_statistic_of_an_evaluation_cell_equals_the_plain_one(
    seed, channels, size, batch, reduction, reduction_before, training, drop_path, recompute
):
    rng = random.Random(seed)
    torch.manual_seed(seed)
    half = (-(-size[0] // 2), -(-size[1] // 2)) if reduction else size
    if training and batch * half[0] * half[1] < 4:
        batch = 4
    genotype = random_genotype(rng)
    plain = EvaluationCell(genotype, 3 * channels, 4 * channels, channels, reduction, reduction_before).double().train(training)
    shake_statistics(plain)
    with torch.no_grad():
        for parameter in plain.parameters():
            if parameter.dim() == 1:  # scales and shifts of norms: none of them special, one of them zero
                parameter.copy_(torch.randn_like(parameter))
                parameter[0] = 0
    kernels = copy.deepcopy(plain)
    larger = (2 * size[0] - 1, 2 * size[1]) if reduction_before else size
    before2 = torch.randn(1, batch, *larger, 3 * channels, dtype=torch.float64, requires_grad=True)
    before1 = torch.randn(4, batch, *size, channels, dtype=torch.float64, requires_grad=True)
    factors = torch.rand(len(genotype.edges), batch, dtype=torch.float64).round() * 1.25 if drop_path else None
    grad = torch.randn(batch, len(genotype.concat) * channels, *half, dtype=torch.float64)
    out = plain(joined(before2), joined(before1), None if factors is None else factors[..., None, None, None])
    expected = results_of(out, (before2, before1), plain, grad)
    kernels.recompute = recompute
    nodes = kernels.by_kernels(before2, before1, None if factors is None else factors[..., None, None, None])
    actual = results_of(joined(nodes), (before2, before1), kernels, grad)
    for name in actual.keys() - expected.keys():  # what does not reach the output has no gradient, or zeros
        assert not actual.pop(name).any()
    assert_equal_results(expected, actual)


def test_only_the_operation_without_a_kernel_is_a_module_in_a_published_cell(monkeypatch):
    genotype = PUBLISHED["AMOEBANET_A"].genotype
    config = NetworkConfig(4, 3, 5, 16, "cifar")
    results = []
    for evaluation in ("plain", "kernels"):
        torch.manual_seed(0)
        network = EvalNetwork(genotype, config).double()
        network.evaluation = evaluation
        network.set_drop_path(0.3)
        network.drop_path_generator = torch.Generator().manual_seed(0)
        if evaluation == "kernels":
            monkeypatch.setattr(EvaluationCell, "forward", lambda *_: pytest.fail("a whole cell was evaluated by modules"))
        torch.manual_seed(1)
        results.append(train_step(network, torch.randn(3, 3, 16, 16).double(), torch.tensor([0, 1, 2])))
    assert_equal_results(*results)


def train_step(network, images, labels):
    out = network(images)
    logits, auxiliary = out if isinstance(out, tuple) else (out, None)
    loss = F.cross_entropy(logits, labels)
    if auxiliary is not None:
        loss = loss + 0.4 * F.cross_entropy(auxiliary, labels)
    loss.backward()
    grads = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in network.named_parameters()}
    return {"loss": loss.detach(), **grads, **dict(network.named_buffers())}


def search_networks(channels=4, cells=3, **settings):
    torch.manual_seed(0)
    plain = Supernet(SearchSpace.full(), cells, channels, 5, evaluation="plain", alpha_init_scale=1.0, **settings).double()
    kernels = Supernet(SearchSpace.full(), cells, channels, 5, evaluation="kernels", **settings).double()
    kernels.load_state_dict(plain.state_dict())
    return plain, kernels


def test_a_whole_search_network_equals_the_plain_one():
    images, labels = torch.randn(4, 3, 9, 8).double(), torch.randint(5, (4,))
    results = []
    for network in search_networks(dropout_on_reduce=True):
        network.set_skip_dropout(0.4)
        network.dropout_generator = torch.Generator().manual_seed(0)
        results.append(train_step(network, images, labels))
    results[0] = {name: tensor for name, tensor in results[0].items() if name in results[1]}
    assert_equal_results(*results)


def test_cells_may_have_mixing_weights_of_their_own():
    plain, kernels = search_networks(cells=4)
    images = torch.randn(2, 3, 8, 8).double()
    outputs = []
    for network in (plain, kernels):
        torch.manual_seed(1)
        mixing = [torch.rand_like(weights) for weights in network.spread(network.mixing())]
        outputs.append(network(images, mixing))
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_a_whole_evaluation_network_equals_the_plain_one(stem):
    rng = random.Random(3)
    genotype = Genotype(random_genotype(rng), random_genotype(rng))
    config = NetworkConfig(4, 5, 5, 16 if stem == "cifar" else 64, stem)
    results = []
    for evaluation in ("plain", "kernels"):
        torch.manual_seed(0)
        network = EvalNetwork(genotype, config).double()
        network.evaluation = evaluation
        network.set_drop_path(0.3)
        network.drop_path_generator = torch.Generator().manual_seed(0)
        torch.manual_seed(1)
        results.append(
            train_step(network, torch.randn(3, 3, config.image_size, config.image_size).double(), torch.tensor([0, 1, 2]))
        )
    assert_equal_results(*results)


def test_two_forwards_before_a_backward_do_not_disturb_each_other():
    plain, kernels = search_networks()
    first, second = torch.randn(2, 3, 8, 8).double(), torch.randn(3, 3, 8, 8).double()
    grads = []
    for network in (plain, kernels):
        outputs = network(first).square().sum(), network(second).square().sum()
        grads.append([torch.autograd.grad(output, network.arch_parameters()) for output in outputs])
    for expected, actual in zip(*grads, strict=True):
        for one, other in zip(expected, actual, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-12)


def test_backward_twice_through_a_retained_graph_gives_the_same():
    _, kernels = search_networks()
    output = kernels(torch.randn(2, 3, 8, 8).double()).square().sum()
    first, second = (torch.autograd.grad(output, kernels.weight_parameters(), retain_graph=True) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_step_is_the_same_to_the_last_bit_every_time(threads):
    results = []
    usual = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for _ in range(2):
            torch.manual_seed(0)
            network = Supernet(SearchSpace.full(), 3, 4, 5, evaluation="kernels")
            results.append(train_step(network, torch.randn(4, 3, 16, 16), torch.randint(5, (4,))))
    finally:
        torch.set_num_threads(usual)
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_recompute_gives_the_same_bits():
    results = []
    for recompute in (False, True):
        torch.manual_seed(0)
        network = Supernet(SearchSpace.full(), 3, 4, 5, evaluation="kernels", recompute=recompute)
        results.append(train_step(network, torch.randn(4, 3, 16, 16), torch.randint(5, (4,))))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_single_precision_is_as_close_to_the_truth_as_the_plain_cells_are():
    plain, kernels = search_networks()
    images, labels = torch.randn(8, 3, 16, 16), torch.randint(5, (8,))
    truth = train_step(plain, images.double(), labels)
    errors = []
    for network in (plain, kernels):
        network.zero_grad()
        found = train_step(network.float(), images, labels)
        errors.append(
            max(float((found[n] - truth[n]).norm() / truth[n].norm()) for n in ("loss", "alphas_normal", "alphas_reduce"))
        )
    assert errors[1] < 10 * errors[0] + 1e-6


def test_not_a_number_is_not_hidden():
    _, kernels = search_networks()
    images = torch.randn(2, 3, 8, 8).double()
    images[0, 0, 0, 0] = torch.nan
    assert kernels(images).isnan().all()


def test_a_second_order_gradient_is_refused_in_one_line():
    _, kernels = search_networks()
    loss = kernels(torch.randn(2, 3, 8, 8).double()).square().sum()
    with pytest.raises(RuntimeError, match="first-order only"):
        torch.autograd.grad(loss, kernels.arch_parameters(), create_graph=True)


def test_sizes_are_checked_before_an_address_is_passed():
    torch.manual_seed(0)
    cell = Cell(SearchSpace.full().normal, 12, 16, 4, False, False).double()
    before2, before1 = torch.randn(1, 2, 6, 6, 12).double(), torch.randn(4, 2, 6, 6, 4).double()
    mixing = torch.rand(14, 8).double()
    masks = torch.ones(14, 2, 4, 6, 6, dtype=torch.bool)
    cell.by_kernels(before2, before1, mixing, Dropout(masks, 0.5))
    for wrong, message in (
        ((before2[..., :8], before1, mixing, masks), "input 0"),
        ((before2, before1[:, :1], mixing, masks), "input 0"),
        ((before2, before1[:3], mixing, masks), "input 1"),
        ((before2[:, :, :5], before1, mixing, masks), "input 0"),
        ((before2, before1.float(), mixing, masks), "parameter|input"),
        ((before2, before1, mixing[:5], masks), "mixing"),
        ((before2, before1, mixing.float(), masks), "mixing"),
        ((before2, before1, mixing, masks[:3]), "masks"),
        ((before2, before1, mixing, masks[..., :5]), "masks"),
        ((before2, before1, mixing, masks.double()), "masks"),
        ((before2[:, :1, :1, :1], before1[:, :1, :1, :1], mixing, masks[:, :1, :, :1, :1]), "single pixel"),
    ):
        with pytest.raises(ValueError, match=message):
            cell.by_kernels(*wrong[:3], Dropout(wrong[3], 0.5))


def test_inputs_that_are_parts_of_other_tensors_are_read_as_they_are():
    torch.manual_seed(0)
    cell = Cell(SearchSpace.full().normal, 12, 16, 4, False, False).double().eval()
    before2, before1 = torch.randn(1, 4, 6, 6, 12).double(), torch.randn(4, 6, 6, 4, 4).double().permute(0, 3, 1, 2, 4)
    mixing = torch.rand(14, 8).double()
    expected = cell(joined(before2[:, 1:3]), joined(before1[:, 1:3]), mixing)
    actual = joined(cell.by_kernels(before2[:, 1:3], before1[:, 1:3], mixing))
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)
