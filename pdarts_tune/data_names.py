"""Names of data sets that say where their files are: `parquet:PATH` and `folder:PATH`."""

from __future__ import annotations

import os
from pathlib import Path


def absolute_name(name: str) -> str:
    """The name with the whole path, as processes need it that start in other folders: `parquet:/home/me/cifar10`.

    A link stays one, since on each node of a cluster it may lead elsewhere.
    """
    kind, colon, path = name.partition(":")
    return f"{kind}:{os.path.normpath(Path(path).expanduser().absolute())}" if colon and path else name


def short_name(name: str) -> str:
    """The name without where the files are, as published tables have it: `parquet:cifar10`."""
    kind, colon, path = name.partition(":")
    return f"{kind}:{Path(path).name}" if colon and path else name
