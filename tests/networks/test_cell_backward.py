"""The fast evaluation of the search network computes what the plain one does, in float64 to 1e-9."""

import random
import statistics

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812

from pdarts_tune.networks import cell_layout, cell_state
from pdarts_tune.networks.supernet import Supernet
from pdarts_tune.pdarts.space import EDGES, PRIMITIVES, SearchSpace

# Both sides of each threshold: elements of a small image, channels that are few.
LAYOUTS = {"large images": (0, 0), "small images": (2**40, 0), "few channels": (2**40, 2**40)}


@pytest.fixture(params=LAYOUTS)
def layout(request, monkeypatch):
    small, narrow = LAYOUTS[request.param]
    monkeypatch.setattr(cell_state, "SMALL", small)
    monkeypatch.setattr(cell_layout, "NARROW", narrow)


def random_space(rng: random.Random, share: float) -> SearchSpace:
    def cell():
        return tuple(tuple(name for name in PRIMITIVES if rng.random() < share) or (rng.choice(PRIMITIVES),) for _ in EDGES)

    return SearchSpace(cell(), cell())


def random_mixing(rng: random.Random, network: Supernet, kind: str):
    """Softmax of the alphas, or given weights of which many are zero, or one operation per edge."""
    if kind == "softmax":
        return None
    weights = []
    for kept in (network.kept_normal, network.kept_reduce):
        mixing = torch.zeros(kept.shape, dtype=torch.float64)
        for edge, row in enumerate(kept):
            for operation in range(int(row.sum())):
                if kind == "sparse" and rng.random() < 0.5:
                    mixing[edge, operation] = rng.uniform(-1, 1)
            if kind == "one-hot":
                mixing[edge, rng.randrange(int(row.sum()))] = 1.0
        weights.append(mixing.requires_grad_())
    return weights[0], weights[1]


def evaluate(network: Supernet, images, labels, mixing):
    """The loss, and every gradient and running statistic by name."""
    loss = F.cross_entropy(network(images, mixing), labels)
    loss.backward()
    results = {"loss": loss.detach()}
    for name, parameter in network.named_parameters():
        results[name] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    results.update(network.named_buffers())
    for name, weights in zip(("normal", "reduce"), mixing or (), strict=bool(mixing)):
        results[f"mixing {name}"] = weights.grad
        weights.grad = None
    return results


def assert_equal_results(plain, fast):
    assert plain.keys() == fast.keys()
    for name, expected in plain.items():
        scale = float(expected.abs().max()) if expected.dtype == torch.float64 else 0.0
        torch.testing.assert_close(fast[name], expected, rtol=1e-9, atol=1e-9 * scale + 1e-12, msg=lambda m, n=name: f"{n}: {m}")


def pair(space, seed, recompute=False):
    torch.manual_seed(seed)
    plain = Supernet(space, 3, 4, 5, evaluation="plain", alpha_init_scale=1.0).double()
    fast = Supernet(space, 3, 4, 5, recompute=recompute).double()
    fast.load_state_dict(plain.state_dict())
    return plain, fast


@pytest.mark.usefixtures("layout")
@given(
    seed=st.integers(0, 10**6),
    share=st.sampled_from([0.2, 0.5, 1.0]),
    size=st.tuples(st.integers(5, 9), st.integers(5, 9)),
    training=st.booleans(),
    rate=st.sampled_from([0.0, 0.4]),
    kind=st.sampled_from(["softmax", "sparse", "one-hot"]),
    recompute=st.booleans(),
)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
def test_every_gradient_and_statistic_equals_the_plain_evaluation(seed, share, size, training, rate, kind, recompute):
    rng = random.Random(seed)
    networks = pair(random_space(rng, share), seed, recompute)
    images, labels = torch.randn(4, 3, *size).double(), torch.randint(5, (4,))
    mixing = random_mixing(rng, networks[0], kind)
    results = []
    for network in networks:
        network.set_skip_dropout(rate)
        network.dropout_generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            network(images)  # so that running statistics are not those of a new network
        results.append(evaluate(network.train(training), images, labels, mixing))
    assert_equal_results(*results)


@pytest.mark.usefixtures("layout")
def test_running_statistics_that_differ_between_edges_are_used():
    plain, fast = pair(SearchSpace.full(), 0)
    for name, buffer in plain.named_buffers():
        if "running" in name:
            buffer.copy_(torch.rand_like(buffer) + 0.5)
    fast.load_state_dict(plain.state_dict())
    images, labels = torch.randn(4, 3, 8, 8).double(), torch.randint(5, (4,))
    assert_equal_results(*(evaluate(network.eval(), images, labels, None) for network in (plain, fast)))


def test_a_second_order_gradient_is_refused_in_one_line():
    _, fast = pair(SearchSpace.full(), 0)
    loss = fast(torch.randn(4, 3, 8, 8).double()).square().sum()
    with pytest.raises(RuntimeError, match=r"first-order only.*evaluation='plain'"):
        torch.autograd.grad(loss, fast.arch_parameters(), create_graph=True)


def test_the_plain_evaluation_serves_second_order():
    plain, _ = pair(SearchSpace.full(), 0)
    loss = plain(torch.randn(4, 3, 8, 8).double()).square().sum()
    (first,) = torch.autograd.grad(loss, [plain.alphas_normal], create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), [plain.alphas_reduce])
    assert second.any()


def test_a_step_is_the_same_to_the_last_bit_every_time():
    torch.use_deterministic_algorithms(True)
    try:
        results = []
        for _ in range(2):
            torch.manual_seed(0)
            network = Supernet(SearchSpace.full(), 3, 4, 10)
            network.set_skip_dropout(0.4)
            network.dropout_generator = torch.Generator().manual_seed(0)
            images, labels = torch.randn(8, 3, 16, 16), torch.randint(10, (8,))
            results.append(evaluate(network, images, labels, None))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_mixed_precision_trains_and_stays_close_to_single_precision():
    torch.manual_seed(0)
    network = Supernet(SearchSpace.full(), 3, 4, 10)
    images, labels = torch.randn(8, 3, 16, 16), torch.randint(10, (8,))
    single = network(images)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = network(images)
        F.cross_entropy(mixed, labels).backward()
    torch.testing.assert_close(mixed.float(), single, atol=0.05, rtol=0.05)
    assert all(torch.isfinite(parameter.grad).all() for parameter in network.parameters() if parameter.grad is not None)


def test_single_precision_agrees_within_rounding():
    """Seldom rounding carries one value across zero, where a ReLU has a kink, in either evaluation: hence medians."""
    errors = {"plain": [], "fast": []}
    for seed in range(5):
        networks = pair(SearchSpace.full(), seed)
        torch.manual_seed(seed)
        images, labels = torch.randn(8, 3, 16, 16), torch.randint(5, (8,))
        truth = evaluate(networks[0], images.double(), labels, None)
        for network in networks:
            network.zero_grad()
            network.float()
            results = evaluate(network, images, labels, None)
            errors[network.evaluation].append(
                max(float((results[n] - truth[n]).norm() / truth[n].norm()) for n in ("loss", "alphas_normal", "alphas_reduce"))
            )
    assert statistics.median(errors["fast"]) < 10 * statistics.median(errors["plain"])
