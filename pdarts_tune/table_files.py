"""Files of the Parquet tables: their names, and how rows become one, checked. results.py reads them."""

from __future__ import annotations

import datetime
import io
import numbers
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pdarts_tune.config import ConfigError
from pdarts_tune.schemas import PRIMARY_KEYS, SCHEMAS
from pdarts_tune.storage import Storage

# Becomes a file name: no separators, nothing that file systems or shells treat in a special way, no leading dot.
_TRIAL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+-]{0,199}")
# Names a table's file that holds all trials, as analysis/publish.py makes it. No trial can be called so, for all end in a seed;
# and pandas and pyarrow would pass over a file whose name begins with an underscore, and read an empty table.
TOGETHER = "all"
TOGETHER_BEFORE = "_all"  # in earlier releases


def check_table(table: str) -> None:
    """Raises ConfigError if there is no such table."""
    if table not in SCHEMAS:
        raise ConfigError(f"table: {table!r} is unknown, known are {', '.join(SCHEMAS)}")


def table_file(study: str, table: str, trial_id: str) -> str:
    """The file of one trial and table, as a name below the study's folder.

    Raises:
        ConfigError: there is no such table, or the id cannot be a file name.
    """
    check_table(table)
    if not _TRIAL_ID.fullmatch(trial_id):
        raise ConfigError(
            f"trial_id: {trial_id!r} cannot name a file; use up to 200 of A-Z a-z 0-9 . _ = + -, a letter or digit first"
        )
    if study in SCHEMAS:
        raise ConfigError(f"study: a study cannot be called {study!r}, that is the name of a table")
    return f"{table}/{trial_id}.parquet"


def list_files(study: Storage, table: str) -> list[str]:
    """The names of a table's files, in order: one a trial, or one that holds all.

    Raises:
        ConfigError: that one is not alone, or has the name that earlier releases gave it.
    """
    names = [name for name in study.stamps(table) if name.endswith(".parquet")]
    whole, before = f"{TOGETHER}.parquet", f"{TOGETHER_BEFORE}.parquet"
    if before in names:
        raise ConfigError(f"{study}/{table}/{before}: pandas passes over this name of earlier releases, rename it to {whole}")
    if whole in names and len(names) > 1:
        other = min(set(names) - {whole})
        raise ConfigError(f"{study}/{table}/{other}: stands beside {whole}, which holds all trials; take one of the two out")
    return names


def with_key(table: str, columns: Sequence[str] | None) -> list[str]:
    """These columns or all, and those of the table's key, which `check_rows` needs."""
    return list(dict.fromkeys((*(SCHEMAS[table].names if columns is None else columns), *PRIMARY_KEYS[table])))


def check_rows(rows: Any, table: str, files: Sequence[str], origins: NDArray[np.integer[Any]]) -> None:
    """Refuses files that were copied into a table, whose rows would count twice.

    Args:
        rows: an Arrow table with the columns of the key, its dictionaries unified, in the order in which they were written.
        files: where they are from.
        origins: of each row, the index of its file.

    Raises:
        ConfigError: a file's rows are not of the trial that it is named for, or two rows have the same key.
    """
    if not rows.num_rows:
        return
    codes, trials = _encode(rows["trial_id"])
    stems = [file.rsplit("/", 1)[-1].removesuffix(".parquet") for file in files]
    if stems != [TOGETHER]:
        known = {trial: code for code, trial in enumerate(trials)}
        foreign = np.array([known.get(stem, -1) for stem in stems])[origins] != codes
        if foreign.any():
            row = int(foreign.argmax())
            trial, file = trials[codes[row]], files[origins[row]]
            raise ConfigError(f"{file}: its rows are of trial {trial}, so it is a copy; take it out, or name it {trial}.parquet")
    keys, size = codes.astype(np.int64), len(trials)
    for name in PRIMARY_KEYS[table]:
        if name != "trial_id":
            values, known_values = _encode(rows[name])
            if size * len(known_values) >= 2**63:
                keys, found = pd.factorize(keys)
                size = len(found)
            keys, size = keys * len(known_values) + values, size * len(known_values)
    if (keys[1:] > keys[:-1]).all():  # as rows are written, which takes no time to see
        return
    twice = pd.Series(keys).duplicated().to_numpy()
    if twice.any():
        row = int(twice.argmax())
        described = ", ".join(f"{name}={rows[name][row].as_py()}" for name in PRIMARY_KEYS[table])
        raise ConfigError(f"{files[origins[row]]}: two rows have the same key ({described}); take out what was added to it")


