"""The five Parquet tables of a study: how they are written, and the one reader of them.

`<results>/<study>/<table>/<trial_id>.parquet` holds the rows of one trial in one table. A file is always written whole. So a reader
never sees half a file, a trial that runs again never doubles a row, and no two trials write one file. A published copy of a study
has one file `all.parquet` a table, with the rows of all trials. `results/schemas.py` describes the columns.
"""

from __future__ import annotations

import datetime
import io
import json
import numbers
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.pdarts.genotype import Genotype
from pdarts_tune.pdarts.regularization import derive_genotype
from pdarts_tune.pdarts.space import EDGES
from pdarts_tune.results.manifest import DEFINITION, count_difference, definition_difference
from pdarts_tune.results.schemas import PRIMARY_KEYS, SCHEMA_VERSION, SCHEMAS
from pdarts_tune.results.storage import Storage

if TYPE_CHECKING:
    import pandas as pd

# No separators, no character that file systems or shells treat in a special way, no leading dot.
_TRIAL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+-]{0,199}")
# Names the file that holds all trials. No trial has this name, because trial ids end in a seed. pandas and pyarrow pass over a file
# whose name begins with an underscore, and return an empty table.
TOGETHER = "all"
TOGETHER_BEFORE = "_all"  # in earlier releases
ALL_ROWS: Mapping[str, Collection[Any]] = MappingProxyType({})


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


def list_files(study: Storage, table: str) -> list[str]:
    """The names of a table's files, in order: one file a trial, or one file that holds all.

    Raises:
        ConfigError: another file stands beside the one that holds all, or that one has its name of earlier releases.
    """
    names = [name for name in study.stamps(table) if name.endswith(".parquet")]
    whole, before = f"{TOGETHER}.parquet", f"{TOGETHER_BEFORE}.parquet"
    if before in names:
        raise ConfigError(f"{study}/{table}/{before}: pandas passes over this name of earlier releases, rename it to {whole}")
    if whole in names and len(names) > 1:
        other = min(set(names) - {whole})
        raise ConfigError(f"{study}/{table}/{other}: stands beside {whole}, which holds all trials; take one of the two out")
    return names


def read_table(
    root: Path | str | Storage | Sequence[Path | str | Storage],
    table: str,
    columns: Sequence[str] | None = None,
    *,
    only: Mapping[str, Collection[Any]] = ALL_ROWS,
) -> pd.DataFrame:
    """The rows of one table, in the order of studies and trial ids.

    Units are in `SCHEMAS[table].field(column).metadata`. pandas has no integer nulls: an integer column with nulls comes as floats
    with nan. A table without rows has all its columns.

    Args:
        root: a results folder, or the folder of one study. Several are read as one: parts of a study that ran in different places.
        columns: these alone; None: all. Few columns of a large table are read much faster.
        only: the rows that have one of the given values in each of these columns.

    Raises:
        ConfigError: a table or column is unknown, a folder holds no tables, a trial id occurs twice, two parts of a study have
            different definitions or counts of seeds, or a file is damaged or copied. The message names it.
    """
    _check_table(table)
    names = SCHEMAS[table].names
    for column in (*(columns or ()), *only):
        if column not in names:
            raise ConfigError(f"table {table}: unknown column {column!r}, known are {', '.join(names)}")
    roots = [root] if isinstance(root, Path | str | Storage) else list(root)
    if not roots:
        raise ConfigError("results: no folder is given")
    studies = [study for place in roots for study in _find_studies(Storage(place))]
    _check_parts(studies)
    parts = []
    owners: dict[str, Storage] = {}
    for study in studies:
        rows = read_study(study, table, columns, only)
        for trial in rows["trial_id"].unique().to_pylist() if len(studies) > 1 else ():
            owner = owners.setdefault(trial, study)
            if owner is not study and owner.name == study.name:
                raise ConfigError(f"{owner} and {study} both have a trial {trial}, which would be counted twice")
            if owner is not study:
                raise ConfigError(f"{roots[0]}: two studies have a trial {trial}, {owner.name} and {study.name}")
        parts.append(rows.select(names if columns is None else columns))
    return pa.concat_tables(parts).unify_dictionaries().to_pandas()


