"""Command lines from dataclasses, through Tyro, with one line on stderr and exit code 2 for whatever is wrong with them."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from typing import TypeVar

import tyro

Settings = TypeVar("Settings")

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_FRAME = "╭╮╰╯│─- "  # of a box; Tyro draws it with spaces and - where the terminal has no others


def parse(kind: type[Settings], arguments: Sequence[str] | None = None, *, prog: str | None = None, description: str) -> Settings:
    """The settings that the command line gives; `--help` prints them and exits with 0.

    Args:
        kind: a dataclass, each field an option.
        arguments: without them, those of the process.

    Raises:
        SystemExit: with code 2 after one line on stderr, where an option is unknown, missing or has a value of another type.
    """
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            settings = tyro.cli(kind, args=arguments, prog=prog, description=description)
    except SystemExit as stopped:
        if stopped.code == 2:
            print(f"error: {first_paragraph(said.getvalue())} (--help lists the options)", file=sys.stderr)
        raise
    sys.stderr.write(said.getvalue())
    return settings


def first_paragraph(boxed: str) -> str:
    """What a box with a title says is wrong, in one line: the text up to the first gap or rule."""
    lines: list[str] = []
    for line in _COLOUR.sub("", boxed).splitlines()[1:]:
        text = line.strip()
        if text.strip(_FRAME):
            lines.append(text.strip("│ "))
        elif lines:
            break
    return " ".join(lines).rstrip(".")
