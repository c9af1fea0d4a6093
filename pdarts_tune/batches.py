"""Batches of a data set on the device: images stay uint8 until they are asked for, then become normalised float32."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pdarts_tune.augmentation import cutout, flip, shift
from pdarts_tune.config import ConfigError
from pdarts_tune.splits import Dataset, Part
from pdarts_tune.workers import Place, Workers


class Batches:
    """One part of a data set, batch by batch on the device, whether its images live there or stream from files.

    Raises:
        ConfigError: a cutout as large as the images, which would blank them.
        ValueError: a cutout without augmentation.
    """

    def __init__(
        self, images: Part, dataset: Dataset, batch_size: int, device: torch.device, *, augment: bool, cutout: int = 0
    ) -> None:
        if cutout >= dataset.image_size:
            raise ConfigError(
                f"cutout: {cutout} would blank {dataset.name}'s images, it must be less than {dataset.image_size} pixels"
            )
        if cutout and not augment:
            raise ValueError(f"cutout: {cutout} is augmentation, and augment is off")
        self.device = device
        self.part = images.to(device)
        self.batch_size = batch_size
        self._augment = augment
        self._cutout = cutout
        self._pad = dataset.pad
        self._flip = dataset.flip
        self._scale = torch.tensor([255.0 * std for std in dataset.std], device=device).view(-1, 1, 1)
        self._offset = torch.tensor([255.0 * mean for mean in dataset.mean], device=device).view(-1, 1, 1)

    def __len__(self) -> int:
        """Batches in an epoch. The last one is smaller if need be, but left out if it were a single image: batch norm
        cannot train on one."""
        whole, rest = divmod(len(self.part), self.batch_size)
        return whole + (rest > 1)

    def epoch(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields (images float32 (B, C, H, W), labels int64 (B,)) once through the part, shuffled, augmented if this part is.

        All randomness comes from the generator, which may be on the CPU or on the images' device: the same state, the same epoch.

        Raises:
            ConfigError: batches of a single image.
        """
        return ((images, labels) for images, labels, _ in self.shared_epoch(generator, Workers()))

    def shared_epoch(self, generator: torch.Generator, workers: Workers) -> Iterator[tuple[Tensor, Tensor, Place]]:
        """The same, each of several processes with its own share of every batch, and where it stands in the batch.

        The shares of a batch put together are the batch that one process would get. No process reads the images of another.
        """
        if self.batch_size == 1 or len(self) == 0:
            raise ConfigError(
                f"batch_size: {self.batch_size} of {len(self.part)} images gives batches of one image, "
                f"batch norm needs at least 2 to train"
            )
        home = self.part.labels.device
        order = torch.randperm(len(self.part), generator=generator, device=generator.device).to(home)
        batches = order.split(self.batch_size)[: len(self)]
        for images, labels, place in self._fetch(batches, generator if self._augment else None, workers):
            if place.total < 2:  # all others of a batch were left out because they are damaged
                continue
            if self._augment:
                where = place.start, place.total
                if self._pad:
                    images = shift(images, self._pad, generator, where)
                if self._flip:
                    images = flip(images, generator, where)
                if self._cutout:
                    images = cutout(images, self._cutout, generator, where)
            yield images, labels, place

    def in_order(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields every image once, in file order and never augmented, in the same form: for validation and test."""
        return ((images, labels) for images, labels, _ in self.shared_in_order(Workers()))

    def shared_in_order(self, workers: Workers) -> Iterator[tuple[Tensor, Tensor, Place]]:
        """The same, each of several processes with its own share of every batch, and where it stands in the batch."""
        order = torch.arange(len(self.part), device=self.part.labels.device)
        return self._fetch(order.split(self.batch_size), None, workers)

    def _fetch(
        self, batches: Sequence[Tensor], generator: torch.Generator | None, workers: Workers
    ) -> Iterator[tuple[Tensor, Tensor, Place]]:
        for batch, (images, labels) in zip(batches, self.part.fetch(batches, generator, workers.share), strict=True):
            # Only then do processes have to ask each other, which on a GPU stalls every step.
            place = workers.find_place(len(labels), self.device) if self.part.skip_bad else workers.place(len(batch))
            yield self._normalise(images), labels, place

    def _normalise(self, images: Tensor) -> Tensor:
        return (images.float() - self._offset) / self._scale
