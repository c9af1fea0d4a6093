import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from pdarts_tune.networks.partial_channels import PartialSupernet
from pdarts_tune.networks.supernet import Supernet
from pdarts_tune.pdarts.genotype import CellGenotype, Genotype
from pdarts_tune.pdarts.space import SearchSpace
from pdarts_tune.search.diagnostics import (
    alpha_eigenvalue,
    cell_gradients,
    count_operations,
    has_collapsed,
    has_sharpened,
    hessian_product,
    largest_eigenvalue,
    mean_cosine,
    measure_agreement,
    measure_probabilities,
)

IMAGES = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 3] * 2)


def cell(*operations):
    return CellGenotype(tuple((name, index % 2) for index, name in enumerate(operations)))


def build(cells=5, **settings):
    torch.manual_seed(0)
    return Supernet(SearchSpace.full(), cells, 2, 4, 1, **settings)


def test_probabilities_are_measured():
    edge = {"none": 0.5, "skip_connect": 0.3, "sep_conv_3x3": 0.2}
    genotype = Genotype(cell(*["skip_connect"] * 5, *["sep_conv_3x3"] * 3), cell(*["max_pool_3x3"] * 8))
    found = measure_probabilities({"normal": [edge] * 14, "reduce": [{"max_pool_3x3": 1.0}] * 14}, genotype)
    assert found["normal_skip_count"] == 5
    assert found["normal_sep_conv_3x3_count"] == 3
    assert found["reduce_max_pool_3x3_count"] == 8
    assert found["normal_skip_mass"] == pytest.approx(0.3)
    assert found["reduce_skip_mass"] == 0
    assert found["alpha_entropy"] == pytest.approx(-(0.5 * math.log(0.5) + 0.3 * math.log(0.3) + 0.2 * math.log(0.2)) / 2)
    assert found["alpha_margin"] == pytest.approx(0.2)  # edges without a choice have none
    assert found["collapsed"] is True
    assert sum(count_operations(genotype.normal).values()) == 8


def test_a_cell_has_collapsed_with_more_than_half_of_skip_connects():
    for skips, collapsed in ((4, False), (5, True)):
        assert has_collapsed(cell(*["skip_connect"] * skips, *["sep_conv_3x3"] * (8 - skips))) is collapsed


def test_a_search_has_sharpened_when_the_mean_of_five_epochs_grows_by_more_than_the_ratio():
    assert not has_sharpened([1.0] * 5 + [9.0] * 4, 1.3)  # too few epochs
    assert has_sharpened([1.0] * 5 + [1.31] * 5, 1.3)
    assert not has_sharpened([1.0] * 5 + [1.29] * 5, 1.3)
    assert not has_sharpened([-1.0] * 5 + [5.0] * 5, 1.3)
    assert not has_sharpened([1.0] * 5 + [9.0] * 5 + [9.0] * 5, 1.3)  # long ago


def test_agreement_is_one_when_all_cells_agree():
    gradient = torch.randn(50)
    assert mean_cosine(torch.stack([gradient, 2 * gradient, 0.1 * gradient])) == pytest.approx(1.0, abs=1e-6)
    assert mean_cosine(torch.stack([gradient, -gradient])) == pytest.approx(-1.0, abs=1e-6)
    assert mean_cosine(torch.eye(3)) == pytest.approx(0.0, abs=1e-6)
    assert mean_cosine(gradient[None]) is None


def test_the_mean_cosine_is_that_of_all_pairs():
    gradients = torch.randn(4, 20, generator=torch.Generator().manual_seed(0))
    pairs = [torch.cosine_similarity(gradients[i], gradients[j], dim=0).item() for i in range(4) for j in range(i)]
    assert mean_cosine(gradients) == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)


