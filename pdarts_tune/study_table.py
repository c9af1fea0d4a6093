"""Tables of studies with thousands of trials, read at once by DuckDB.

`results.read_table` opens one file after the other, which takes about a millisecond each; a large study has tens of thousands. This
reads those of one study in a folder, several at a time, in a third of that.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from pdarts_tune.config import ConfigError
from pdarts_tune.results import SCHEMAS, holds_diagnostics, read_file, read_schema
from pdarts_tune.storage import Storage
from pdarts_tune.table_files import check_rows, list_files, with_key

_CONFIG: dict[str, Any] = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
}  # nothing is fetched from a network
ALL_ROWS: Mapping[str, Collection[int]] = MappingProxyType({})
_FOOTER_BYTES = 2**16  # at the end of a file; the largest footers, those of epochs, have 17,000
_READERS = 8


def read_study_table(
    study: Path, table: str, columns: Sequence[str] | None = None, *, only: Mapping[str, Collection[int]] = ALL_ROWS
) -> pd.DataFrame:
    """The rows of one study's table in the order of trial ids, as `results.read_table` gives them.

    Args:
        columns: these alone; all if None.
        only: the rows that have one of the given values in each of these columns.

    Raises:
        ConfigError: there is no such table or column, the folder is none, or a file cannot be read or holds other rows than its
            name says; the message names it.
    """
    if table not in SCHEMAS:
        raise ConfigError(f"table: {table!r} is unknown, known are {', '.join(SCHEMAS)}")
    names = SCHEMAS[table].names
    wanted = list(names if columns is None else columns)
    for column in (*wanted, *only):
        if column not in names:
            raise ConfigError(f"table {table}: unknown column {column!r}, known are {', '.join(names)}")
    if not study.is_dir():
        raise ConfigError(f"{study}: is not a folder")
    schema = pa.schema([SCHEMAS[table].field(column) for column in wanted])
    files = [study / table / name for name in list_files(Storage(study), table)]
    content = _read(files, table, schema, only) if files else schema.empty_table()
    frame: pd.DataFrame = content.to_pandas()
    return frame


def _read(files: Sequence[Path], table: str, schema: Any, only: Mapping[str, Collection[int]]) -> Any:
    # Each name is a pattern to DuckDB, which must match itself alone.
    patterns = ["".join(f"[{letter}]" if letter in "*?[" else letter for letter in str(file)) for file in files]
    schemas = _find_schemas(files, table)
    if any(holds_diagnostics(table, found, schema.names) for found in schemas):
        parts = [read_file(file, table, with_key(table, [*schema.names, *only])) for file in files]
        rows = pa.concat_tables(parts)
        check_rows(rows, table, list(map(str, files)), np.repeat(np.arange(len(parts)), [part.num_rows for part in parts]))
        for name, values in only.items():
            rows = rows.filter(pc.is_in(rows[name], pa.array(list(values), rows.schema.field(name).type)))
        return rows.select(schema.names).cast(schema)
    held = {name for other in schemas for name in other.names}
    keyed = pa.schema([SCHEMAS[table].field(name) for name in with_key(table, schema.names)])
    shown = [f'"{name}"' if name in held else f'NULL AS "{name}"' for name in keyed.names]
    try:
        with duckdb.connect(config=_CONFIG) as database:
            chosen = f"SELECT {', '.join(shown)}, file_index::INTEGER AS file_index FROM"  # names of SCHEMAS alone
            rows = database.sql(
                f"{chosen} read_parquet($files, hive_partitioning = false, union_by_name = $several)"
                + (f" WHERE {' AND '.join(f'list_contains(${name}, {name})' for name in only)}" if only else ""),
                params={"files": patterns, "several": len(schemas) > 1} | {name: list(values) for name, values in only.items()},
            ).to_arrow_table()
    except (duckdb.Error, pa.ArrowException, ValueError) as error:
        for file in files:
            read_file(file, table, schema.names)  # names the one that cannot be read, and why
        raise ConfigError(f"{files[0].parent}: cannot be read as Parquet ({error})") from None
    repeated = [field.name for field in keyed if pa.types.is_dictionary(field.type)]
    for name in repeated:
        index = rows.schema.get_field_index(name)
        rows = rows.set_column(index, name, rows[name].dictionary_encode())
    content = rows.select(keyed.names).cast(keyed).unify_dictionaries()
    check_rows(content, table, list(map(str, files)), rows["file_index"].to_numpy())
    return content.select(schema.names)


def _find_schemas(files: Sequence[Path], table: str) -> list[Any]:
    """The distinct schemas of the files. ConfigError if another release wrote one of them.

    Parsing a footer takes half as long as reading a small file. The files of a table mostly carry the same schema, byte for byte:
    a footer is parsed only if it holds none of those that were seen before.
    """
    first, text = read_schema(files[0], table)
    found = {text: first}

    def check(part: Sequence[Path]) -> None:
        for file in part:
            footer = _read_end(file)
            if not any(text in footer for text in tuple(found)):
                schema, text = read_schema(file, table)
                found[text] = schema

    with ThreadPoolExecutor(_READERS) as pool:  # files that the system does not hold in memory come from the disk side by side
        list(pool.map(check, [files[start::_READERS] for start in range(_READERS)]))
    return list(found.values())


def _read_end(file: Path) -> bytes:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        return os.pread(descriptor, _FOOTER_BYTES, max(0, os.fstat(descriptor).st_size - _FOOTER_BYTES))
    finally:
        os.close(descriptor)
