"""Writes the columns of the tables into tables.md, from `results/schemas.py`, so that the page cannot differ from them.

    python docs/columns.py

Each table's columns stand there between the lines `<!-- columns: TABLE -->` and `<!-- end -->`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyarrow as pa

from pdarts_tune.results.schemas import PRIMARY_KEYS, SCHEMAS

_BLOCK = re.compile(r"(?<=<!-- columns: )(\w+)( -->\n).*?(?=<!-- end -->)", re.DOTALL)


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
    """The page with the present columns. Raises ValueError if it lacks the place of a table, or has one of an unknown table."""
    tables = [match[1] for match in _BLOCK.finditer(text)]
    if sorted(tables) != sorted(SCHEMAS):
        raise ValueError(f"the page has {', '.join(tables) or 'no table'}, it must have each of {', '.join(SCHEMAS)} once")
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


if __name__ == "__main__":
    page = Path(__file__).with_name("tables.md")
    page.write_text(update_page(page.read_text()))
