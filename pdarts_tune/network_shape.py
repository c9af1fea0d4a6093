"""The network that a recipe builds of a genotype: its shape follows from the recipe and the data set, its width perhaps too."""

from __future__ import annotations

from dataclasses import replace

from pdarts_tune.config import ConfigError, EvalConfig
from pdarts_tune.cost import network_cost
from pdarts_tune.data import Dataset, DatasetInfo
from pdarts_tune.genotype import Genotype
from pdarts_tune.network import NetworkConfig

MOBILE_MADDS = 600_000_000  # what the mobile setting allows


def network_shape(genotype: Genotype, config: EvalConfig, data: Dataset | DatasetInfo) -> NetworkConfig:
    """The network that a recipe builds of a genotype for the images of a data set."""
    shape = NetworkConfig(config.channels, config.cells, data.num_classes, data.image_size, config.stem, data.in_channels)
    return replace(shape, channels=widest_channels(genotype, shape)) if config.auto_width else shape


def check_madds(genotype: Genotype, config: EvalConfig, data: Dataset | DatasetInfo, name: str, limit: int = MOBILE_MADDS) -> None:
    """Raises ConfigError if a recipe of the mobile setting would train a network of more multiply-adds than that allows."""
    if config.stem == "imagenet":
        shape = network_shape(genotype, config, data)
        madds = network_cost(genotype, shape).madds
        if madds > limit:
            raise ConfigError(
                f"{name}: {madds / 1e6:.0f}M multiply-adds at {shape.channels} channels, the mobile setting allows "
                f"{limit / 1e6:.0f}M; leave it out, or take a recipe with auto_width"
            )


def widest_channels(genotype: Genotype, config: NetworkConfig, limit: int = MOBILE_MADDS) -> int:
    """The largest even number of channels at which the genotype's network has fewer than `limit` madds, `config` otherwise.

    Raises:
        ConfigError: even two channels are too many.
    """

    def fits(channels: int) -> bool:
        return network_cost(genotype, replace(config, channels=channels)).madds < limit

    if not fits(2):
        raise ConfigError(f"auto_width: 2 channels already take {limit} multiply-adds; take smaller images or fewer cells")
    fitting, too_wide = 2, 4
    while fits(too_wide):
        fitting, too_wide = too_wide, 2 * too_wide
    while too_wide - fitting > 2:
        middle = (fitting + too_wide) // 4 * 2
        fitting, too_wide = (middle, too_wide) if fits(middle) else (fitting, middle)
    return fitting
