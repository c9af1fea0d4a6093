"""The Parquet tables' writer and reader. The tables are the truth that every figure is computed from; schemas.py describes them.

`<results>/<study>/<table>/<trial_id>.parquet` is one file a trial and table, always written whole: a reader never sees half a
file, a trial that is run again never doubles a row, and no two trials write one file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pdarts_tune.config import ConfigError
from pdarts_tune.definition import DEFINITION, count_difference, definition_difference
from pdarts_tune.schemas import PRIMARY_KEYS, SCHEMA_VERSION, SCHEMAS, STATUSES
from pdarts_tune.storage import Storage
from pdarts_tune.table_files import (
    TOGETHER,
    TOGETHER_BEFORE,
    GrowingTable,
    check_rows,
    check_table,
    list_files,
    table_file,
    to_parquet,
    with_key,
)

__all__ = [
    "PRIMARY_KEYS",
    "SCHEMAS",
    "SCHEMA_VERSION",
    "STATUSES",
    "TOGETHER",
    "GrowingTable",
    "read_file",
    "read_rows",
    "read_schema",
    "read_table",
    "read_whole",
    "table_file",
    "table_path",
    "to_parquet",
    "write_rows",
]


def table_path(study_dir: Path, table: str, trial_id: str) -> Path:
    """The file of one trial and table, of a study in a folder.

    Raises:
        ConfigError: as `table_file`.
    """
    return study_dir / table_file(study_dir.name, table, trial_id)


def write_rows(study_dir: Path | str | Storage, table: str, trial_id: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes all rows of one trial and table, in place of what was there; a reader sees the old rows or the new ones.

    Each row gives every column; the optional ones may be None. Times are datetimes with a time zone, kept to the millisecond.

    Raises:
        ConfigError: a column is unknown, missing, empty or of another type, two rows have the same key, or a row is of another
            trial. The message names table, trial, column and row.
        OSError: the folder cannot be written.
    """
    GrowingTable(study_dir, table, trial_id).add(rows)


