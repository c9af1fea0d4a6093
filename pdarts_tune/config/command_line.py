"""Command lines from dataclasses, through Tyro. A wrong command line gives one line on stderr and exit code 2."""

import io
import re
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from typing import TypeVar

import tyro

Settings = TypeVar("Settings")

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
