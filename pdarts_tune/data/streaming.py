"""Images that are too many or too large to live on a device: worker processes read, decode, crop and jitter them, batch by batch.

The transforms are torchvision's, with the usual settings of ImageNet training: random-resized crop and colour jitter for training,
resize to 8/7 of the side and centre crop for tests. The device mirrors and normalises them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.data.decoding import ImageError, core_count, decode, read_range
from pdarts_tune.data.files import FolderImages, Location, UnpackedImages
from pdarts_tune.data.in_memory import Share

JITTER = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.2}
TEST_RESIZE = 8 / 7  # of the side, before the centre crop: 256 pixels for 224
MAX_WORKERS = 16
CPU = torch.device("cpu")

Request = tuple[Location, int]  # an image, and the seed of its crop
Decoded = tuple[Tensor, list[int], list[tuple[int, str]]]  # good images, their places in the batch; places and errors of bad ones


@dataclass(frozen=True)
class StreamedSet:
    """The images of `source` at `rows`, cropped to `side` pixels, with labels. They are read batch by batch."""

    source: FolderImages | UnpackedImages
    rows: Tensor  # int64 (N,)
    labels: Tensor  # int64 (N,)
    channels: int
    side: int
    skip_bad: bool  # leave out bad images, rather than refuse the set
    left_out: set[str]  # a line for each bad image so far; all parts of a data set share it
    device: torch.device = CPU  # where batches are delivered
    pad: ClassVar[int] = 0  # the crop has already moved the image

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: Tensor) -> StreamedSet:
        """The images at `indices`, int64 (M,), in that order."""
        return replace(self, rows=self.rows[indices], labels=self.labels[indices])

    def joined(self, other: StreamedSet) -> StreamedSet:
        """These images, then the other's, which must be of the same source."""
        assert self.source is other.source
        return replace(self, rows=torch.cat((self.rows, other.rows)), labels=torch.cat((self.labels, other.labels)))

    def to(self, device: torch.device) -> StreamedSet:
        return replace(self, device=device)

    def fetch(
        self, batches: Sequence[Tensor], generator: torch.Generator | None = None, share: Share = slice
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields images, uint8 (B, C, H, W), and labels for this process's share of each batch of indices.

        With a generator images are cropped and jittered at random, else cropped at the centre. An image's crop depends on the
        generator alone, not on the number of workers or on the share. With `skip_bad` batches lack their bad images (a batch may be
        empty), and one warning at the end counts them.

        Raises:
            ConfigError: an image is bad and `skip_bad` is off; the message names it.
        """
        crops = []  # the seed of each image's crop
        for batch in batches:
            whole = torch.randint(2**62, (len(batch),), generator=generator, device=generator.device) if generator else batch
            crops.append(whole[share(len(batch))].tolist())
        batches = [batch[share(len(batch))].cpu() for batch in batches]
        locations = (map(self.source.location, self.rows[batch].tolist()) for batch in batches)
        reader = _Reader(self.channels, self.side, augment=generator is not None)
        loader = DataLoader(
            reader,
            batch_sampler=([*zip(*requests, strict=True)] for requests in zip(locations, crops, strict=True)),
            num_workers=min(core_count(), MAX_WORKERS, len(batches)),
            collate_fn=reader.collate,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # by default the loader draws from the global one
        )
        skipped: list[str] = []
        for indices, (images, places, wrong) in zip(batches, loader, strict=True):
            for place, error in wrong:
                line = f"{self.source.where(int(self.rows[indices[place]]))}: {error}"
                if not self.skip_bad:
                    raise ConfigError(line)
                skipped.append(line)
            labels = self.labels[indices[places]]
            if self.device.type == "cuda":
                labels = labels.pin_memory()  # else the copy would wait for the device
            yield images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)
        self.left_out.update(skipped)
        if skipped:
            warnings.warn(f"data: left out {len(skipped)} images that cannot be used, the first is {skipped[0]}", stacklevel=2)


class _Reader(Dataset[tuple[Tensor | None, str]]):
    """Reads and crops images in a worker process. It holds no list of files, so that a worker starts at once."""

    def __init__(self, channels: int, side: int, *, augment: bool) -> None:
        from torchvision.transforms import v2  # takes a second to import

        self.channels, self.side = channels, side
        test = v2.Resize(round(side * TEST_RESIZE)), v2.CenterCrop(side)
        self.transform = v2.Compose([v2.RandomResizedCrop(side), v2.ColorJitter(**JITTER)] if augment else test)

    def __getitem__(self, request: Request) -> tuple[Tensor | None, str]:
        location, seed = request
        try:
            pixels = decode(read_range(*location), self.channels, None)
        except ImageError as error:
            return None, str(error)
        # torchvision draws from the global generator; the fork restores it.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return self.transform(torch.from_numpy(pixels.copy())), ""

    def collate(self, images: list[tuple[Tensor | None, str]]) -> Decoded:
        good = {place: image for place, (image, _) in enumerate(images) if image is not None}
        bad = [(place, error) for place, (image, error) in enumerate(images) if image is None]
        empty = torch.empty((0, self.channels, self.side, self.side), dtype=torch.uint8)
        return torch.stack(list(good.values())) if good else empty, list(good), bad
