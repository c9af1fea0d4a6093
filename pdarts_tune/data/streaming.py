"""Images that are too many or too large to live on a device: worker processes read, decode, crop and jitter them, batch by batch.

The transforms are torchvision's, with the settings that ImageNet training in this field uses: random-resized crop and colour
jitter to train; resize to 8/7 of the side and centre crop to test. Mirroring and normalisation follow on the device.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.data.batches import Share, first_of_each_class, whole
from pdarts_tune.data.files import ImageError, ImageRanges, core_count, decode, read_range
from pdarts_tune.data.in_memory import Moments, pixel_moments

JITTER = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.2}
TEST_RESIZE = 8 / 7  # of the side, before the centre crop: 256 pixels for 224
MAX_WORKERS = 16
MOMENT_IMAGES = 512

Item = tuple[str, int, int, int]  # file, offset and length of an image's bytes, and the seed of its crop
Fetched = tuple[Tensor, list[int], list[tuple[int, str]]]  # images, their places in the batch, what is wrong with others


@dataclass(frozen=True)
class StreamedSet:
    """Images that are read when they are wanted, and what they show: the images of `source` at `rows`, cropped to `side` pixels."""

    source: ImageRanges
    rows: Tensor  # int64 (N,)
    labels: Tensor  # int64 (N,)
    channels: int
    side: int
    skip_bad: bool  # leave out images that cannot be used, rather than refuse them
    left_out: set[str]  # a line for each image that was; shared by all parts of a data set, and filled as they are read
    device: torch.device | None = None  # where to deliver them; None: leave them in memory
    pad: int = 0  # the crop has moved the image already

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
        """The same images, to be delivered to a device."""
        return replace(self, device=device)

    def fetch(self, batches: Sequence[Tensor], generator: torch.Generator | None, share: Share) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields images, uint8 (B, C, H, W), and labels for each batch of indices: cropped and jittered at random with a
        generator, the plain centre without. Of each batch only the share is read.

        What an image becomes depends on the generator alone, not on how many workers there are or on the share. Images that
        cannot be used are left out of their batch if `skip_bad` is on, and counted in one warning at the end; a batch may then
        have none.

        Raises:
            ConfigError: an image cannot be used and `skip_bad` is off; the message names it.
        """
        device = self.device or torch.device("cpu")
        seeds = [_draw_seeds(batch, generator)[share(len(batch))] for batch in batches]
        batches = [batch[share(len(batch))].cpu() for batch in batches]
        loader = DataLoader(
            _Reader(self.channels, self.side, augment=generator is not None),
            batch_sampler=_requests(self.source, (self.rows[batch] for batch in batches), seeds),
            num_workers=min(core_count(), MAX_WORKERS, len(batches)),
            collate_fn=_Collate(self.channels, self.side),
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # or else it would draw from the global one
        )
        skipped: list[str] = []
        for indices, (images, places, wrong) in zip(batches, loader, strict=True):
            for place, error in wrong:
                line = f"{self.source.where(int(self.rows[indices[place]]))}: {error}"
                if not self.skip_bad:
                    raise ConfigError(line)
                skipped.append(line)
            yield images.to(device, non_blocking=True), self.labels[indices[places]].to(device)
        self.left_out.update(skipped)
        if skipped:
            warnings.warn(f"data: left out {len(skipped)} images that cannot be used, the first is {skipped[0]}", stacklevel=2)


def sample_moments(images: StreamedSet) -> Moments:
    """Mean and standard deviation per channel, scaled to [0, 1], of MOMENT_IMAGES of the images, spread evenly over the classes.

    Raises:
        ConfigError: one of them cannot be used and `skip_bad` is off, or none of them can.
    """
    rows = torch.from_numpy(first_of_each_class(images.labels.numpy(), MOMENT_IMAGES))
    seen = torch.cat([batch for batch, _ in images.select(rows).fetch(torch.arange(len(rows)).split(32), None, whole)])
    if len(seen) == 0:
        raise ConfigError(f"{images.source.where(0)}: like the first {len(rows)} images of the set it cannot be used")
    return pixel_moments(seen)


class _Reader(Dataset[tuple[Tensor | None, str]]):
    """Runs in the workers. Holds no list of files: what to read comes with each request, so that a worker starts at once."""

    def __init__(self, channels: int, side: int, *, augment: bool) -> None:
        self.channels = channels
        self.transform = _transform(side, augment)

    def __getitem__(self, item: Item) -> tuple[Tensor | None, str]:
        path, offset, length, seed = item
        try:
            pixels = decode(read_range(path, offset, length), self.channels, None)
        except ImageError as error:
            return None, str(error)
        # torchvision draws from the global generator; the fork gives it back as it was.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return self.transform(torch.from_numpy(pixels.copy())), ""


def _transform(side: int, augment: bool) -> Callable[[Tensor], Tensor]:
    from torchvision.transforms import v2  # takes a second to import, and sets that live on the device do without

    if augment:
        return v2.Compose([v2.RandomResizedCrop(side), v2.ColorJitter(**JITTER)])
    return v2.Compose([v2.Resize(round(side * TEST_RESIZE)), v2.CenterCrop(side)])


def _draw_seeds(batch: Tensor, generator: torch.Generator | None) -> list[int]:
    if generator is None:
        return [0] * len(batch)
    return torch.randint(2**62, (len(batch),), generator=generator, device=generator.device).tolist()


def _requests(source: ImageRanges, batches: Iterable[Tensor], seeds: Iterable[list[int]]) -> Iterator[list[Item]]:
    for rows, crops in zip(batches, seeds, strict=True):
        yield [(*source.location(row), seed) for row, seed in zip(rows.tolist(), crops, strict=True)]


@dataclass(frozen=True)
class _Collate:
    channels: int
    side: int

    def __call__(self, fetched: list[tuple[Tensor | None, str]]) -> Fetched:
        places = [place for place, (image, _) in enumerate(fetched) if image is not None]
        wrong = [(place, error) for place, (image, error) in enumerate(fetched) if image is None]
        none = torch.empty((0, self.channels, self.side, self.side), dtype=torch.uint8)
        return torch.stack([image for image, _ in fetched if image is not None]) if places else none, places, wrong