def _encode(column: Any) -> tuple[NDArray[np.int64], Sequence[Any]]:
    """The values of a column as indices of the distinct ones, or of all between the smallest and the largest."""
    if pa.types.is_integer(column.type):
        values = column.to_numpy()
        low, high = int(values.min()), int(values.max())
        return values - low, range(low, high + 1)
    if not pa.types.is_dictionary(column.type):
        column = pa.chunked_array([column.combine_chunks().dictionary_encode()])
    return np.concatenate([chunk.indices.to_numpy() for chunk in column.chunks]), column.chunk(0).dictionary.to_pylist()


class GrowingTable:
    """The rows of one trial and table, to which more are added: each time the whole file is written, but only the new are checked.

    Raises:
        ConfigError: as `table_file`.
    """

    def __init__(self, study_dir: Path | str | Storage, table: str, trial_id: str) -> None:
        self._storage = Storage(study_dir)
        self._name = table_file(self._storage.name, table, trial_id)
        self._table, self._trial_id = table, trial_id
        self._keys: dict[tuple[Any, ...], int] = {}
        self._written = SCHEMAS[table].empty_table()

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes what was added before and these rows. Raises what `write_rows` does; then nothing has been added."""
        table, trial_id, schema = self._table, self._trial_id, SCHEMAS[self._table]
        where = f"table {table}, trial {trial_id}"
        known = set(schema.names)
        for index, row in enumerate(rows):
            if row.keys() != known:
                unknown = [name for name in row if name not in known]
                missing = [name for name in schema.names if name not in row]
                parts = [
                    f"{kind} column {', '.join(names)}" for kind, names in (("unknown", unknown), ("missing", missing)) if names
                ]
                raise ConfigError(f"{where}, row {index}: {'; '.join(parts)}")
            if row["trial_id"] != trial_id:
                raise ConfigError(f"{where}, row {index}: is of trial {row['trial_id']!r}")
        keys = dict(self._keys)
        for index, row in enumerate(rows, start=len(keys)):
            key = tuple(row[name] for name in PRIMARY_KEYS[table])
            if keys.setdefault(key, index) != index:
                described = ", ".join(f"{name}={row[name]}" for name in PRIMARY_KEYS[table])
                raise ConfigError(f"{where}: rows {keys[key]} and {index} have the same key ({described})")
        columns = [_to_array([row[field.name] for row in rows], field, where) for field in schema]
        added = pa.Table.from_arrays(columns, schema=schema)
        whole = pa.concat_tables([self._written, added]).unify_dictionaries().combine_chunks()
        self._storage.write(self._name, to_parquet(whole))
        self._keys, self._written = keys, whole


def _to_array(values: list[Any], field: Any, where: str) -> Any:
    choices = (field.metadata.get(b"choices") or b"").decode().split(",")
    for index, value in enumerate(values):
        here = f"{where}, row {index}: {field.name}"
        if value is None:
            if not field.nullable:
                raise ConfigError(f"{here} is empty, it must be given")
        # Arrow would cut 1.5 to 1, and take a number for milliseconds and a time without a zone for UTC.
        elif pa.types.is_integer(field.type) and not isinstance(value, numbers.Integral):
            raise ConfigError(f"{here}: {value!r} is not an integer")
        elif pa.types.is_timestamp(field.type) and (not isinstance(value, datetime.datetime) or value.tzinfo is None):
            raise ConfigError(f"{here}: {value!r} is not a datetime with a time zone")
        elif choices != [""] and value not in choices:
            raise ConfigError(f"{here}: {value!r} is wrong, it must be one of {', '.join(choices)}")
    try:
        return pa.array(values, type=field.type)
    except (pa.ArrowException, OverflowError) as error:
        raise ConfigError(f"{where}: {field.name} does not fit its type {field.type} ({' '.join(str(error).split())})") from None


def to_parquet(content: Any) -> memoryview:
    """A table as the bytes of a Parquet file."""
    file = io.BytesIO()
    pq.write_table(content, file, compression="zstd")
    return file.getbuffer()
