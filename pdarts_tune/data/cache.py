"""What is prepared once and kept on disk, named by the content that it was made from. Safe to delete at any time.

Everything lies below the data folder: the environment variable PDARTS_TUNE_DATA, or else ~/.cache/pdarts_tune/data.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from pdarts_tune.config.serialize import ConfigError

DATA_VARIABLE = "PDARTS_TUNE_DATA"
DEFAULT_DATA_FOLDER = "~/.cache/pdarts_tune/data"
REMEMBER_ABOVE = 256 * 2**20  # bytes: the digest of a larger file is kept, a smaller one takes less than a second to read


def data_folder() -> Path:
    """Where downloaded sets and the cache lie."""
    return Path(os.environ.get(DATA_VARIABLE) or DEFAULT_DATA_FOLDER).expanduser()


def cached_folder(key: str, build: Callable[[Path], None]) -> Path:
    """The folder that `build` fills, built at the first call with this key; it appears whole or not at all.

    Processes that ask for the same key at the same time wait for the first of them.

    Raises:
        ConfigError: the data folder cannot be written.
    """
    cache = data_folder() / "cache"
    path = cache / key
    if path.is_dir():
        return path
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f".{key}.lock"):
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
    """Hex digits that name a file by its content. Those of a large file are kept for as long as its size and time do not change."""
    status = path.stat()

    def write(folder: Path) -> None:
        with path.open("rb") as file:
            (folder / "sha256").write_text(hashlib.file_digest(file, "sha256").hexdigest())

    if status.st_size <= REMEMBER_ABOVE:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    identity = f"{path.resolve()}/{status.st_size}/{status.st_mtime_ns}"
    return (cached_folder(f"digest-{combined_key(identity)}", write) / "sha256").read_text()


def combined_key(*parts: str) -> str:
    """Hex digits that name a sequence of texts."""
    key = hashlib.sha256()
    for part in parts:
        key.update(hashlib.sha256(part.encode()).digest())
    return key.hexdigest()[:32]
