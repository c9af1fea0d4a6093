"""Files of the Parquet tables: their names, and how rows become one, checked. results.py reads them."""

from __future__ import annotations

import datetime
import io
import json
import numbers
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.results.manifest import DEFINITION, count_difference, definition_difference
from pdarts_tune.results.schemas import PRIMARY_KEYS, SCHEMA_VERSION, SCHEMAS
from pdarts_tune.results.storage import Storage

# MERGED DOCSTRING
# The Parquet tables' writer and reader. The tables are the truth that every figure is computed from; schemas.py describes them.
#
# `<results>/<study>/<table>/<trial_id>.parquet` is one file a trial and table, always written whole: a reader never sees half a
# file, a trial that is run again never doubles a row, and no two trials write one file.
# MERGED DOCSTRING
# Tables of studies with thousands of trials, read at once by DuckDB.
#
# `results.read_table` opens one file after the other, which takes about a millisecond each; a large study has tens of thousands.
# This reads those of one study in a folder, several at a time, in a third of that.

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


def final_genotypes(genotypes: pd.DataFrame, trials: pd.DataFrame, limits: Collection[int] | None = None) -> pd.DataFrame:
    """The rows of `genotypes` that completed searches end with: those of the last stage.

    Args:
        genotypes: rows of the table `genotypes`, with at least `trial_id`, `stage` and `max_skips`.
        trials: rows of the table `trials`, with at least `trial_id`, `status` and `max_skips`.
        limits: the skip limits M to take; None: each trial's own.
    """
    completed = trials[trials["status"] == "completed"]
    own = dict(zip(completed["trial_id"], completed["max_skips"], strict=True))
    rows = genotypes[genotypes["trial_id"].isin(own)]
    rows = rows[rows["stage"] == rows.groupby("trial_id")["stage"].transform("max")]
    return rows[rows["max_skips"] == rows["trial_id"].map(own) if limits is None else rows["max_skips"].isin(limits)]


def final_genotype(trial: Mapping[str, Any], genotypes: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The same of one trial, from rows as `read_rows` gives them; None if the trial is not completed."""
    rows = [row for row in genotypes if row["max_skips"] == trial["max_skips"]]
    return max(rows, key=lambda row: row["stage"]) if rows and trial["status"] == "completed" else None


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
