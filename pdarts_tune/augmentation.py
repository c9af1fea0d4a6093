"""Augmentation as pure functions of a batch of images on its device; all randomness comes from an explicit generator.

The generator may be on the CPU or on the images' device. Images are normalised, so the zeros that fill gaps are the mean colour.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (the name that every PyTorch user knows)


def shift(images: Tensor, pad: int, generator: torch.Generator) -> Tensor:
    """Moves each image by up to `pad` pixels each way and fills with zeros: pad, then crop at random. (N, C, H, W) to the same."""
    count, _, height, width = images.shape
    top, left = _uniform(2 * pad + 1, (2, count), images, generator)
    # Every crop that could be drawn, as a view; taking one of each image then copies whole rows.
    windows = F.pad(images, (pad,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(count, device=images.device), :, top, left]


def flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirrors each image left to right with probability one half. (N, C, H, W) to the same."""
    mirrored = _uniform(2, (len(images), 1, 1, 1), images, generator) == 1
    return torch.where(mirrored, images.flip(-1), images)


def cutout(images: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Zeroes a square of `size` pixels in each image, its centre anywhere, cut off at the border (DeVries & Taylor, 2017)."""
    count, _, height, width = images.shape
    top = _uniform(height, (count, 1), images, generator) - size // 2
    left = _uniform(width, (count, 1), images, generator) - size // 2
    rows = torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device)
    in_rows = (rows >= top) & (rows < top + size)
    in_columns = (columns >= left) & (columns < left + size)
    hole = in_rows[:, None, :, None] & in_columns[:, None, None, :]
    return images.masked_fill(hole, 0.0)


def _uniform(high: int, shape: tuple[int, ...], images: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randint(high, shape, generator=generator, device=generator.device).to(images.device)