@pytest.mark.parametrize("partial", [False, True])
def test_the_cells_gradients_add_up_to_the_alphas_gradient(partial):
    torch.manual_seed(0)
    network = PartialSupernet(SearchSpace.full(), 5, 2, 4, 1, share=2, edge_normalization=True) if partial else build()
    normal, reduce = cell_gradients(network, IMAGES, LABELS)
    assert (len(normal), len(reduce)) == (3, 2)
    parameters = network.arch_parameters()
    whole = torch.autograd.grad(cross_entropy(network(IMAGES), LABELS), parameters)
    for found, of_type in ((normal, whole[0::2]), (reduce, whole[1::2])):
        assert torch.allclose(found.sum(dim=0), torch.cat([part.flatten() for part in of_type]), rtol=1e-3, atol=1e-6)


class Linear(Supernet):
    """Each cell adds the same linear function of its mixing weights to the logits, times a factor of its own."""

    factors = (1.0, 1.0, 1.0, 1.0, 1.0)

    def forward(self, images, mixing=None):
        direction = torch.randn(14, 8, 4, generator=torch.Generator().manual_seed(1))
        weights = self.spread(self.mixing()) if mixing is None else mixing
        logits = sum(f * torch.einsum("eo,eoc->c", w, direction) for f, w in zip(self.factors, weights, strict=True))
        return logits.expand(len(images), -1)


@pytest.mark.parametrize(
    ("factors", "expected"),
    [
        ((1.0,) * 5, (1.0, 1.0, 1.0)),
        ((3.0, 0.1, 1.0, 0.5, 2.0), (1.0, 1.0, 1.0)),
        ((1.0, 1.0, 1.0, -1.0, -1.0), (-1 / 3, -1.0, -1.0)),
    ],
)
def test_cells_that_agree_have_an_agreement_of_one(factors, expected):
    """Normal cells are 0, 2 and 4, reduction cells 1 and 3."""
    torch.manual_seed(0)
    network = Linear(SearchSpace.full(), 5, 2, 4, 1)
    network.factors = factors
    measured = measure_agreement(network, IMAGES, LABELS)
    assert tuple(measured.values()) == pytest.approx(expected, abs=1e-5)


def test_agreement_is_within_bounds_and_absent_where_there_is_no_pair():
    assert all(-1 <= value <= 1 for value in measure_agreement(build(), IMAGES, LABELS).values())
    alone = measure_agreement(build(cells=3), IMAGES, LABELS)
    assert alone["normal_agreement"] is alone["normal_first_last"] is None


def test_the_largest_eigenvalue_is_numpys():
    rng = np.random.default_rng(0)
    for size in (1, 2, 20, 200):
        matrix = rng.standard_normal((size, size))
        matrix = matrix + matrix.T + (np.diag([50.0] + [0.0] * (size - 1)) if size == 200 else 0)
        dense = torch.from_numpy(matrix)
        found = largest_eigenvalue(lambda vector, dense=dense: dense @ vector, torch.from_numpy(rng.standard_normal(size)))
        assert found == pytest.approx(np.linalg.eigvalsh(matrix)[-1], rel=2e-4)


def test_a_zero_matrix_has_eigenvalue_zero():
    assert largest_eigenvalue(torch.zeros_like, torch.ones(5)) == 0


def test_the_eigenvalue_of_a_search_networks_hessian_is_numpys():
    """Against numpy on the dense Hessian of all 84 alphas; the estimate works in float32 and from 30 products at most."""
    torch.manual_seed(0)
    edge = ("max_pool_3x3", "skip_connect", "sep_conv_3x3")
    network = Supernet(SearchSpace((edge,) * 14, (edge,) * 14), 3, 2, 4, 1)
    found = alpha_eigenvalue(network, IMAGES, LABELS, seed=0)
    assert network.evaluation == "auto"
    network.double()
    network.evaluation = "plain"
    product, size = hessian_product(lambda: cross_entropy(network(IMAGES.double()), LABELS), network.arch_parameters())
    dense = torch.stack([product(row) for row in torch.eye(size, dtype=torch.float64)])
    assert torch.allclose(dense, dense.t(), atol=1e-10)
    assert found == pytest.approx(np.linalg.eigvalsh(dense.numpy())[-1], rel=1e-3)
    assert size == 2 * 14 * 3
