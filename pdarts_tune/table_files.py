"""Files of the Parquet tables: their names, and how rows become one, checked. results.py reads them."""

from __future__ import annotations

import datetime
import io
import numbers
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pdarts_tune.config import ConfigError
from pdarts_tune.schemas import PRIMARY_KEYS, SCHEMAS
from pdarts_tune.storage import Storage

# Becomes a file name: no separators, nothing that file systems or shells treat in a special way, no leading dot.
_TRIAL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+-]{0,199}")


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
