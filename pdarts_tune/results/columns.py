"""Prints the columns of the tables in Markdown, from `results/schemas.py`, so that the documentation cannot differ from them.

    python -m pdarts_tune.results.columns                       # print them
    python -m pdarts_tune.results.columns --page docs/tables.md # replace them on that page

On a page each table's columns stand between the lines `<!-- columns: TABLE -->` and `<!-- end -->`.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pdarts_tune.config.command_line import parse
from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.results.schemas import PRIMARY_KEYS, SCHEMAS

_BLOCK = re.compile(r"(?<=<!-- columns: )(\w+)( -->\n).*?(?=<!-- end -->)", re.DOTALL)


@dataclass(frozen=True)
class Arguments:
    """The command line."""

    page: Path | None = None
    """A Markdown page whose columns are replaced; without it they are printed."""


def describe_columns(table: str) -> str:
    """Primary key and columns of a table, in Markdown."""
    lines = [f"Key: {', '.join(f'`{name}`' for name in PRIMARY_KEYS[table])}", ""]
    lines += ["| column | type | unit | null | what it says |", "|---|---|---|---|---|"]
    for field in SCHEMAS[table]:
        metadata = {key.decode(): value.decode() for key, value in field.metadata.items()}
        choices = f" ({', '.join(f'`{name}`' for name in metadata['choices'].split(','))})" if "choices" in metadata else ""
        null = "later" if "later" in metadata else "yes" if field.nullable else ""
        unit = "" if metadata["unit"] in ("text", "flag") else metadata["unit"]
        lines.append(f"| `{field.name}` | {_name_type(field.type)} | {unit} | {null} | {metadata['description']}{choices} |")
    return "\n".join(lines) + "\n"


def update_page(text: str) -> str:
    """The page with the present columns.

    Raises:
        ConfigError: the page lacks the place of a table, or has one of an unknown table.
    """
    tables = [match[1] for match in _BLOCK.finditer(text)]
    if sorted(tables) != sorted(SCHEMAS):
        raise ConfigError(f"page: it has {', '.join(tables) or 'no table'}, it must have each of {', '.join(SCHEMAS)} once")
    return _BLOCK.sub(lambda match: match[1] + match[2] + describe_columns(match[1]), text)


def _name_type(kind: Any) -> str:
    if pa.types.is_list(kind):
        return f"list of {_name_type(kind.value_type)}s"
    if pa.types.is_timestamp(kind):
        return "time"
    if pa.types.is_integer(kind):
        return "integer"
    if pa.types.is_floating(kind):
        return "number"
    return "flag" if pa.types.is_boolean(kind) else "text"


def main() -> None:
    """Exits with 2 if the page cannot be read or lacks the place of a table."""
    settings = parse(Arguments, prog="python -m pdarts_tune.results.columns", description="The columns of the tables, in Markdown.")
    if settings.page is None:
        print("\n".join(f"### {table}\n\n{describe_columns(table)}" for table in SCHEMAS))
        return
    try:
        settings.page.write_text(update_page(settings.page.read_text()))
    except (OSError, ConfigError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
