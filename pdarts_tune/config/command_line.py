"""Command lines from dataclasses, through Tyro. A wrong command line gives one line on stderr and exit code 2."""

import copy
import errno
import io
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stderr, suppress
from difflib import get_close_matches
from typing import Any, TypeVar

import tyro

from pdarts_tune.config.serialize import ConfigError

Settings = TypeVar("Settings")

NOBODY_READS = 141  # the exit code that a shell reports of a process that SIGPIPE ended

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_FRAME = "╭╮╰╯│─- "  # of a box; some terminals have only spaces and -


def parse(kind: type[Settings], arguments: Sequence[str] | None = None, *, prog: str | None = None, description: str) -> Settings:
    """The settings that the command line gives. `--help` prints them and exits with 0.

    Args:
        kind: a dataclass, each field an option.
        arguments: None: those of the process.

    Raises:
        SystemExit: with code 2 after one line on stderr, if an option is unknown, missing or has a value of another type.
    """
    if arguments is None:
        _prepare_process()
    messages = io.StringIO()
    try:
        with redirect_stderr(messages):
            settings = tyro.cli(kind, args=arguments, prog=prog, description=description)
    except SystemExit as exit_:
        if exit_.code == 2:
            print(f"error: {first_paragraph(messages.getvalue())} (--help lists the options)", file=sys.stderr)
        raise
    sys.stderr.write(messages.getvalue())
    return settings


class _Output(io.FileIO):
    """Standard output or standard error, which may lose its reader: `| head` ends, a terminal closes. Then the process ends."""

    goes_on = False  # in place of ending, the process goes on and prints to nobody

    def write(self, data: Any) -> Any:
        try:
            return super().write(data)
        except OSError as error:
            if not _Output.goes_on:
                if error.errno in (errno.EPIPE, errno.EIO):
                    os._exit(NOBODY_READS)
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())  # the report's process prints there too
            with suppress(OSError):
                os.write(2, f"warning: the output cannot be printed ({error.strerror}); the work goes on without it\n".encode())
            return len(data)


def outlive_reader() -> None:
    """Work that takes long goes on when nobody reads its output any more."""
    _Output.goes_on = True


def _prepare_process() -> None:
    """Output replaces characters that its encoding lacks and ends quietly with its reader. Figures need no display."""
    os.environ["MPLBACKEND"] = "agg"  # not a notebook's, which need not be installed here
    for name, errors in (("stdout", "replace"), ("stderr", "backslashreplace")):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper) and stream is getattr(sys, f"__{name}__"):  # else somebody captures it
            raw = _Output(stream.fileno(), "w", closefd=False)
            buffer: Any = raw if isinstance(stream.buffer, io.RawIOBase) else io.BufferedWriter(raw)
            setattr(sys, name, io.TextIOWrapper(buffer, stream.encoding, errors, None, stream.line_buffering, stream.write_through))


def first_paragraph(boxed: str) -> str:
    """The first paragraph in a box with a title, in one line: the text up to the first empty line or rule."""
    lines: list[str] = []
    for line in _COLOUR.sub("", boxed).splitlines()[1:]:
        text = line.strip()
        if text.strip(_FRAME):
            lines.append(text.strip("│ "))
        elif lines:
            break
    return " ".join(lines).rstrip(".")


def change_settings(settings: Mapping[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """A copy of settings, as `to_dict` gives them, after changes such as `batch_size=64` or `stages.1.cells=8`.

    Stages are counted from 0; `stages.epochs=9` is for all of them. A value is JSON (`0.1`, `true`, `[0.5, 0.9]`), else text.
    `method=snas` takes the method with its defaults, and `method.penalty=mild` then changes one of its settings.

    Raises:
        ConfigError: a change is not NAME=VALUE, or there is no such setting. The message has the settings with near names.
    """
    changed = copy.deepcopy(dict(settings))
    known = list(dict.fromkeys(_names(changed)))
    for item in changes:
        name, equals, text = item.partition("=")
        if not equals:
            raise ConfigError(f"set: {item!r} is wrong, it must be NAME=VALUE")
        if name not in known and not name.startswith("method."):
            last = name.rpartition(".")[2]
            near = [*get_close_matches(name, known, cutoff=0.6), *(other for other in known if other.rpartition(".")[2] == last)]
            hint = f"near are {', '.join(dict.fromkeys(near))}" if near else f"known are {', '.join(settings)}"
            raise ConfigError(f"set: {name!r} is unknown, {hint}")
        try:
            value = json.loads(text)
        except ValueError:
            value = {"None": None, "True": True, "False": False}.get(text, text)
        _assign(changed, name.split("."), {"name": value} if name == "method" else value)
    return changed


def _names(settings: Any, path: str = "") -> Iterator[str]:
    """The names of all settings. Those of a list's items are there with and without their index."""
    if path:
        yield path
    dot = f"{path}." if path else ""
    if isinstance(settings, dict):
        for name, value in settings.items():
            yield from _names(value, dot + name)
    elif isinstance(settings, list) and settings and isinstance(settings[0], dict):
        for index, value in enumerate(settings):
            yield from _names(value, f"{dot}{index}")
            yield from (name for name in _names(value, path) if name != path)


def _assign(settings: Any, path: Sequence[str], value: Any) -> None:
    head, *rest = path
    if isinstance(settings, list) and not head.isdecimal():
        for item in settings:
            _assign(item, path, value)
        return
    key = int(head) if isinstance(settings, list) else head
    if rest:
        _assign(settings[key], rest, value)
    else:
        settings[key] = value
