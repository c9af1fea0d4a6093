"""Where results are: a folder, of this machine or of a file system that all nodes share, or an object store such as S3.

A `Storage` reads and writes whole files by names below one location. A write replaces the file as a whole or not at all, whenever
the process dies: a folder gets a temporary file that is renamed, an object store makes an upload visible when it is complete.
Credentials come from the environment alone (for S3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, AWS_REGION, or
a role), so that neither tables nor configurations can hold them. Every process opens the location for itself.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from pdarts_tune.config.serialize import ConfigError

OBJECT_STORES = ("s3", "gs", "gcs", "abfs", "abfss", "az")


def is_remote(location: Path | str | Storage) -> bool:
    """Whether a location is a URI, such as s3://bucket/folder, rather than a path."""
    return "://" in str(location)


class Storage:
    """Files below a location.

    Args:
        location: a path, or a URI of any file system that pyarrow or fsspec knows.

    Raises:
        ConfigError: a URI that holds a password, or of an unknown kind.
        OSError (all methods): the location cannot be read or written.
    """

    def __init__(self, location: Path | str | Storage) -> None:
        self.is_remote = is_remote(location)
        self.location = str(location).rstrip("/") if self.is_remote else os.fspath(Path(str(location)).absolute())
        self.path = Path(self.location)  # has a meaning where the location is not remote
        if self.is_remote:
            open_filesystem(self.location)

    def __str__(self) -> str:
        return self.location

    @property
    def name(self) -> str:
        """The last part of the location."""
        return self.location.rsplit("/", 1)[-1]

    def below(self, name: str) -> Storage:
        return Storage(f"{self.location}/{name}")

    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError where there is no such file."""
        filesystem, root = open_filesystem(self.location)
        with filesystem.open_input_stream(f"{root}/{name}") as stream:
            content: bytes = stream.read()
        return content

    def write(self, name: str, content: bytes | memoryview) -> None:
        """Writes the whole file, in place of what was there; a reader sees the old content or the new."""
        if not self.is_remote:
            _write_file(self.path / name, content)
            return
        filesystem, root = open_filesystem(self.location)
        if self.location.split("://", 1)[0] in OBJECT_STORES:
            with filesystem.open_output_stream(f"{root}/{name}") as stream:
                stream.write(content)
            return
        folder, _, file = f"{root}/{name}".rpartition("/")
        part = f"{folder}/.{file}.{secrets.token_hex(4)}.tmp"
        filesystem.create_dir(folder, recursive=True)
        with filesystem.open_output_stream(part) as stream:
            stream.write(content)
        filesystem.move(part, f"{root}/{name}")

    def stamps(self, folder: str) -> dict[str, str]:
        """The files of a folder by name, in order, each with a text that changes when the file does. Nothing if it does not exist.

        Temporary files, whose names start with a dot, are not among them.
        """
        infos = [info for info in self._list(folder) if info.is_file and not info.base_name.startswith(".")]
        return {info.base_name: f"{info.mtime_ns}-{info.size}" for info in infos}

    def stamp(self, name: str) -> str:
        """The stamp of one file; empty if there is none."""
        filesystem, root = open_filesystem(self.location)
        info = filesystem.get_file_info(f"{root}/{name}")
        return f"{info.mtime_ns}-{info.size}" if info.is_file else ""

    def folders(self) -> list[str]:
        """The names of the folders in it, in order."""
        return [info.base_name for info in self._list() if not info.is_file]

    def used(self) -> tuple[int, int]:
        """Bytes and number of all files in it."""
        sizes = [info.size for info in self._list(recursive=True) if info.is_file]
        return sum(sizes), len(sizes)

    def remove(self, name: str) -> None:
        """Removes a file, if there is one."""
        filesystem, root = open_filesystem(self.location)
        with suppress(FileNotFoundError):
            filesystem.delete_file(f"{root}/{name}")

    def copy_down(self, folder: str, target: Path) -> None:
        """Copies the files of a folder, without its folders, to `target` on this machine."""
        for name in self.stamps(folder):
            _write_file(target / name, self.read(f"{folder}/{name}" if folder else name))

    def _list(self, folder: str = "", recursive: bool = False) -> list[Any]:
        from pyarrow.fs import FileSelector

        filesystem, root = open_filesystem(self.location)
        with suppress(NotADirectoryError):
            infos = filesystem.get_file_info(
                FileSelector(f"{root}/{folder}".rstrip("/"), recursive=recursive, allow_not_found=True)
            )
            return sorted(infos, key=lambda info: str(info.path))
        return []


@lru_cache(maxsize=64)
def open_filesystem(location: str) -> tuple[Any, str]:
    """The pyarrow file system of a path or URI, and the path in it.

    Raises:
        ConfigError: the URI holds a password, or is of an unknown kind.
    """
    from pyarrow import ArrowException, fs

    if not is_remote(location):
        return fs.LocalFileSystem(), location
    scheme, _, rest = location.partition("://")
    if "@" in rest.split("/", 1)[0]:
        raise ConfigError(f"results: a {scheme}:// location must not hold credentials; give them in the environment")
    try:
        if scheme == "s3":
            # Delayed: one request for a small file in place of three, with the same guarantee when the stream is closed.
            endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
            region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
            return fs.S3FileSystem(endpoint_override=endpoint, region=region, allow_delayed_open=True), rest
        if scheme in ("gs", "gcs", "hdfs", "viewfs"):
            filesystem, path = fs.FileSystem.from_uri(location)
            return filesystem, path
        import fsspec

        handler = fs.FSSpecHandler(fsspec.filesystem(scheme))
        return fs.PyFileSystem(handler), fsspec.core.strip_protocol(location)
    except (ValueError, ImportError, OSError, ArrowException) as error:
        raise ConfigError(f"results: cannot open {location}: {' '.join(str(error).split())}") from None


@contextmanager
def hold_lock(location: Path | str, timeout: float = -1) -> Iterator[None]:
    """Holds a lock file, which the system frees with the process.

    An object store has no locks, nor have some network file systems. There it holds off processes of the same user on the same
    machine alone.

    Args:
        timeout: seconds to wait for another process; -1: for ever.

    Raises:
        filelock.Timeout: another process still holds it.
    """
    from filelock import FileLock  # imports asyncio, which --help does not need

    name = hashlib.sha256(str(location).encode()).hexdigest()[:16]
    local = FileLock(Path(tempfile.gettempdir()) / f"pdarts_tune-{os.getuid()}-{name}.lock", timeout)
    lock = local if is_remote(location) else FileLock(location, timeout, fallback_to_soft=False)
    Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire()
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        lock = local
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _write_file(path: Path, content: bytes | memoryview) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own for each write: two processes that wrote one temporary file could mix their bytes.
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with part.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)
