"""The candidate operations: shapes, statistics, and what each is made of."""

import pytest
import torch
from torch import nn

from pdarts_tune.networks.operations import OPERATIONS, FactorizedReduce
from pdarts_tune.pdarts.space import PRIMITIVES


def test_every_primitive_is_an_operation():
    assert tuple(OPERATIONS) == PRIMITIVES


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 1)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", PRIMITIVES)
def test_operation_keeps_channels_and_divides_the_image_by_its_stride_rounding_up(name, stride, size, affine):
    images = torch.randn(2, 4, *size)
    out = OPERATIONS[name](4, stride, affine)(images)
    assert out.shape == (2, 4, -(-size[0] // stride), -(-size[1] // stride))


@pytest.mark.parametrize("name", [name for name in PRIMITIVES if name != "none"])
def test_search_operations_have_unit_variance_and_nothing_to_scale_it(name):
    operation = OPERATIONS[name](4, 2, False)
    out = operation(torch.randn(16, 4, 16, 16))
    torch.testing.assert_close(out.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.var(dim=(0, 2, 3)), torch.ones(4), atol=1e-2, rtol=0)
    assert not any(parameter.ndim == 1 for parameter in operation.parameters())


def test_none_adds_nothing_and_skip_connect_changes_nothing():
    images = torch.randn(2, 4, 6, 6)
    assert not OPERATIONS["none"](4, 1, False)(images).any()
    assert OPERATIONS["skip_connect"](4, 1, False)(images) is images


def test_average_pool_counts_pixels_inside_the_image_only():
    assert torch.equal(OPERATIONS["avg_pool_3x3"](4, 1, True)(torch.ones(1, 4, 5, 5)), torch.ones(1, 4, 5, 5))


def test_evaluation_pools_are_bare():
    assert not list(OPERATIONS["max_pool_3x3"](4, 2, True).buffers())


@pytest.mark.parametrize("size", [6, 7])
def test_factorized_reduce_reads_every_pixel(size):
    operation = FactorizedReduce(2, 4, affine=False)
    operation.bn = nn.Identity()
    images = torch.rand(1, 2, size, size, requires_grad=True)
    nn.init.ones_(operation.conv1.weight)
    nn.init.ones_(operation.conv2.weight)
    operation(images).sum().backward()
    on_diagonal = [[row % 2 == column % 2 for column in range(size)] for row in range(size)]
    assert torch.equal(images.grad[0, 0] > 0, torch.tensor(on_diagonal))


def test_factorized_reduce_refuses_an_odd_width():
    with pytest.raises(ValueError, match="out_channels: 5 is odd"):
        FactorizedReduce(4, 5, affine=False)


@pytest.mark.parametrize("channels", [2, 4, 8])
def test_a_factorized_reduction_of_few_channels_is_the_same_in_channels_last_memory(channels):
    # Where oneDNN lacks AVX-512, torch 2.14.1's own strided kernel corrupts memory here and ends the process.
    torch.manual_seed(channels)
    module = FactorizedReduce(channels, channels, affine=False)
    images, weights = torch.randn(8, channels, 8, 8), torch.randn(8, channels, 4, 4)
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        for _ in range(3):
            x = images.clone(memory_format=layout).requires_grad_()
            module.zero_grad()
            out = module(x)
            (out * weights).sum().backward()  # a sum of squares behind batch norm is constant: its gradients are rounding
        found.append((out.detach(), x.grad, module.conv1.weight.grad.clone(), module.conv2.weight.grad.clone()))
    for plain, last in zip(*found, strict=True):
        torch.testing.assert_close(last, plain, rtol=1e-3, atol=1e-4)
