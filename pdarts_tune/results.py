"""The Parquet tables' writer and reader. The tables are the truth that every figure is computed from; schemas.py describes them.

`<results>/<study>/<table>/<trial_id>.parquet` is one file a trial and table, always written whole: a reader never sees half a
file, a trial that is run again never doubles a row, and no two trials write one file.
"""

from __future__ import annotations

import datetime
import io
import json
import numbers
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pdarts_tune.config import ConfigError
from pdarts_tune.definition import DEFINITION, count_difference, definition_difference
from pdarts_tune.schemas import PRIMARY_KEYS, SCHEMA_VERSION, SCHEMAS, STATUSES
from pdarts_tune.storage import Storage

__all__ = [
    "PRIMARY_KEYS",
    "SCHEMAS",
    "SCHEMA_VERSION",
    "STATUSES",
    "GrowingTable",
    "read_file",
    "read_rows",
    "read_schema",
    "read_table",
    "table_path",
    "write_rows",
]

# Becomes a file name: no separators, nothing that file systems or shells treat in a special way, no leading dot.
_TRIAL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+-]{0,199}")


def table_path(study_dir: Path, table: str, trial_id: str) -> Path:
    """The file of one trial and table, of a study in a folder.

    Raises:
        ConfigError: as `table_file`.
    """
    return study_dir / table_file(study_dir.name, table, trial_id)


def table_file(study: str, table: str, trial_id: str) -> str:
    """The file of one trial and table, as a name below the study's folder.

    Raises:
        ConfigError: there is no such table, or the id cannot be a file name.
    """
    _check_table(table)
    if not _TRIAL_ID.fullmatch(trial_id):
        raise ConfigError(
            f"trial_id: {trial_id!r} cannot name a file; use up to 200 of A-Z a-z 0-9 . _ = + -, a letter or digit first"
        )
    if study in SCHEMAS:
        raise ConfigError(f"study: a study cannot be called {study!r}, that is the name of a table")
    return f"{table}/{trial_id}.parquet"


