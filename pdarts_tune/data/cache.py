"""Files that are computed once and kept on disk, named by the content of their source. They may be deleted at any time.

All of them lie below the data folder: the environment variable PDARTS_TUNE_DATA, or else ~/.cache/pdarts_tune/data.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.results.storage import hold_lock

DATA_VARIABLE = "PDARTS_TUNE_DATA"
DEFAULT_DATA_FOLDER = "~/.cache/pdarts_tune/data"
REMEMBER_ABOVE = 256 * 2**20  # bytes: the digest of a larger file is kept; a smaller file takes less than a second to read


def data_folder() -> Path:
    """The folder of downloaded sets and of the cache."""
    return Path(os.environ.get(DATA_VARIABLE) or DEFAULT_DATA_FOLDER).expanduser()


def cached_folder(key: str, build: Callable[[Path], None]) -> Path:
    """The folder that `build` fills at the first call with this key. It appears whole or not at all.

    Processes that need the same key at the same time wait for the first of them.

    Raises:
        ConfigError: the data folder cannot be written.
    """
    cache = data_folder() / "cache"
    path = cache / key
    if path.is_dir():
        return path
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with hold_lock(cache / f".{key}.lock"):
            if not path.is_dir():
                unfinished = Path(tempfile.mkdtemp(prefix=f".{key}.", dir=cache))
                try:
                    build(unfinished)
                    unfinished.rename(path)
                except BaseException:
                    shutil.rmtree(unfinished)
                    raise
    except OSError as error:
        raise ConfigError(
            f"data: decoded images cannot be kept in {cache} ({error.strerror}); let {DATA_VARIABLE} name a folder with space"
        ) from None
    return path


def file_digest(path: Path) -> str:
    """Hex digits of a file's content. Those of a large file are kept as long as its size and time do not change."""

    def digest() -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def write(folder: Path) -> None:
        (folder / "sha256").write_text(digest())

    status = path.stat()
    if status.st_size <= REMEMBER_ABOVE:
        return digest()
    key = combined_key(f"{path.resolve()}/{status.st_size}/{status.st_mtime_ns}")
    folder = cached_folder(f"digest-{key}", write)
    return (folder / "sha256").read_text()


def combined_key(*parts: str) -> str:
    """Hex digits of a sequence of texts."""
    key = hashlib.sha256()
    for part in parts:
        key.update(hashlib.sha256(part.encode()).digest())
    return key.hexdigest()[:32]
