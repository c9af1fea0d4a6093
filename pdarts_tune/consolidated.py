"""Tables of studies with thousands of trials, read without opening thousands of files each time.

Opening a small file costs about as much as a thousand rows, so of a table with many files one copy is kept:
`<study>/.consolidated/<table>.parquet`, with the columns that were asked for so far. It is never the truth: its metadata holds
name, size, time of change and inode of every file that it was made from, each reading compares them with the folder, and files
that came, went or changed since are read themselves.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pdarts_tune.config import ConfigError
from pdarts_tune.results import SCHEMAS, read_file, write_whole

MANY = 500  # files; fewer are read in less than a second
_SETTLED_SECONDS = (
    2.0  # a file may change twice within a tick of its time of change; nobody replaces one after so long and hides it
)
_KEY = b"made_from"

Stamp = tuple[int, ...]  # size, time of change in nanoseconds, inode


def read_study_table(
    study: Path, table: str, columns: Sequence[str] | None = None, *, last_epochs: bool = False, many: int = MANY
) -> pd.DataFrame:
    """The rows of one study's table in the order of trial ids, as `results.read_table` gives them.

    Args:
        columns: these alone; all if None.
        last_epochs: of `epochs` or `alphas`, only the rows of each trial's and stage's last epoch: a twenty-fifth of the paper's.
        many: from so many files on a copy is kept, made anew once a twentieth of the files differ from it.

    Raises:
        ConfigError: there is no such table or column, the folder is none, or a file cannot be read; the message names it.
    """
    if table not in SCHEMAS:
        raise ConfigError(f"table: {table!r} is unknown, known are {', '.join(SCHEMAS)}")
    names = SCHEMAS[table].names
    wanted = list(names if columns is None else dict.fromkeys(columns))
    for column in wanted:
        if column not in names:
            raise ConfigError(f"table {table}: unknown column {column!r}, known are {', '.join(names)}")
    if not study.is_dir():
        raise ConfigError(f"{study}: is not a folder")
    now = time.time_ns()
    stamps = _list_files(study / table)
    kept = study / ".consolidated" / f"{table}{'_last' if last_epochs else ''}.parquet"
    needed = list(dict.fromkeys([*wanted, "trial_id"]))
    made_from, held = _read_kept(kept, table)
    if not set(needed) <= set(held):
        made_from, needed = {}, list(dict.fromkeys([*needed, *held]))  # the next copy has both the old columns and the new ones
    stale = [name for name, stamp in stamps.items() if made_from.get(name) != stamp]
    content = _read_files(study / table, table, stale, needed, last_epochs)
    if made_from:
        unchanged = [name for name, stamp in made_from.items() if stamps.get(name) == stamp]
        old = pq.read_table(kept, columns=needed)
        if len(unchanged) < len(made_from):
            old = _of_trials(old, unchanged)
        content = pa.concat_tables([old.cast(content.schema), content])
        if stale:
            places = pc.index_in(content["trial_id"].cast(pa.string()), pa.array(list(stamps), pa.string()))
            content = content.take(np.argsort(places.to_numpy(), kind="stable"))
    content = content.unify_dictionaries()
    if len(stamps) >= many and len(stale) > len(stamps) / 20:
        settled = {name: stamp for name, stamp in stamps.items() if now - stamp[1] > 1e9 * _SETTLED_SECONDS}
        _keep(kept, table, content, settled)
    frame: pd.DataFrame = content.select(wanted).to_pandas()
    return frame


def _list_files(folder: Path) -> dict[str, Stamp]:
    """The trials that have a file, in order of their ids."""
    if not folder.is_dir():
        return {}
    found = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(".parquet") and not entry.name.startswith("."):
                state = entry.stat()
                found[entry.name.removesuffix(".parquet")] = (state.st_size, state.st_mtime_ns, state.st_ino)
    return dict(sorted(found.items()))


def _read_files(folder: Path, table: str, names: Sequence[str], columns: list[str], last_epochs: bool) -> Any:
    keys = ["stage", "epoch"] if last_epochs else []

    def read(name: str) -> Any:
        rows = read_file(folder / f"{name}.parquet", table, list(dict.fromkeys([*columns, *keys])))
        return (_only_last_epochs(rows) if last_epochs else rows).select(columns)

    schema = pa.schema([SCHEMAS[table].field(column) for column in columns])
    with ThreadPoolExecutor() as pool:
        return pa.concat_tables([schema.empty_table(), *pool.map(read, names)]).replace_schema_metadata(None)


def _only_last_epochs(rows: Any) -> Any:
    stages, epochs = rows["stage"].to_numpy(), rows["epoch"].to_numpy()
    last = {stage: epochs[stages == stage].max() for stage in set(stages.tolist())}
    return rows.filter(pa.array([last[stage] == epoch for stage, epoch in zip(stages.tolist(), epochs.tolist(), strict=True)]))


def _of_trials(rows: Any, names: Sequence[str]) -> Any:
    return rows.filter(pc.is_in(rows["trial_id"].cast(pa.string()), pa.array(names, pa.string())))


def _read_kept(path: Path, table: str) -> tuple[dict[str, Stamp], list[str]]:
    """What a kept copy was made from, and its columns; nothing if there is none that this release wrote whole."""
    try:
        schema = pq.read_schema(path)
        about = json.loads(schema.metadata[_KEY])
        stamps = {name: tuple(stamp) for name, stamp in about["files"].items()} if about["schema"] == _digest(table) else {}
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError):
        return {}, []
    return stamps, list(schema.names) if stamps else []


def _keep(path: Path, table: str, content: Any, stamps: dict[str, Stamp]) -> None:
    about = json.dumps({"schema": _digest(table), "files": stamps}).encode()
    with contextlib.suppress(OSError):  # a folder that this user may only read
        for part in path.parent.glob(".*.tmp"):  # of writers that were killed
            if time.time() - part.stat().st_mtime > 3600:
                part.unlink(missing_ok=True)
        write_whole(path, _of_trials(content, list(stamps)).replace_schema_metadata({_KEY: about}))


def _digest(table: str) -> str:
    return hashlib.sha256(SCHEMAS[table].serialize()).hexdigest()
