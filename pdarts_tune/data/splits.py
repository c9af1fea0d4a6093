"""Which images a part of a data set has. Every part holds the classes in proportion."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.data.in_memory import ImageSet
from pdarts_tune.data.streaming import StreamedSet

Part = ImageSet | StreamedSet


@dataclass(frozen=True)
class Split:
    """The training images in three parts: for the weights, for the alphas, held out for validation."""

    weights: Part
    alphas: Part
    validation: Part

    @property
    def weights_and_alphas(self) -> Part:
        return self.weights.joined(self.alphas)  # type: ignore[arg-type]  # both are of one kind


def split_train(images: Part, split_seed: int, validation_fraction: float) -> Split:
    """Splits the training images at random, each class in proportion: validation first, then two halves for weights and alphas.

    With `validation_fraction` 0 the validation part *is* the alphas' part, the protocol of DARTS and P-DARTS. Otherwise the three
    parts are disjoint, and together are all images. The same seed gives the same parts.

    Raises:
        ConfigError: there are so few images that a part would be empty, or of one class.
    """
    order = stratified_order(images.labels, torch.Generator().manual_seed(split_seed))
    held_out = round(validation_fraction * len(order))
    half = held_out + (len(order) - held_out + 1) // 2
    parts = [part.sort().values for part in (order[:held_out], order[held_out:half], order[half:])]
    if validation_fraction == 0.0:
        parts[0] = parts[2]
    names = ("validation", "weights", "alphas")
    for reason, least in (("none", 1), ("images of one class alone", 2)):
        for part, name in zip(parts, names, strict=True):
            if len(images.labels[part].unique()) < least:
                raise ConfigError(
                    f"validation_fraction: {validation_fraction} of {len(order)} training images leaves {reason} for {name}; "
                    f"take more images or another fraction"
                )
    validation, weights, alphas = (images.select(part) for part in parts)
    return Split(weights, alphas, validation)


def stratified_order(labels: Tensor, generator: torch.Generator) -> Tensor:
    """A random order, int64 (N,), of which every stretch holds the classes in proportion."""
    shuffled = torch.randperm(len(labels), generator=generator)
    ranks, sizes = _ranks(labels[shuffled].numpy())
    return shuffled[torch.from_numpy(np.argsort((ranks + 0.5) / sizes, kind="stable"))]


def first_of_each_class(labels: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """The rows, ascending, of the first `count` images when the classes take turns."""
    return np.sort(np.argsort(_ranks(labels)[0], kind="stable")[:count])


def _ranks(labels: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each image, how many of its class come before it, and how large its class is."""
    by_class = np.argsort(labels, kind="stable")
    sizes = np.bincount(labels)
    first = np.cumsum(sizes) - sizes
    ranks = np.empty_like(labels)
    ranks[by_class] = np.arange(len(labels)) - first[labels[by_class]]
    return ranks, sizes[labels]
