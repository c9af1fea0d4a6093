"""Augmentation as pure functions of a batch of images on its device; all randomness comes from an explicit generator.

The generator may be on the CPU or on the images' device. Images are normalised, so the zeros that fill gaps are the mean colour.

Where several processes share a batch, each has some of its images: `place` is where they start in the batch, and how many the batch
has. Draws are made for all of them, so that an image gets what it would get in one process.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (the name that every PyTorch user knows)

Place = tuple[int, int]


def shift(images: Tensor, pad: int, generator: torch.Generator, place: Place | None = None) -> Tensor:
    """Moves each image by up to `pad` pixels each way and fills with zeros: pad, then crop at random. (N, C, H, W) to the same."""
    count, _, height, width = images.shape
    top, left = (_uniform(2 * pad + 1, images, generator, place) for _ in range(2))
    # Every crop that could be drawn, as a view; taking one of each image then copies whole rows.
    windows = F.pad(images, (pad,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(count, device=images.device), :, top, left]


def flip(images: Tensor, generator: torch.Generator, place: Place | None = None) -> Tensor:
    """Mirrors each image left to right with probability one half. (N, C, H, W) to the same."""
    mirrored = _uniform(2, images, generator, place).view(-1, 1, 1, 1) == 1
    return torch.where(mirrored, images.flip(-1), images)


def cutout(images: Tensor, size: int, generator: torch.Generator, place: Place | None = None) -> Tensor:
    """Zeroes a square of `size` pixels in each image, its centre anywhere, cut off at the border (DeVries & Taylor, 2017)."""
    height, width = images.shape[2:]
    top = _uniform(height, images, generator, place)[:, None] - size // 2
    left = _uniform(width, images, generator, place)[:, None] - size // 2
    rows = torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device)
    in_rows = (rows >= top) & (rows < top + size)
    in_columns = (columns >= left) & (columns < left + size)
    hole = in_rows[:, None, :, None] & in_columns[:, None, None, :]
    return images.masked_fill(hole, 0.0)


def _uniform(high: int, images: Tensor, generator: torch.Generator, place: Place | None) -> Tensor:
    """A whole number below `high` for each image, int64 (N,)."""
    start, total = place or (0, len(images))
    drawn = torch.randint(high, (total,), generator=generator, device=generator.device)
    return drawn[start : start + len(images)].to(images.device)