def read_rows(
    study_dir: Path | str | Storage, table: str, trial_id: str, columns: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """The rows of one trial and table, as `write_rows` took them or of some columns; no rows if none were written yet.

    Raises:
        ConfigError: there is no such table, or the file cannot be read or holds other rows than its name says.
    """
    storage = Storage(study_dir)
    name, whole = table_file(storage.name, table, trial_id), f"{table}/{TOGETHER}.parquet"
    wanted = with_key(table, columns)
    try:
        content = _read_file(storage, name, table, wanted)
        if storage.stamp(whole):
            list_files(storage, table)  # refuses that both are there
    except FileNotFoundError:
        name = whole
        try:
            content = _read_file(storage, whole, table, wanted)
        except FileNotFoundError:
            if storage.stamp(f"{table}/{TOGETHER_BEFORE}.parquet"):
                list_files(storage, table)
            return []
        content = content.filter(pc.equal(content["trial_id"], trial_id))
    check_rows(content.unify_dictionaries(), table, [f"{storage}/{name}"], np.zeros(content.num_rows, np.int64))
    rows: list[dict[str, Any]] = content.select(columns or content.column_names).to_pylist()
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
            have different definitions or counts of seeds, or a file cannot be read or holds other rows than its name says; the
            message names it.
    """
    check_table(table)
    schema = SCHEMAS[table]
    for column in columns or ():
        if column not in schema.names:
            raise ConfigError(f"table {table}: unknown column {column!r}, known are {', '.join(schema.names)}")
    roots = [root] if isinstance(root, Path | str | Storage) else list(root)
    if not roots:
        raise ConfigError("results: no folder is given")
    studies = [study for place in roots for study in _find_studies(Storage(place))]
    _check_parts(studies)
    parts = []
    owners: dict[str, Storage] = {}
    for study in studies:
        rows = read_whole(study, table, columns)
        for trial in rows["trial_id"].unique().to_pylist():
            if trial not in owners:
                owners[trial] = study
            elif owners[trial].name == study.name:
                raise ConfigError(f"{owners[trial]} and {study} both have a trial {trial}, which would be counted twice")
            else:
                raise ConfigError(f"{roots[0]}: two studies have a trial {trial}, {owners[trial].name} and {study.name}")
        parts.append(rows.select(schema.names if columns is None else columns))
    frame: pd.DataFrame = pa.concat_tables(parts).unify_dictionaries().to_pandas()
    return frame


def read_whole(study: Storage, table: str, columns: Sequence[str] | None = None) -> Any:
    """One study's rows of a table as an Arrow table: all columns, or these and those of the key. ConfigError as `read_table`."""
    names, wanted = list_files(study, table), with_key(table, columns)
    with ThreadPoolExecutor() as pool:
        parts = list(pool.map(lambda name: _read_file(study, f"{table}/{name}", table, wanted), names))
    empty = pa.schema([SCHEMAS[table].field(name) for name in wanted], SCHEMAS[table].metadata).empty_table()
    rows = pa.concat_tables([empty, *parts]).unify_dictionaries()
    origins = np.repeat(np.arange(len(parts)), [part.num_rows for part in parts])
    check_rows(rows, table, [f"{study}/{table}/{name}" for name in names], origins)
    return rows


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
        return _read_file(Storage(path.parent.parent), f"{path.parent.name}/{path.name}", table, columns)
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
    wanted = schema.names if columns is None else columns
    try:
        with pq.ParquetFile(source, pre_buffer=False) as file:  # whose threads cost more than a small file gives
            absent = _check_schema(file.schema_arrow, table, f"{study}/{name}")
            rows = file.metadata.num_rows
            mended = holds_diagnostics(table, file.schema_arrow, wanted)
            if mended and columns is not None:
                columns = list(dict.fromkeys((*columns, "trial_id", "seconds", "diagnostic_seconds")))
            content = file.read(columns=None if columns is None else list(columns), use_threads=False)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{study}/{name}: cannot be read as Parquet ({_line(error)})") from None
    for field in absent:
        if columns is None or field.name in columns:
            content = content.append_column(field, pa.nulls(rows, field.type))
    if mended:
        content = _without_diagnostics(study, name, table, content)
        content = content.replace_schema_metadata(schema.metadata)
    return content.select(wanted)


def holds_diagnostics(table: str, found: Any, columns: Sequence[str]) -> bool:
    """Whether a file of this schema has, in one of these columns, seconds of a release whose seconds held the diagnostics."""
    is_old = (found.metadata or {}).get(b"schema_version") == b"1"
    return is_old and table in ("trials", "epochs") and not {"seconds", "diagnostic_seconds"}.isdisjoint(columns)


def _without_diagnostics(study: Storage, name: str, table: str, content: Any) -> Any:
    """The rows of an older release's file with the time of the diagnostics taken off `seconds`, which then held it.

    A search's diagnostics are the sum of its epochs', which are in the file of the same name; a drawn genotype has none.
    """
    if table == "trials":
        try:
            epochs = _read_file(study, f"epochs/{Path(name).name}", "epochs", ["trial_id", "diagnostic_seconds"])
        except FileNotFoundError:
            epochs = SCHEMAS["epochs"].empty_table()
        spent = dict.fromkeys(content["trial_id"].to_pylist(), 0.0)
        for trial_id, seconds in zip(epochs["trial_id"].to_pylist(), epochs["diagnostic_seconds"].to_pylist(), strict=True):
            spent[trial_id] = spent.get(trial_id, 0.0) + seconds
        values = pa.array([spent[trial_id] for trial_id in content["trial_id"].to_pylist()], pa.float64())
        field = SCHEMAS[table].field("diagnostic_seconds")
        content = content.set_column(content.column_names.index(field.name), field, values)
    field = SCHEMAS[table].field("seconds")
    alone = pc.subtract(content["seconds"], content["diagnostic_seconds"])
    return content.set_column(content.column_names.index("seconds"), field, alone)


def _check_schema(found: Any, table: str, where: str) -> list[Any]:
    """The fields of a table that a file from before they joined does not have. ConfigError if another release wrote the file."""
    schema = SCHEMAS[table]
    # Compared whole: a column that is missing would otherwise be read as nulls. Those that joined later may be missing.
    whole = found.equals(schema)
    absent = [] if whole else [field for field in schema if field.name not in found.names and b"later" in field.metadata]
    if (
        not (whole or found.equals(pa.schema([field for field in schema if field not in absent])))
        or (found.metadata or {}).get(b"schema_version") not in _VERSIONS
    ):
        raise ConfigError(f"{where}: is not of schema version 1 or {SCHEMA_VERSION} of the table {table}; another release wrote it")
    return absent


_VERSIONS = (b"1", str(SCHEMA_VERSION).encode())


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
