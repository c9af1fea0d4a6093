"""Compiles the kernels at first use, and keeps the library in the user's cache folder.

A library's name says what it was made of: the source, the flags, the compiler and the processor. So another machine that shares
the home folder makes its own, and a new version of this package makes a new one. It ends in its own digest, so that a file that
was cut short is made again rather than loaded.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import torch

from pdarts_tune.config.execution import CellEvaluation

SOURCES = tuple(Path(__file__).with_name(name) for name in ("cells.c", "vectors.h"))
FLAGS = ("-std=gnu11", "-O3", "-march=native", "-ffp-contract=fast", "-fPIC", "-shared", "-w")
LIBRARIES = ("-lm", "-lpthread")
REALS = {torch.float32: "float", torch.float64: "double"}
REMEDY = "install a C compiler (gcc or clang), or `pip install ziglang`"


class BuildError(RuntimeError):
    """The kernels cannot be had on this machine. The message is one line: what is wrong, and how to mend it."""


@functools.cache
def load(dtype: torch.dtype) -> ctypes.CDLL:
    """The library for tensors of this type, compiled if need be.

    Raises:
        BuildError: no compiler, a compiler that fails, or a cache folder that cannot be written.
    """
    if sys.maxsize < 2**63 - 1 or sys.byteorder != "little":
        raise BuildError("kernels: they need a 64-bit processor; use plain cells")
    compiler = find_compiler()
    path = cache_folder() / f"cells-{_digest(dtype, compiler)[:32]}.so"
    library = _open(path)
    if library is None:
        _compile(dtype, compiler, path)
        library = _open(path)
    if library is None:
        raise BuildError(f"kernels: {path} cannot be loaded after it was compiled; delete it, or use plain cells")
    for name in ("forward", "backward"):
        getattr(library, name).argtypes, getattr(library, name).restype = (ctypes.c_void_p,), ctypes.c_int
    return library


@functools.cache
def missing() -> str | None:
    """Why this machine has no kernels, and how to mend it, in one line; None if it has them."""
    try:
        load(torch.float32)
    except BuildError as error:
        return str(error)
    return None


def announce(evaluations: Iterable[CellEvaluation]) -> None:
    """Prints one line where `auto` must take plain cells on a CPU, since this machine has no kernels."""
    reason = missing() if "auto" in evaluations else None
    if reason:
        print(f"note: cells are evaluated as plain modules, several times slower; {reason}", file=sys.stderr, flush=True)


def choose(evaluation: CellEvaluation, device: torch.device) -> Literal["kernels", "plain"]:
    """How cells are evaluated on a device. `auto` takes kernels on a CPU if this machine has them, else plain cells.

    Raises:
        BuildError: kernels are demanded, and this machine has none, or the device is no CPU.
    """
    if evaluation == "kernels":
        if device.type == "meta":  # shapes alone: nothing is computed
            return "kernels"
        if device.type != "cpu":
            raise BuildError(f"kernels: they run on CPUs and not on {device.type}; set cell_evaluation to auto or plain")
        load(torch.float32)
        return "kernels"
    return "kernels" if evaluation == "auto" and device.type == "cpu" and missing() is None else "plain"


def find_compiler() -> tuple[str, ...]:
    """The command of a C compiler: `CC` of the environment, the system's, or ziglang's. Raises BuildError: there is none."""
    for name in (os.environ.get("CC", ""), "cc", "gcc", "clang"):
        words = name.split()
        if words and (path := shutil.which(words[0])):
            return path, *words[1:]
    if importlib.util.find_spec("ziglang"):
        return sys.executable, "-m", "ziglang", "cc"
    raise BuildError(f"kernels: no C compiler was found; {REMEDY}")


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pdarts_tune"


def processor() -> str:
    """What code made for this very processor must not run without: its model and its instruction sets."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()} {platform.platform()}"
    wanted = ("model name", "flags", "Features", "CPU implementer", "CPU part")
    return platform.machine() + "".join(sorted({line for line in lines if line.startswith(wanted)}))


def _digest(dtype: torch.dtype, compiler: tuple[str, ...]) -> str:
    executable = Path(compiler[0]).resolve()
    status = executable.stat()
    made_of = (REALS[dtype], FLAGS, LIBRARIES, compiler, str(executable), status.st_size, status.st_mtime_ns, processor())
    digest = hashlib.sha256(repr(made_of).encode())
    for source in SOURCES:
        digest.update(source.read_bytes())
    return digest.hexdigest()


def _compile(dtype: torch.dtype, compiler: tuple[str, ...], path: Path) -> None:
    """Writes the library whole to a temporary name, then renames it: several processes may do this at once."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=path.parent, prefix=".cells-")
    except OSError as error:
        raise BuildError(f"kernels: the cache folder cannot be written ({error}); set XDG_CACHE_HOME to one that can") from None
    with folder:
        made = Path(folder.name) / "cells.so"
        command = [*compiler, *FLAGS, f"-DREAL={REALS[dtype]}", str(SOURCES[0]), "-o", str(made), *LIBRARIES]
        try:
            result = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise BuildError(f"kernels: {compiler[0]} cannot be run ({error}); {REMEDY}") from None
        if result.returncode or not made.exists():
            lines = [line for line in result.stderr.splitlines() if "error" in line] or result.stderr.splitlines() or ["no message"]
            raise BuildError(f"kernels: {' '.join(compiler)} failed ({lines[0].strip()}); {REMEDY}")
        try:
            content = made.read_bytes()
            made.write_bytes(content + hashlib.sha256(content).digest())
            made.replace(path)
        except OSError as error:
            raise BuildError(f"kernels: {path} cannot be written ({error}); set XDG_CACHE_HOME to a folder that can") from None


def _open(path: Path) -> ctypes.CDLL | None:
    """The library; None where there is none, or not all of it."""
    try:
        content = path.read_bytes()
        if hashlib.sha256(content[:-32]).digest() != content[-32:]:
            return None
        return ctypes.CDLL(str(path))
    except OSError:
        return None
