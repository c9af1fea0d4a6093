"""What protects a running study: one driver a folder, signals that stop it cleanly, and a message when a disk is full."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.results.storage import Storage, hold_lock

STOPPED = 130  # the exit code of a study that Ctrl-C or SIGTERM ended
_OF_STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.EFBIG)


class ClusterLostError(RuntimeError):
    """All nodes of a study's Ray cluster are gone. The message is one line."""


@contextmanager
def exclusive(storage: Storage) -> Iterator[None]:
    """Holds a study's folder against a second driver, which would run every trial twice. The system frees it with the process.

    Raises:
        ConfigError: another process holds it, or the folder cannot be written.
    """
    from filelock import Timeout  # imports asyncio, which --help does not need

    with ExitStack() as stack:
        try:
            stack.enter_context(hold_lock(f"{storage}/.lock", timeout=0))
        except Timeout:
            raise ConfigError(
                f"{storage}: another process is running this study here; wait for it or name another folder"
            ) from None
        except OSError as error:
            raise ConfigError(f"results: {storage} cannot be written ({error.strerror})") from None
        yield


class Signals:
    """Ctrl-C, and SIGTERM, which clusters send before they take a node away. The first stops the study, the second at once."""

    def __init__(self) -> None:
        self.received = 0

    def install(self) -> None:
        """Sets the handlers. Call it again after what sets handlers of its own, as Ray's start does."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)

    def _stop(self, *_: object) -> None:
        self.received += 1
        if self.received > 1:
            # Nothing can be lost: files are replaced as a whole, and Ray's processes end with this one.
            os.write(2, b"\nstopped at once; the same command continues the study\n")
            os._exit(STOPPED)
        print("\nstopping; Ctrl-C once more stops at once", file=sys.stderr, flush=True)
        raise KeyboardInterrupt


@contextmanager
def stop_on_signals() -> Iterator[Signals]:
    """Handles both signals while the context lasts."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signals = Signals()
    signals.install()
    try:
        yield signals
    finally:
        if not signals.received:  # else the process is about to end, and a second signal must not print a traceback
            for number, handler in before.items():
                signal.signal(number, handler)


def explain_storage_error(error: OSError) -> str | None:
    """One line, where the disk or the permissions are the cause; None: the cause is another."""
    if error.errno not in _OF_STORAGE and not (error.errno is None and "S3" in str(error)):
        return None
    where = f" ({error.filename})" if error.filename else ""
    reason = error.strerror or " ".join(str(error).split())
    return f"results cannot be written: {reason}{where}; when that is solved, the same command continues the study"
