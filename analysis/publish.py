"""Copies a finished study for publication beside a paper: a few files in place of thousands.

python analysis/publish.py --results results/depth_gap --out docs/results/depth_gap --command "python studies/depth_gap.py"

Each table becomes one file, with all its rows and columns. All readers and scripts work on the copy as on the study's folder.
Data in files get the name of their folder, without its place: `parquet:cifar10` for `parquet:/home/me/cifar10`. Beside the tables
stand the study's definition, its report (Markdown, CSV, LaTeX and PNG) and a README that says where the figures come from: commits,
versions, devices, times, and the command, which no table has.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa

from common.section import errors_in_one_line, write_text
from common.study_tables import listed
from pdarts_tune.config.command_line import parse
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.config.serialize import ConfigError, config_id, from_dict, short_name
from pdarts_tune.results.manifest import COMPLETED, DEFINITION
from pdarts_tune.results.schemas import SCHEMAS
from pdarts_tune.results.storage import Storage
from pdarts_tune.results.tables import TOGETHER, list_files, read_study, read_table, to_parquet

TEXTS, PICTURES = (".md", ".csv", ".tex"), (".png",)  # of a report


@dataclass(frozen=True)
class Arguments:
    results: Path
    """The folder of one study."""
    out: Path
    """The folder to write; a copy that is there is replaced."""
    command: str = ""
    """How the study was run, for the README."""


def publish(study: Path, out: Path, command: str) -> None:
    """Writes the copy.

    Raises:
        ConfigError: `study` is no study's folder or not finished, one of its files cannot be read, `out` is a study's folder, or
            two data sets would have one name.
    """
    if not (study / "trials").is_dir():
        raise ConfigError(f"{study}: is not the folder of a study, it has no folder trials")
    if not (study / COMPLETED).exists():
        raise ConfigError(f"{study}: has no {COMPLETED}; run the study's command again until it is finished")
    if out.resolve() == study.resolve():
        raise ConfigError(f"{out}: is the study itself")
    target = Storage(out)
    for table in SCHEMAS:
        others = [name for name in list_files(target, table) if name != f"{TOGETHER}.parquet"]
        if others:
            raise ConfigError(f"{out}: holds {table}/{others[0]}, so it is a study and no copy of one; name another folder")
    tables = {table: read_study(Storage(study), table).combine_chunks() for table in SCHEMAS}
    places = _find_places({name for table in ("trials", "evaluations") for name in tables[table]["data"].to_pylist()})

    def rename(text: str) -> str:
        for place in sorted(places, key=len, reverse=True):  # one may be the beginning of another
            text = text.replace(place, places[place]).replace(json.dumps(place)[1:-1], places[place])
        return text

    for table, whole in tables.items():
        target.write(f"{table}/{TOGETHER}.parquet", to_parquet(_rename_data(whole, rename) if places else whole))
    for name in (DEFINITION, COMPLETED):
        target.write(name, rename((study / name).read_text()).encode())
    shutil.rmtree(out / "report", ignore_errors=True)
    for file in sorted((study / "report").glob("*")):
        if file.suffix in TEXTS:
            target.write(f"report/{file.name}", rename(file.read_text()).encode())
        elif file.suffix in PICTURES:
            target.write(f"report/{file.name}", file.read_bytes())
    write_text(out / "README.md", describe(study, rename(command)))


def _find_places(data: Collection[str]) -> dict[str, str]:
    """The folders of data sets in files, with the names that stand for them. ConfigError if two would have one name."""
    places: dict[str, str] = {}
    for name in sorted(data):
        short = short_name(name)
        if short != name:
            other = next((known for known, taken in places.items() if taken == short), None)
            if other is not None:
                raise ConfigError(f"data: {other} and {name} would both be called {short} in a copy; rename one of the folders")
            places[name] = short
    return places


def _rename_data(table: pa.Table, rename: Callable[[str], str]) -> pa.Table:
    """A configuration keeps being named by its content."""
    for name in ("data", "config"):
        if name in table.column_names:
            values = pa.array([rename(text) for text in table[name].to_pylist()], table.schema.field(name).type)
            table = table.set_column(table.column_names.index(name), table.schema.field(name), values)
    if "config_id" in table.column_names:
        configs = [from_dict(SearchConfig, json.loads(text)) for text in table["config"].to_pylist()]
        field = table.schema.field("config_id")
        table = table.set_column(table.column_names.index("config_id"), field, pa.array(map(config_id, configs), field.type))
    return table


def describe(study: Path, command: str) -> str:
    """Where the figures come from, as Markdown."""
    trials, evaluations = read_table(study, "trials"), read_table(study, "evaluations")
    runs = pd.concat([trials, evaluations])
    hours = [f"{table['seconds'].sum() / 3600:.1f}" for table in (trials, evaluations)]
    began, ended = (f"{time:%Y-%m-%d %H:%M}" for time in (runs["started"].min(), runs["finished"].max()))
    lines = {
        "command": f"`{command}`" if command else "not recorded",
        "commit": listed(trials["commit"]) or "not known",
        "device": listed(runs["device"]) or "not known",
        "versions": listed(trials["versions"]) or "not known",
        "searches": f"{len(trials)}, {hours[0]} hours of one device",
        "evaluations": f"{len(evaluations)}, {hours[1]} hours of one device",
        "first start, last end": f"{began}, {ended} UTC, pauses included",
    }
    rows = "\n".join(f"| {name} | {value} |" for name, value in lines.items())
    reports = ", ".join(f"[{file.name}](report/{file.name})" for file in sorted((study / "report").glob("*.md")))
    closing = f"Report: {reports or 'none'}. Tables: one Parquet file each, `*/{TOGETHER}.parquet`."
    return f"# {study.name}\n\n| | |\n|---|---|\n{rows}\n\n{closing}\n"


def main(arguments: Sequence[str] | None = None) -> None:
    settings = parse(Arguments, arguments, description=__doc__ or "")
    with errors_in_one_line():
        publish(settings.results, settings.out, settings.command)
    size = sum(file.stat().st_size for file in settings.out.rglob("*") if file.is_file())
    print(f"{settings.out}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
