"""Each remedy against its formula, and through the stage loop: stopped and continued to the same bits."""

import io
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from pdarts_tune.config.execution import Execution
from pdarts_tune.config.remedies import (
    AuxiliarySkip,
    BetaDecay,
    DropPath,
    FrozenOperations,
    IndependentWeights,
    PerturbedAlphas,
    StopAtSkips,
)
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.networks.build import build_network, build_optimizers
from pdarts_tune.networks.kernels.build import missing
from pdarts_tune.networks.supernet import Dropout, Supernet
from pdarts_tune.pdarts.genotype import CellGenotype, Genotype, sigmoid
from pdarts_tune.pdarts.progressive_depth import Stage
from pdarts_tune.pdarts.space import EDGES, SearchSpace
from pdarts_tune.search import loop
from pdarts_tune.search.loop import Search
from pdarts_tune.search.records import Choice
from pdarts_tune.search.remedies import Freezer, alpha_decay, attack, disturb, project, scheduled, zero_one_loss
from pdarts_tune.search.steps import build_steps

CPU = torch.device("cpu")
SHORT = SearchConfig(
    stages=(Stage(3, 8, 0.3, epochs=2, warmup_epochs=0), Stage(4, 3, 0.5, epochs=2, warmup_epochs=1)),
    data="digits",
    train_images=60,
    validation_fraction=0.2,
    channels=2,
    batch_size=6,
    alpha_learning_rate=0.01,
)
UNEVEN = SearchSpace(  # edges of one to three operations, so that alphas have padding
    tuple((("none", "skip_connect", "sep_conv_3x3")[: 1 + edge % 3]) for edge in range(14)),
    tuple((("max_pool_3x3", "skip_connect", "dil_conv_3x3")[: 1 + (edge + 1) % 3]) for edge in range(14)),
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small(space=UNEVEN, **settings):
    torch.manual_seed(3)
    network = Supernet(space, 3, 2, 4, 1, alpha_init_scale=1.0, **{"evaluation": "plain"} | settings)
    return network.double(), torch.randn(6, 1, 8, 8, dtype=torch.float64), torch.arange(6) % 4


def gradients(network, images, labels):
    network.zero_grad()
    cross_entropy(network(images), labels).backward()
    return {name: parameter.grad for name, parameter in network.named_parameters()}


def test_schedules_are_linear_from_the_first_epoch_of_a_stage_to_the_last():
    assert [scheduled(1.0, 0.0, epoch, 5) for epoch in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert scheduled(0.03, 0.3, 24, 25) == pytest.approx(0.3)


def test_beta_decays_gradient_is_the_softmax_over_the_number_of_edges():
    network, _, _ = small()
    alpha_decay(network).backward()
    for alphas, weights in zip(network.arch_parameters(), network.operation_weights(), strict=True):
        assert torch.allclose(alphas.grad, weights / 28)


def test_an_auxiliary_skip_of_weight_zero_changes_nothing():
    network, images, labels = small(auxiliary_skip=True)
    plain, _, _ = small()
    assert torch.equal(network(images), plain(images))
    before, after = gradients(plain, images, labels), gradients(network, images, labels)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_auxiliary_skip_of_weight_one_is_one_more_skip_connect():
    """Against a network whose edges offer max pools or nothing, and a skip-connect of weight one beside them."""
    bare, more = (SearchSpace((names,) * 14, (names,) * 14) for names in (("max_pool_3x3",), ("max_pool_3x3", "skip_connect")))
    network, images, _ = small(bare, auxiliary_skip=True)
    network.auxiliary_weight = 1.0
    twin, _, _ = small(more)
    renamed = {}
    for name, tensor in network.state_dict().items():
        before, is_auxiliary, after = name.partition(".auxiliary.")
        edge, _, rest = after.partition(".")
        renamed[f"{before}.edges.{edge}.skip_connect.{rest}" if is_auxiliary else name] = tensor
    twin.load_state_dict({name: tensor for name, tensor in renamed.items() if not name.startswith("alphas_")}, strict=False)
    ones = torch.ones(14, 2, dtype=torch.float64)
    assert torch.allclose(network(images), twin(images, (ones, ones)), rtol=1e-12)
    assert torch.equal(network.mixing()[0], ones)


@pytest.mark.skipif(missing() is not None, reason="no C compiler")
@pytest.mark.parametrize("recompute", [False, True])
def test_kernels_compute_auxiliary_skips_independent_weights_and_drop_path_as_plain_cells_do(recompute):
    results = []
    for evaluation in ("plain", "kernels"):
        network, images, labels = small(
            SearchSpace.full(), auxiliary_skip=True, independent=True, evaluation=evaluation, recompute=recompute
        )
        network.auxiliary_weight, network.drop_path = 0.7, 0.4
        network.set_skip_dropout(0.3)
        network.path_generator, network.dropout_generator = (torch.Generator().manual_seed(seed) for seed in (1, 2))
        results.append(gradients(network, images, labels))
    plain, kernels = results
    assert plain.keys() == kernels.keys()
    for name, gradient in plain.items():
        assert torch.allclose(gradient, kernels[name], rtol=1e-8, atol=1e-12), name


def test_drop_path_drops_paths_of_single_images_and_no_identity():
    only = SearchSpace((("skip_connect",),) * 14, (("max_pool_3x3",),) * 14)
    network, images, _ = small(only)
    untouched = network(images)
    network.drop_path, network.path_generator = 0.5, torch.Generator().manual_seed(0)
    factors = network._path_factors(network.cells[1], 1000)
    assert set(factors.unique().tolist()) == {0.0, 2.0}
    assert factors.mean() == pytest.approx(1.0, abs=0.05)
    assert not torch.equal(network(images), untouched)  # of the reduction cells' pools
    cell, state = network.cells[0], torch.randn(6, 6, 8, 8, dtype=torch.float64)
    ones = torch.ones(14, 1, dtype=torch.float64)
    dropped = cell(state, state, ones, Dropout(factors=torch.zeros(14, 1, 6, dtype=torch.float64)))
    assert torch.equal(dropped, cell(state, state, ones)) == (not cell.reduction)
    assert torch.equal(network.eval()(images), network(images))


def test_independent_weights_are_sigmoids_and_their_loss_pulls_them_to_zero_or_one():
    network, _, _ = small(independent=True)
    with torch.no_grad():
        for alphas, kept in zip(network.arch_parameters(), (network.kept_normal, network.kept_reduce), strict=True):
            alphas.copy_(torch.where(kept, 0.0, alphas))
        network.alphas_normal[1, :2] = torch.tensor([2.0, -1.0])
    weights = network.mixing()[0]
    assert weights[1].tolist() == pytest.approx([0.880797, 0.268941, 0.0], abs=1e-6)
    assert weights[0].tolist() == [0.5, 0.0, 0.0]
    count = network.kept_normal.sum().item() + network.kept_reduce.sum().item()
    loss = zero_one_loss(network)
    assert loss.item() == pytest.approx(-(0.380797**2 + 0.231059**2) / count, rel=1e-5)
    loss.backward()
    assert network.alphas_normal.grad[1, 0] < 0 < network.alphas_normal.grad[1, 1]  # descent moves both outwards
    assert sigmoid({"none": 2.0, "skip_connect": -1.0}) == pytest.approx({"none": 0.880797, "skip_connect": 0.268941}, abs=1e-6)


def test_disturbed_weights_stay_distributions_within_the_distance():
    network, _, _ = small()
    generator = torch.Generator().manual_seed(0)
    for distance in (0.0, 0.03, 0.3, 1.0):
        for _ in range(20):
            for noisy, weights, kept in zip(
                disturb(network, distance, generator),
                network.operation_weights(),
                (network.kept_normal, network.kept_reduce),
                strict=True,
            ):
                assert (noisy.sum(dim=1) - 1).abs().max() < 1e-6
                assert noisy.min() >= 0
                assert (noisy - weights).abs().max() <= distance + 1e-6
                assert noisy[~kept].abs().max() == 0
    assert not torch.equal(disturb(network, 0.3, generator)[0], disturb(network, 0.3, generator)[0])


def test_a_projection_is_the_nearest_distribution_and_leaves_those_in_the_ball():
    centre, kept = torch.tensor([[0.6, 0.2, 0.2, 0.0]]).double(), torch.tensor([[True, True, True, False]])
    inside = torch.tensor([[0.5, 0.3, 0.2, 0.0]]).double()
    assert torch.allclose(project(inside, centre, kept, 0.2), inside)
    # 0.9, 0.0, 0.4 sum to 1.3, each less 0.1 leaves -0.1, held at 0; then 0.15 each from the others.
    assert torch.allclose(
        project(torch.tensor([[0.9, 0.0, 0.4, 0.0]]).double(), centre, kept, 0.3), torch.tensor([[0.75, 0.0, 0.25, 0.0]]).double()
    )
    # 0.6 less 0.1 is the least that the first place may be; the others share the rest.
    assert torch.allclose(
        project(torch.tensor([[0.0, 0.0, 0.0, 0.0]]).double(), centre, kept, 0.1),
        torch.tensor([[0.5, 0.25, 0.25, 0.0]]).double(),
    )


def test_an_adversarial_disturbance_never_lowers_the_loss_and_beats_random_ones():
    network, images, labels = small(SearchSpace.full())
    network.eval()

    def loss(weights):
        return cross_entropy(network(images, weights), labels)

    generator = torch.Generator().manual_seed(1)
    before = loss(network.operation_weights()).item()
    worst = []
    for distance in (0.03, 0.3):
        weights = attack(network, loss, distance, 7, generator)
        worst.append(loss(weights).item())
        for noisy, own in zip(weights, network.operation_weights(), strict=True):
            assert (noisy - own).abs().max() <= distance + 1e-6
            assert (noisy.sum(dim=1) - 1).abs().max() < 1e-6
    assert before <= worst[0] < worst[1]
    assert worst[1] > max(loss(disturb(network, 0.3, generator)).item() for _ in range(20))
    flat = attack(network, lambda weights: 0 * (weights[0].sum() + weights[1].sum()), 0.3, 7, generator)  # a loss that cannot rise
    assert torch.equal(flat[0], network.operation_weights()[0])


def test_an_operation_is_frozen_exactly_when_its_mean_cosine_is_below_the_threshold():
    network, _, _ = small(SearchSpace((("skip_connect", "sep_conv_3x3"),) * 14, (("max_pool_3x3", "dil_conv_3x3"),) * 14))
    freezer = Freezer(network, FrozenOperations(threshold=0.4, steps=2))
    assert {name.rpartition(".")[2] for name in freezer.operations} == {"sep_conv_3x3", "dil_conv_3x3"}
    names = list(freezer.operations)
    wanted = {names[0]: (0.9, -0.2), names[1]: (0.9, 0.0), names[2]: (0.3, 0.3)}  # means 0.35, 0.45, 0.3
    for step in (0, 1):
        ones, others = [], []
        for name, weights in freezer.operations.items():
            for weight in weights:
                cosine = wanted.get(name, (1.0, 1.0))[step]
                one, other = torch.zeros(2, weight.numel()).double()
                one[0], other[0], other[1] = 5.0, cosine, (1 - cosine**2) ** 0.5
                ones.append(one.view_as(weight))
                others.append(other.view_as(weight))
        assert freezer.observe(ones, others) == (step == 1)
    assert freezer.frozen == {names[0], names[2]}


def test_a_frozen_operation_keeps_its_weights_and_the_others_train():
    config = replace(SHORT, remedies=(FrozenOperations(threshold=0.3, steps=2),), data="digits")
    search = Search(config, CPU)
    epochs = search.epochs()
    next(epochs)
    freezer = search.steps.freezer
    assert 0 < len(freezer.frozen) < len(freezer.operations)
    held = {name: [weight.detach().clone() for weight in freezer.operations[name]] for name in freezer.frozen}
    training = {name: [w.detach().clone() for w in freezer.operations[name]] for name in freezer.operations if name not in held}
    next(epochs)
    for name, weights in held.items():
        assert all(torch.equal(*pair) for pair in zip(weights, freezer.operations[name], strict=True)), name
    assert all(not torch.equal(a, b) for name, old in training.items() for a, b in zip(old, freezer.operations[name], strict=True))


def skips(count):
    """A choice whose normal cell has so many skip-connects."""
    normal = CellGenotype(tuple(("skip_connect" if i < count else "sep_conv_3x3", i % 2) for i in range(8)))
    by_edge = {EDGES.index((source, index // 2)): name for index, (name, source) in enumerate(normal.edges)}
    edges = [{"none": 0.1, by_edge[edge]: 0.9} if edge in by_edge else {"none": 0.9, "max_pool_3x3": 0.1} for edge in range(14)]
    choice = Choice({"normal": edges, "reduce": edges}, {"normal": edges, "reduce": edges}, None)
    assert choice.genotype(8) == Genotype(normal, normal)
    return choice


def test_a_stage_stops_when_the_cell_has_so_many_skips_and_the_epoch_before_counts(monkeypatch):
    config = replace(
        SHORT, stages=(Stage(3, 8, epochs=4, warmup_epochs=1),), remedies=(StopAtSkips(2),), max_skips=8, train_images=24
    )
    search = Search(config, CPU)
    counts = iter((5, 1, 2, 0))  # alphas are frozen in epoch 0
    monkeypatch.setattr(loop.Search, "_choice", lambda _: skips(next(counts)))
    records = list(search.epochs())
    assert [record.derived_epoch for record in records] == [None, None, 1]


REMEDIES = {
    "independent": (IndependentWeights(),),
    "random": (PerturbedAlphas(), BetaDecay()),
    "adversarial": (PerturbedAlphas("adversarial", ascents=2), DropPath(), AuxiliarySkip()),
    "frozen": (FrozenOperations(threshold=0.3, steps=3),),
    "stop": (StopAtSkips(8),),
}


@pytest.mark.parametrize("name", REMEDIES)
def test_a_search_with_a_remedy_continues_to_the_same_bits_and_differs_from_one_without(name):
    config = replace(SHORT, remedies=REMEDIES[name], train_images=36)
    whole = Search(config, CPU)
    file = io.BytesIO()
    for record in whole.epochs():
        if (record.stage, record.epoch) == (1, 0):
            torch.save(whole.state_dict(), file)
    assert [(record.stage, record.epoch) for record in whole.records] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    torch.manual_seed(1)
    resumed = Search(config, CPU)
    resumed.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    list(resumed.epochs())
    ours = resumed.network.state_dict()
    assert all(torch.equal(tensor, ours[key]) for key, tensor in whole.network.state_dict().items())
    assert [r.train_loss for r in resumed.records] == [r.train_loss for r in whole.records]
    plain = Search(replace(config, remedies=()), CPU)
    epochs = plain.epochs()
    next(epochs), next(epochs)
    assert (plain.records[1].alphas == whole.records[1].alphas) == (name == "stop")


def test_the_alphas_own_step_is_undisturbed_and_steps_have_the_formulas_gradients():
    """Beta-decay's step: Adam's first step from the gradient of the cross-entropy plus the factor times softmax / 28."""
    config = replace(SHORT, remedies=(BetaDecay(start=3.0, end=3.0), PerturbedAlphas(start=1.0, end=1.0)), gradient_clip=1e9)
    network = build_network(config, UNEVEN, 3, 4, 1, seed=0).double()
    network.evaluation = "plain"
    images, labels = torch.randn(6, 1, 8, 8, dtype=torch.float64), torch.arange(6) % 4
    cross_entropy(network(images), labels).backward()
    wanted = [a.grad + 3.0 * w.detach() / 28 for a, w in zip(network.arch_parameters(), network.operation_weights(), strict=True)]
    generator = torch.Generator().manual_seed(0)
    steps = build_steps(config, config.stages[0], network, build_optimizers(config, network), 8, generator)
    steps.start_epoch(0)
    steps.train_alphas((images, labels), (images, labels))
    for alphas, gradient in zip(network.arch_parameters(), wanted, strict=True):
        assert torch.allclose(alphas.grad, gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.skipif(missing() is not None, reason="no C compiler")
def test_searches_with_remedies_take_kernels():
    for remedies in REMEDIES.values():
        Search(replace(SHORT, remedies=remedies, execution=Execution(cell_evaluation="kernels")), CPU)