def write_rows(study_dir: Path | str | Storage, table: str, trial_id: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes all rows of one trial and table, in place of what was there; a reader sees the old rows or the new ones.

    Each row gives every column; the optional ones may be None. Times are datetimes with a time zone, kept to the millisecond.

    Raises:
        ConfigError: a column is unknown, missing, empty or of another type, two rows have the same key, or a row is of another
            trial. The message names table, trial, column and row.
        OSError: the folder cannot be written.
    """
    GrowingTable(study_dir, table, trial_id).add(rows)


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
        self._storage.write(self._name, _to_parquet(whole))
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
        raise ConfigError(f"{where}: {field.name} does not fit its type {field.type} ({_line(error)})") from None


def _to_parquet(content: Any) -> memoryview:
    file = io.BytesIO()
    pq.write_table(content, file, compression="zstd")
    return file.getbuffer()


def read_rows(
    study_dir: Path | str | Storage, table: str, trial_id: str, columns: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """The rows of one trial and table, as `write_rows` took them or of some columns; no rows if none were written yet.

    Raises:
        ConfigError: there is no such table, or the file cannot be read.
    """
    storage = Storage(study_dir)
    name = table_file(storage.name, table, trial_id)
    try:
        rows: list[dict[str, Any]] = _read_file(storage, name, table, columns).to_pylist()
    except FileNotFoundError:
        return []
    return rows


def read_table(
    root: Path | str | Storage | Sequence[Path | str | Storage], table: str, columns: Sequence[str] | None = None
) -> pd.DataFrame:
    """All rows of one table, in the order of studies and trial ids. `root` is a results folder, or one study's folder.

    Several of them are read as one: parts of a study that ran in different places, with the same definition.

    Units are in `SCHEMAS[table].field(column).metadata`. Integer columns that hold nulls come as floats with nan, as ever in
    pandas. A table that no trial has written to yet comes as an empty frame with all its columns.

    Args:
        columns: read these alone (much faster where a table is large).

    Raises:
        ConfigError: there is no such table or column, a folder holds no tables, a trial id is there twice, two parts of a study
            have different definitions or counts of seeds, or a file cannot be read; the message names it.
    """
    _check_table(table)
    schema = SCHEMAS[table]
    for column in columns or ():
        if column not in schema.names:
            raise ConfigError(f"table {table}: unknown column {column!r}, known are {', '.join(schema.names)}")
    roots = [root] if isinstance(root, Path | str | Storage) else list(root)
    if not roots:
        raise ConfigError("results: no folder is given")
    studies = [study for place in roots for study in _find_studies(Storage(place))]
    _check_parts(studies)
    files: dict[str, tuple[Storage, str]] = {}
    for study in studies:
        for name in sorted(study.stamps(table)):
            if not name.endswith(".parquet"):
                continue
            if name in files:
                other, trial = files[name][0], name.removesuffix(".parquet")
                if other.name == study.name:
                    raise ConfigError(f"{other} and {study} both have a trial {trial}, which would be counted twice")
                raise ConfigError(f"{roots[0]}: two studies have a trial {trial}, {other.name} and {study.name}")
            files[name] = study, f"{table}/{name}"
    with ThreadPoolExecutor() as pool:
        parts = list(pool.map(lambda file: _read_file(file[0], file[1], table, columns), files.values()))
    if columns is not None:
        schema = pa.schema([schema.field(name) for name in columns])
    frame: pd.DataFrame = pa.concat_tables([schema.empty_table(), *parts]).unify_dictionaries().to_pandas()
    return frame


def _check_table(table: str) -> None:
    if table not in SCHEMAS:
        raise ConfigError(f"table: {table!r} is unknown, known are {', '.join(SCHEMAS)}")


def _find_studies(root: Storage) -> list[Storage]:
    if not root.is_remote and not root.path.is_dir():
        raise ConfigError(f"{root}: is not a folder")
    folders = root.folders()
    if any(table in folders for table in SCHEMAS):
        return [root]
    studies = [study for study in map(root.below, folders) if any(table in study.folders() for table in SCHEMAS)]
    if not studies:
        raise ConfigError(f"{root}: holds no tables; give a results folder, or the folder of one study in it")
    return studies


def read_file(path: Path, table: str, columns: Sequence[str] | None) -> Any:
    """One file as an Arrow table, of these columns or all. ConfigError if it cannot be read or another release wrote it."""
    try:
        return _read_file(Storage(path.parent), path.name, table, columns)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: cannot be read as Parquet ({_line(error)})") from None


def read_schema(path: Path, table: str) -> tuple[Any, bytes]:
    """A file's schema, and the text that stands for it in the file. ConfigError as `read_file`."""
    try:
        metadata = pq.read_metadata(path)
        schema = metadata.schema.to_arrow_schema()
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{path}: cannot be read as Parquet ({_line(error)})") from None
    text = (metadata.metadata or {}).get(b"ARROW:schema", b"")
    _check_schema(schema if text else schema.remove_metadata(), table, str(path))  # every release writes the text
    return schema, text


def _check_parts(studies: Sequence[Storage]) -> None:
    """Rows of one study belong together only where they have one definition, and its variants one count of seeds."""
    first: dict[str, tuple[Storage, Any]] = {}
    parts: dict[str, dict[str, Any]] = {}
    for study in studies:
        if sum(other.name == study.name for other in studies) == 1:
            continue
        try:
            definition = json.loads(study.read(DEFINITION))
        except FileNotFoundError:
            continue  # tables that no study of this release wrote
        other, before = first.setdefault(study.name, (study, definition))
        changed = definition_difference(before, definition)
        if changed:
            raise ConfigError(f"{other} and {study} are of different definitions of one study: {changed}")
        parts.setdefault(study.name, {})[str(study)] = definition
    for name, definitions in parts.items():
        unlike = count_difference(definitions)
        if unlike:
            raise ConfigError(f"the parts of {name} have different counts of seeds, {unlike}; give each the same --seeds")


def _read_file(study: Storage, name: str, table: str, columns: Sequence[str] | None) -> Any:
    schema = SCHEMAS[table]
    source = pa.BufferReader(study.read(name)) if study.is_remote else study.path / name
    try:
        with pq.ParquetFile(source, pre_buffer=False) as file:  # whose threads cost more than a small file gives
            absent = _check_schema(file.schema_arrow, table, f"{study}/{name}")
            rows = file.metadata.num_rows
            content = file.read(columns=None if columns is None else list(columns), use_threads=False)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{study}/{name}: cannot be read as Parquet ({_line(error)})") from None
    for field in absent:
        if columns is None or field.name in columns:
            content = content.append_column(field, pa.nulls(rows, field.type))
    return content.select(schema.names if columns is None else columns)


def _check_schema(found: Any, table: str, where: str) -> list[Any]:
    """The fields of a table that a file from before they joined does not have. ConfigError if another release wrote the file."""
    schema = SCHEMAS[table]
    # Compared whole: a column that is missing would otherwise be read as nulls. Those that joined later may be missing.
    whole = found.equals(schema)
    absent = [] if whole else [field for field in schema if field.name not in found.names and b"later" in field.metadata]
    if (
        not (whole or found.equals(pa.schema([field for field in schema if field not in absent])))
        or (found.metadata or {}).get(b"schema_version") != _VERSION
    ):
        raise ConfigError(f"{where}: is not of schema version {SCHEMA_VERSION} of the table {table}; another release wrote it")
    return absent


_VERSION = str(SCHEMA_VERSION).encode()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
