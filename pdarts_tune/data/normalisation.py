"""The mean and the standard deviation, per channel, that images are normalised with.

A new training on images that live on the device takes those of its training images. On images that stream it takes ImageNet's, or,
for grayscale images, those of a sample. Tests of weights take what the weights were trained with.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pdarts_tune.config.evaluation import EvalConfig
from pdarts_tune.config.serialize import ConfigError, short_name
from pdarts_tune.data.splits import first_of_each_class
from pdarts_tune.data.streaming import StreamedSet

Moments = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation per channel, of images scaled to [0, 1]

# Of ImageNet's training images, as usual: https://pytorch.org/vision/stable/models.html
IMAGENET_MOMENTS: Moments = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# What trainings of the DARTS family take. Their weights do not hold it.
FAMILIES: Mapping[str, Moments] = {
    "ImageNet": IMAGENET_MOMENTS,
    "CIFAR-10": ((0.49139968, 0.48215827, 0.44653124), (0.24703233, 0.24348505, 0.26158768)),
    "CIFAR-100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "digits": ((0.3053,), (0.3759,)),
}
SAMPLE = 512  # images
CIFAR_SIDE = 32


def pixel_moments(images: Tensor) -> Moments:
    """The moments of uint8 images (N, C, H, W). They come from counts of the 256 values: exact for any number of images."""
    values = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in range(images.shape[1]):
        counts = torch.zeros(256, dtype=torch.float64)
        for part in images.split(1000):  # bounds the memory: a count copies one channel of the images
            counts += torch.bincount(part[:, channel].flatten(), minlength=256)
        shares = counts / counts.sum()
        mean = (shares * values).sum()
        means.append(mean.item())
        stds.append((shares * (values - mean) ** 2).sum().sqrt().item())
    return tuple(means), tuple(stds)


def sample_moments(images: StreamedSet) -> Moments:
    """The moments of SAMPLE images, the same number of each class as far as possible.

    Raises:
        ConfigError: an image of the sample is bad and `skip_bad` is off, or all of them are.
    """
    rows = torch.from_numpy(first_of_each_class(images.labels.numpy(), SAMPLE))
    sample = torch.cat([batch for batch, _ in images.select(rows).fetch(torch.arange(len(rows)).split(32))])
    if len(sample) == 0:
        raise ConfigError(f"{images.source.where(0)}: like the first {len(rows)} images of the set it cannot be used")
    return pixel_moments(sample)


def check_moments(moments: Moments, channels: int, name: str) -> None:
    """Raises ConfigError for a mean or deviation that cannot be of the images of the data set `name`."""
    for field, values, right in (
        ("mean", moments[0], "in [0, 1]: of images scaled to that"),
        ("std", moments[1], "more than 0 and at most 1: of images scaled to [0, 1]"),
    ):
        if len(values) != channels:
            raise ConfigError(f"{field}: {len(values)} values, {name}'s images have {channels} channels and need one for each")
        for value in values:
            if not 0 <= value <= 1 or (field == "std" and value == 0):
                raise ConfigError(f"{field}: {value} is wrong, it must be {right}")


def find_family(config: EvalConfig, channels: int, side: int, classes: int) -> str | None:
    """The family that a network most likely belongs to whose weights do not hold their moments; None: nobody can know.

    ImageNet by its stem, or where images stream; CIFAR by the side of the images, CIFAR-100 by its name or number of classes.
    """
    if config.data == "digits":
        return "digits"
    if channels != 3:
        return None
    if config.stem == "imagenet" or config.image_size is not None:
        return "ImageNet"
    if side != CIFAR_SIDE:
        return None
    hundred = "cifar100" in short_name(config.data).lower().replace("-", "").replace("_", "") or classes == 100
    return "CIFAR-100" if hundred else "CIFAR-10"
