"""How the fast evaluation of a cell lays tensors out in memory.

Images are (batch, channels, height, width) in channels-last memory, so that `rows` sees the same memory as a matrix with a row per
pixel and a 1x1 convolution is a matrix product.

Branches that do the same with different weights stand side by side: K images of C channels are one of K C channels, so a single
depthwise convolution serves all. Their 1x1 convolutions are one batched product over views of the same memory.

Nodes are one tensor (nodes, pixels, channels): a batched product reaches consecutive nodes at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

NARROW = 8  # channels up to which one product with a block-diagonal matrix is faster than a batched one, in spite of its zeros


def rows(images: Tensor) -> Tensor:
    """A row per pixel: (batch * height * width, channels). A view if the images are channels-last."""
    return images.permute(0, 2, 3, 1).reshape(-1, images.shape[1])


def as_images(matrix: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `rows`: a channels-last view with the batch, height and width of `shape`."""
    batch, _, height, width = shape
    return matrix.view(batch, height, width, -1).permute(0, 3, 1, 2)


def channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)


def target_shape(image: Tensor, stride: int) -> torch.Size:
    """The shape of the nodes that an image is read into."""
    batch, channels, height, width = image.shape
    return torch.Size((batch, channels, -(-height // stride), -(-width // stride)))


def even_pixels(images: Tensor) -> Tensor:
    return channels_last(images[:, :, ::2, ::2])


def spread(images: Tensor, shape: torch.Size, offset: int) -> Tensor:
    """The inverse of taking every second pixel from `offset` on: zeros in between. Pixels beyond the image are dropped."""
    out = torch.zeros(shape[0], shape[2], shape[3], shape[1], dtype=images.dtype, device=images.device).permute(0, 3, 1, 2)
    part = out[:, :, offset::2, offset::2]
    part.copy_(images[:, :, : part.shape[2], : part.shape[3]])
    return out


def add_all(tensors: Sequence[Tensor]) -> Tensor:
    """The sum, in the memory of the first."""
    total = tensors[0]
    for tensor in tensors[1:]:
        total = total.add_(tensor)
    return total


def join(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


# ------------------------------------------------------------------------------------------------------ branches side by side


def branches(matrix: Tensor, count: int) -> Tensor:
    """(pixels, K C) as a view (K, pixels, C)."""
    return matrix.view(matrix.shape[0], count, -1).transpose(0, 1)


def repeat(images: Tensor, count: int) -> Tensor:
    """The same image for each of K branches."""
    return images if count == 1 else torch.cat([images] * count, dim=1)


def multiply(matrix: Tensor, weights: Tensor, less: Tensor | None = None) -> Tensor:
    """Each branch's product with a matrix: (pixels, K in) with (K, in, out) less (K, out) is (pixels, K out)."""
    count, width, out = weights.shape
    if count == 1 or width <= NARROW:
        whole = block_diagonal(weights)
        return matrix @ whole if less is None else torch.addmm(less.flatten(), matrix, whole, beta=-1)
    result = matrix.new_empty(matrix.shape[0], count * out)
    if less is None:
        torch.bmm(branches(matrix, count), weights, out=branches(result, count))
    else:
        torch.baddbmm(less.unsqueeze(1), branches(matrix, count), weights, beta=-1, out=branches(result, count))
    return result


def add_multiplied(total: Tensor, matrix: Tensor, weights: Tensor) -> None:
    """Adds to total what `multiply` gives."""
    count, width, _ = weights.shape
    if count == 1 or width <= NARROW:
        total.addmm_(matrix, block_diagonal(weights))
    else:
        branches(total, count).baddbmm_(branches(matrix, count), weights)


def moments(one: Tensor, other: Tensor, count: int) -> Tensor:
    """Each branch's sum over the pixels of the products of two channels: (K, channels of one, channels of the other)."""
    if count == 1 or one.shape[1] // count <= NARROW:
        return diagonal_blocks(one.t() @ other, count)
    return torch.bmm(branches(one, count).mT, branches(other, count))


def block_diagonal(weights: Tensor) -> Tensor:
    """(K, in, out) to (K in, K out)."""
    count, width, out = weights.shape
    if count == 1:
        return weights[0]
    return torch.diag_embed(weights.permute(1, 2, 0), dim1=0, dim2=2).reshape(count * width, count * out)


def diagonal_blocks(matrix: Tensor, count: int) -> Tensor:
    """(K rows, K columns) to (K, rows, columns)."""
    if count == 1:
        return matrix.unsqueeze(0)
    height, width = matrix.shape[0] // count, matrix.shape[1] // count
    return matrix.view(count, height, count, width).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
