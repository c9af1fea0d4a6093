import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from pdarts_tune.networks.supernet import Supernet
from pdarts_tune.pdarts.space import SearchSpace
from pdarts_tune.search.steps import Unrolled, frozen_statistics, mixed_product, unrolled_gradient


class Mixture(nn.Module):
    """A tiny network with alphas: a softmax-weighted sum of three smooth branches."""

    def __init__(self):
        super().__init__()
        self.branches = nn.ModuleList(nn.Linear(4, 5) for _ in range(3))
        self.head = nn.Linear(5, 3)
        self.alphas = nn.Parameter(torch.randn(3))

    def weights(self):
        return [p for name, p in self.named_parameters() if name != "alphas"]

    def forward(self, x):
        mixing = self.alphas.softmax(0)
        return self.head(sum(w * torch.tanh(branch(x)) for w, branch in zip(mixing, self.branches, strict=True)))


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    network = Mixture().double()
    batches = [(torch.randn(8, 4, dtype=torch.float64), torch.randint(3, (8,))) for _ in range(2)]
    train, validation = (lambda batch=batch: cross_entropy(network(batch[0]), batch[1]) for batch in batches)
    return network, train, validation


def dense_mixed(loss, weights, alphas):
    """The matrix of second derivatives, a row per alpha and a column per weight."""
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss(), alphas, create_graph=True)])
    return torch.stack([torch.cat([g.flatten() for g in torch.autograd.grad(e, weights, retain_graph=True)]) for e in gradient])


def test_the_finite_difference_equals_the_dense_hessians_product(tiny):
    """At the paper's step, epsilon = 0.01 / norm, and below."""
    network, train, _ = tiny
    weights, alphas = network.weights(), [network.alphas]
    vector = [torch.randn_like(weight) for weight in weights]
    exact = dense_mixed(train, weights, alphas) @ torch.cat([part.flatten() for part in vector])
    before = [weight.detach().clone() for weight in weights]
    for distance in (1e-2, 1e-3):
        (product,) = mixed_product(train, weights, alphas, vector, distance)
        assert (product - exact).norm() / exact.norm() < 1e-4
    assert all(torch.equal(a, b) for a, b in zip(before, weights, strict=True))


def test_the_product_with_zero_is_zero(tiny):
    network, train, _ = tiny
    weights = network.weights()
    (product,) = mixed_product(train, weights, [network.alphas], [torch.zeros_like(w) for w in weights], 0.01)
    assert product.abs().max() == 0


def test_the_unrolled_gradient_is_that_of_the_loss_after_one_step(tiny):
    """Against autograd through the step itself, which has no finite difference in it."""
    network, train, validation = tiny
    weights, names = network.weights(), [name for name, _ in network.named_parameters() if name != "alphas"]
    rate, decay = 0.1, 0.01
    (found,) = unrolled_gradient(
        train, validation, weights, [network.alphas], lambda g: [a + decay * w for a, w in zip(g, weights, strict=True)], rate, 1e-3
    )
    gradients = torch.autograd.grad(train(), weights, create_graph=True)
    stepped = {n: w - rate * (g + decay * w) for n, w, g in zip(names, weights, gradients, strict=True)}
    (images, labels) = validation.__defaults__[0]
    logits = torch.func.functional_call(network, stepped, (images,))
    (exact,) = torch.autograd.grad(cross_entropy(logits, labels), [network.alphas])
    assert (found - exact).norm() / exact.norm() < 1e-4


def test_the_product_on_a_search_network_equals_differentiating_twice():
    """With ReLUs and max pools, whose kinks ask for a small step: 1e-6 in float64."""
    torch.manual_seed(0)
    network = Supernet(SearchSpace.full(), 3, 2, 3, 1, evaluation="plain").double()
    images, labels = torch.randn(6, 1, 8, 8, dtype=torch.float64), torch.randint(3, (6,))
    weights, alphas = network.weight_parameters(), network.arch_parameters()
    vector = [torch.randn_like(weight) for weight in weights]

    def loss():
        return cross_entropy(network(images), labels)

    gradients = torch.autograd.grad(loss(), weights, create_graph=True)
    inner = sum((g * v).sum() for g, v in zip(gradients, vector, strict=True))
    exact = torch.cat([g.flatten() for g in torch.autograd.grad(inner, alphas)])
    network.evaluation = "kernels"  # what searches use on a CPU
    found = torch.cat([g.flatten() for g in mixed_product(loss, weights, alphas, vector, 1e-6)])
    assert (found - exact).norm() / exact.norm() < 1e-4


def test_frozen_statistics_stay():
    torch.manual_seed(0)
    network = Supernet(SearchSpace.full(), 3, 2, 3, 1)
    before = {name: buffer.clone() for name, buffer in network.named_buffers() if "running" in name}
    with frozen_statistics(network):
        network(torch.randn(4, 1, 8, 8))
    assert all(torch.equal(before[name], buffer) for name, buffer in network.named_buffers() if "running" in name)
    network(torch.randn(4, 1, 8, 8))
    assert not all(torch.equal(before[name], buffer) for name, buffer in network.named_buffers() if "running" in name)


class Launches(TorchDispatchMode):
    """Counts the operators outside of passes forward and back."""

    def __init__(self):
        super().__init__()
        self.count = 0
        self.within = False

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.count += not self.within
        return operator(*args, **(kwargs or {}))

    def passing(self, function):
        def run(*args, **kwargs):
            before, self.within = self.within, True
            try:
                return function(*args, **kwargs)
            finally:
                self.within = before

        return run


def second_order_launches(weights, monkeypatch):
    """Of the bookkeeping of a second-order step of the alphas, with so many tensors of weights."""
    parameters = [nn.Parameter(torch.randn(3)) for _ in range(weights)]
    alphas = [nn.Parameter(torch.randn(2))]
    optimizer = torch.optim.SGD(parameters, 0.1, momentum=0.9, weight_decay=0.01, fused=True)
    for parameter in parameters:
        parameter.grad = torch.randn(3)
    optimizer.step()  # makes the momenta
    steps = Unrolled.__new__(Unrolled)
    steps.weights, steps.weight_optimizer = parameters, optimizer
    launches = Launches()
    loss = launches.passing(lambda: (torch.cat(parameters).square().sum() * alphas[0]).sum().sin())
    grad = torch.autograd.grad
    with monkeypatch.context() as patch, launches:
        patch.setattr(torch.autograd, "grad", launches.passing(grad))
        unrolled_gradient(loss, loss, parameters, alphas, steps._update, 0.1, 0.01)
    return launches.count


def test_second_order_launches_as_many_operators_for_nine_hundred_weights_as_for_nine(monkeypatch):
    few, many = second_order_launches(9, monkeypatch), second_order_launches(900, monkeypatch)
    views = 2 * 891 * 2  # `detach`, which launches nothing
    assert many - few <= views
    assert few - 9 * 4 < 60
