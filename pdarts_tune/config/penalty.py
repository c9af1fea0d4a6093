"""The resource penalty: what a search is told to save. `search/resources.py` has the formulas.

A table of measured latencies is part of the settings. So it travels to every node, and its content counts in the id.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator
from pydantic_core import PydanticCustomError

from pdarts_tune.config.methods import Method, Snas, trains_alphas
from pdarts_tune.config.remedies import IndependentWeights, Remedy
from pdarts_tune.config.serialize import NonNegativeFloat, Positive, Text, from_dict, settings

Shape = tuple[int, int, int]  # channels, stride, side of the images in pixels
Latency = tuple[Text, Positive, Annotated[int, Field(ge=1, le=2)], Positive, NonNegativeFloat]  # operation, its shape, seconds


@settings
class Latencies:
    """Median seconds of operations on a batch, as `benchmarks/latency.py` writes them."""

    device: Text
    torch: Text  # its version
    threads: Positive
    batch: Positive
    seconds: tuple[Latency, ...]

    def __post_init__(self) -> None:
        if len(self.by_shape) < len(self.seconds):
            keys = [row[:4] for row in self.seconds]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ValueError(f"seconds: {twice} is there twice, each operation and shape is given once")

    @property
    def by_shape(self) -> dict[tuple[str, int, int, int], float]:
        """Seconds by operation, channels, stride and side of the images."""
        return {row[:4]: row[4] for row in self.seconds}


def _read_latencies(value: Any) -> Latencies | None:
    """The table itself, its content, or the name of its file."""
    if value is None or isinstance(value, Latencies):
        return value
    try:
        return from_dict(Latencies, json.loads(Path(value).read_text()) if isinstance(value, str) else value)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise PydanticCustomError("latencies", "a file that benchmarks/latency.py writes ({why})", {"why": str(reason)}) from None


@settings
class ResourcePenalty:
    """The alphas' loss gains a factor times the expected cost of an architecture, relative to the costliest one of the space.

    With `latencies` the tables have expected and derived latency too, whatever the loss saves.
    """

    resource: Literal["params", "macs", "latency"] = "macs"
    weight: NonNegativeFloat = 0.0  # the factor; 0: no penalty
    latencies: Annotated[Latencies | None, PlainValidator(_read_latencies)] = None

    def __post_init__(self) -> None:
        if self.resource == "latency" and self.latencies is None:
            raise ValueError("latencies: is missing, resource latency needs a file that benchmarks/latency.py writes")


def check_penalty(penalty: ResourcePenalty, method: Method, remedies: tuple[Remedy, ...]) -> None:
    """Raises ValueError, with the reason, if the method or a remedy does not go with the penalty.

    Methods that train nothing ignore it.
    """
    right = "weight must be 0"
    if not penalty.weight:
        return
    if isinstance(method, Snas):
        raise ValueError(f"penalty: method snas has its own, method.penalty; {right}")
    if method.name == "random_search":
        raise ValueError(f"penalty: is for alphas, method random_search has none; {right}")
    if trains_alphas(method) and any(isinstance(remedy, IndependentWeights) for remedy in remedies):
        raise ValueError(f"penalty: is about a distribution, independent_weights have none; {right}")