def read_study(
    study: Storage, table: str, columns: Sequence[str] | None = None, only: Mapping[str, Collection[Any]] = ALL_ROWS
) -> Any:
    """The rows of one study's table as an Arrow table. It has these columns and those of the table's key. As `read_table` else."""
    names, wanted = list_files(study, table), _with_key(table, columns)

    def read(name: str) -> Any:
        rows = _read_file(study, f"{table}/{name}", table, [*wanted, *(set(only) - set(wanted))])
        for column, values in only.items():
            rows = rows.filter(pc.is_in(rows[column].cast(SCHEMAS[table].field(column).type), pa.array(list(values))))
        return rows.select(wanted)

    with ThreadPoolExecutor() as pool:
        parts = list(pool.map(read, names))
    empty = pa.schema([SCHEMAS[table].field(name) for name in wanted], SCHEMAS[table].metadata).empty_table()
    rows = pa.concat_tables([empty, *parts]).unify_dictionaries()
    origins = np.repeat(np.arange(len(parts)), [part.num_rows for part in parts])
    _check_rows(rows, table, [f"{study}/{table}/{name}" for name in names], origins)
    return rows


def read_rows(
    study_dir: Path | str | Storage, table: str, trial_id: str, columns: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """The rows of one trial and table, as `write_rows` took them, or some columns of them. No rows if none are written yet.

    Raises:
        ConfigError: there is no such table, or the file is damaged or copied.
    """
    study = Storage(study_dir)
    name, whole = table_file(study.name, table, trial_id), f"{TOGETHER}.parquet"
    wanted = _with_key(table, columns)
    try:
        rows = _read_file(study, name, table, wanted)
        if study.stamp(f"{table}/{whole}"):
            list_files(study, table)  # raises: both are there
    except FileNotFoundError:
        if whole not in list_files(study, table):
            return []
        name = f"{table}/{whole}"
        rows = _read_file(study, name, table, wanted)
        rows = rows.filter(pc.equal(rows["trial_id"], trial_id))
    _check_rows(rows.unify_dictionaries(), table, [f"{study}/{name}"], np.zeros(rows.num_rows, np.int64))
    return rows.select(columns or rows.column_names).to_pylist()


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


def chosen_epoch(trial: Mapping[str, Any], epochs: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The row of `epochs` that a completed search took its cell from; None where nothing was trained.

    For a random search this is the last epoch of the best candidate, for others the epoch of the last stage whose alphas decided.
    """
    by_place = {(row["stage"], row["epoch"]): row for row in epochs}
    ends = [by_place[row["stage"], row["derived_epoch"]] for row in epochs if row["derived_epoch"] is not None]
    key = "validation_accuracy" if trial["method"] == "random_search" else "stage"
    return max(sorted(ends, key=lambda row: row["stage"]), key=lambda row: row[key], default=None)  # of equals, the first


def epoch_genotypes(study: Path | Storage, trial_id: str, max_skips: int) -> dict[tuple[int, int], Genotype]:
    """The genotype that a search's alphas give after each epoch, by stage and epoch; none of a search without alphas."""
    probabilities: dict[tuple[int, int], dict[str, list[dict[str, float]]]] = {}
    weights: dict[tuple[int, int], dict[str, list[float | None]]] = {}
    columns = ("stage", "epoch", "cell", "edge", "operation", "probability", "edge_weight")
    for row in read_rows(study, "alphas", trial_id, columns):
        place, cell, edge = (row["stage"], row["epoch"]), row["cell"], row["edge"]
        edges = probabilities.setdefault(place, {name: [{} for _ in EDGES] for name in ("normal", "reduce")})
        edges[cell][edge][row["operation"]] = row["probability"]
        weights.setdefault(place, {name: [None] * len(EDGES) for name in edges})[cell][edge] = row["edge_weight"]
    genotypes = {}
    for place, edges in probabilities.items():
        known: Any = None if None in weights[place]["normal"] else weights[place]
        genotypes[place] = derive_genotype(edges, known, max_skips)
    return genotypes


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
            continue  # another program wrote these tables
        other, before = first.setdefault(study.name, (study, definition))
        changed = definition_difference(before, definition)
        if changed:
            raise ConfigError(f"{other} and {study} are of different definitions of one study: {changed}")
        parts.setdefault(study.name, {})[str(study)] = definition
    for name, definitions in parts.items():
        unlike = count_difference(definitions)
        if unlike:
            raise ConfigError(f"the parts of {name} have different counts of seeds, {unlike}; give each the same --seeds")


def _check_table(table: str) -> None:
    if table not in SCHEMAS:
        raise ConfigError(f"table: {table!r} is unknown, known are {', '.join(SCHEMAS)}")


def _with_key(table: str, columns: Sequence[str] | None) -> list[str]:
    """These columns or all, and those of the table's key, which `_check_rows` needs."""
    return list(dict.fromkeys((*(SCHEMAS[table].names if columns is None else columns), *PRIMARY_KEYS[table])))


_VERSIONS = (b"1", str(SCHEMA_VERSION).encode())
_ABSENT: dict[tuple[str, bytes], list[Any]] = {}  # by table and a file's schema as text: columns that the file does not have


def _read_file(study: Storage, name: str, table: str, columns: Sequence[str]) -> Any:
    """These columns of one file as an Arrow table. ConfigError if the file is damaged or another release wrote it."""
    schema = SCHEMAS[table]
    source = pa.BufferReader(study.read(name)) if study.is_remote else study.path / name
    try:
        with pq.ParquetFile(source, pre_buffer=False) as file:  # its threads cost more than a small file gives
            text = (file.metadata.metadata or {}).get(b"ARROW:schema", b"")  # every release writes it
            if (table, text) not in _ABSENT:  # files of one release carry the same text: to parse one of them is enough
                _ABSENT[table, text] = _absent_columns(file.schema_arrow if text else None, table, f"{study}/{name}")
            # The seconds of version 1 hold the diagnostics' seconds.
            is_old = file.metadata.metadata.get(b"schema_version") == b"1" and table in ("trials", "epochs")
            mended = is_old and not {"seconds", "diagnostic_seconds"}.isdisjoint(columns)
            needed = list(dict.fromkeys([*columns, *(("trial_id", "seconds", "diagnostic_seconds") if mended else ())]))
            rows = file.read(columns=needed, use_threads=False)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{study}/{name}: cannot be read as Parquet ({' '.join(str(error).split())})") from None
    for field in _ABSENT[table, text]:
        if field.name in needed:
            rows = rows.append_column(field, pa.nulls(rows.num_rows, field.type))
    if mended:
        rows = _without_diagnostics(study, name, table, rows).replace_schema_metadata(schema.metadata)
    return rows.select(columns)


def _absent_columns(found: Any, table: str, where: str) -> list[Any]:
    """The columns that joined later than this schema. ConfigError if it is of another release.

    Schemas are compared whole: any other column that is missing would be read as nulls.
    """
    schema = SCHEMAS[table]
    names = () if found is None else found.names
    absent = [field for field in schema if field.name not in names and b"later" in field.metadata]
    if (
        found is None
        or not found.equals(pa.schema([field for field in schema if field not in absent]))
        or (found.metadata or {}).get(b"schema_version") not in _VERSIONS
    ):
        raise ConfigError(f"{where}: is not of schema version 1 or {SCHEMA_VERSION} of the table {table}; another release wrote it")
    return absent


def _without_diagnostics(study: Storage, name: str, table: str, rows: Any) -> Any:
    """Rows of version 1 with the time of the diagnostics taken off `seconds`.

    The diagnostics of a search are the sum of its epochs', which are in the file of the same name. A drawn genotype has none.
    """
    if table == "trials":
        try:
            epochs = _read_file(study, f"epochs/{Path(name).name}", "epochs", ["trial_id", "diagnostic_seconds"])
        except FileNotFoundError:
            epochs = SCHEMAS["epochs"].empty_table()
        spent = dict.fromkeys(rows["trial_id"].to_pylist(), 0.0)
        for trial_id, seconds in zip(epochs["trial_id"].to_pylist(), epochs["diagnostic_seconds"].to_pylist(), strict=True):
            spent[trial_id] = spent.get(trial_id, 0.0) + seconds
        values = pa.array([spent[trial_id] for trial_id in rows["trial_id"].to_pylist()], pa.float64())
        field = SCHEMAS[table].field("diagnostic_seconds")
        rows = rows.set_column(rows.column_names.index(field.name), field, values)
    alone = pc.subtract(rows["seconds"], rows["diagnostic_seconds"])
    return rows.set_column(rows.column_names.index("seconds"), SCHEMAS[table].field("seconds"), alone)


def _check_rows(rows: Any, table: str, files: Sequence[str], origins: NDArray[np.integer[Any]]) -> None:
    """Refuses files that were copied into a table, whose rows would count twice.

    Args:
        rows: an Arrow table with the columns of the key, its dictionaries unified.
        files: where they are from.
        origins: of each row, the index of its file.

    Raises:
        ConfigError: a file's rows are not of the trial that it is named for, or two rows have the same key.
    """
    keys = rows.select(PRIMARY_KEYS[table]).to_pandas()
    names = np.array([Path(file).stem for file in files], dtype=object)
    foreign = (keys["trial_id"].to_numpy() != names[origins]) & (names[origins] != TOGETHER)
    if foreign.any():
        trial, file = keys["trial_id"][foreign.argmax()], files[origins[foreign.argmax()]]
        raise ConfigError(f"{file}: its rows are of trial {trial}, so it is a copy; take it out, or name it {trial}.parquet")
    again = keys.duplicated()
    if again.any():
        key = ", ".join(f"{name}={value}" for name, value in keys.loc[again.idxmax()].items())
        raise ConfigError(f"{files[origins[again.idxmax()]]}: two rows have the same key ({key}); take out what was added to it")


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
    """The rows of one trial and table, to which more are added. Each time the whole file is written; only new rows are checked.

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
        """Writes the earlier rows and these. Raises what `write_rows` raises; then the table is as before."""
        table, trial_id, schema = self._table, self._trial_id, SCHEMAS[self._table]
        where = f"table {table}, trial {trial_id}"
        names = set(schema.names)
        for index, row in enumerate(rows):
            if row.keys() != names:
                wrong = {
                    "unknown column": [name for name in row if name not in names],
                    "missing column": [name for name in schema.names if name not in row],
                }
                parts = [f"{kind} {', '.join(columns)}" for kind, columns in wrong.items() if columns]
                raise ConfigError(f"{where}, row {index}: {'; '.join(parts)}")
            if row["trial_id"] != trial_id:
                raise ConfigError(f"{where}, row {index}: is of trial {row['trial_id']!r}")
        keys = dict(self._keys)
        for index, row in enumerate(rows, start=len(keys)):
            key = tuple(row[name] for name in PRIMARY_KEYS[table])
            if keys.setdefault(key, index) != index:
                described = ", ".join(f"{name}={row[name]}" for name in PRIMARY_KEYS[table])
                raise ConfigError(f"{where}: rows {keys[key]} and {index} have the same key ({described})")
        arrays = [_to_array([row[field.name] for row in rows], field, where) for field in schema]
        whole = pa.concat_tables([self._written, pa.Table.from_arrays(arrays, schema=schema)])
        whole = whole.unify_dictionaries().combine_chunks()
        self._storage.write(self._name, to_parquet(whole))
        self._keys, self._written = keys, whole


def _to_array(values: list[Any], field: Any, where: str) -> Any:
    choices = (field.metadata.get(b"choices") or b"").decode().split(",")
    for index, value in enumerate(values):
        here = f"{where}, row {index}: {field.name}"
        if value is None:
            if not field.nullable:
                raise ConfigError(f"{here} is empty, it must be given")
        # Arrow cuts 1.5 to 1, and takes a number for milliseconds and a time without a zone for UTC.
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
