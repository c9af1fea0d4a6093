"""One self-contained HTML page for a results folder: answers, cells, tables, failures, environment, best practices.

python analysis/report.py --results results                 # writes results/report.html
python analysis/report.py --results results/depth_gap       # of one study

The page opens from disk, needs no network and prints. Works on partial and failed studies and says what is missing.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

import baselines
import rq1_depth_gap
import rq2_approximation
import rq3_regularization
import rq4_transfer
import schedule_search
from checklist import StudyFacts, fill_checklist
from common.section import write_text
from common.study_tables import Read, StudyTables, first_line, has_trials, measure_trials, of_several_settings, read_study
from pdarts_tune.config.command_line import parse
from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.pdarts.genotype import Genotype
from pdarts_tune.results.cell_figures import draw_genotype
from pdarts_tune.results.schemas import SCHEMAS
from pdarts_tune.results.tables import final_genotype, final_genotypes, read_rows, read_table
from report_page import Block, Cell, Failure, Page, Part, StudyBlock, render

QUESTIONS = {
    "RQ1": rq1_depth_gap,
    "RQ2": rq2_approximation,
    "RQ3": rq3_regularization,
    "RQ4": rq4_transfer,
    "Baselines": baselines,
    "Schedules": schedule_search,
}
_KEPT = 2  # studies in memory, so that the questions about one folder read it once
_LISTS = ("train_accuracies", "validation_accuracies", "correct")
_EVALUATION_COLUMNS = [name for name in SCHEMAS["evaluations"].names if name not in _LISTS]
_STATUSES = {"completed": "completed", "failed": "failed", "out_of_memory": "out of memory", "running": "not finished"}


@dataclass(frozen=True)
class Arguments:
    results: Path = Path("results")
    """The results folder, which holds one folder a study; or the folder of one study."""
    out: Path | None = None
    """The page to write; <results>/report.html if not given."""


def find_studies(results: Path) -> list[Path]:
    """The folders that hold trials: `results` itself, or those in it.

    Raises:
        ConfigError: there is no such folder, or no trial in it.
    """
    if not results.is_dir():
        raise ConfigError(f"{results}: no such results folder")
    candidates = [results] if (results / "trials").is_dir() else sorted(path for path in results.iterdir() if path.is_dir())
    folders = [folder for folder in candidates if has_trials(folder)]
    if not folders:
        raise ConfigError(f"{results}: holds no trials; --results is a folder that holds one folder a study, or one study's folder")
    return folders


def build_page(results: Path) -> Page:
    """Everything that the page shows. Raises ConfigError where there is no study, or a table cannot be read."""
    facts = [read_facts(folder) for folder in find_studies(results)]
    read = lru_cache(_KEPT)(read_study)
    parts = []
    for name, question in QUESTIONS.items():
        try:
            section = question.build(results, read=read)
        except ConfigError as error:  # such as mixed recipes: the question is not answered, and the page says why
            parts.append(Part(None, name, str(error)))
            continue
        if section is not None:
            parts.append(Part(section, section.title, None))
    return Page(
        title=f"Results of {', '.join(study.name for study in facts)}",
        overview=Block("overview", "Studies: what was started, and how far it came", overview(facts)),
        parts=parts,
        studies=[study_block(study, read) for study in facts],
        failures=[failure for study in facts for failure in list_failures(study)],
        environment=Block("environment", "Where the figures come from", environment(facts)),
        checklist=fill_checklist(facts),
    )


def read_facts(folder: Path) -> StudyFacts:
    return StudyFacts(
        folder,
        read_table(folder, "trials"),
        read_table(folder, "evaluations", _EVALUATION_COLUMNS),
        read_table(folder, "genotypes", ["trial_id", "stage", "max_skips", "genotype_id"]),
    )


def overview(facts: Sequence[StudyFacts]) -> pd.DataFrame:
    """Per study, searches and evaluations by how they ended, and the time that they took."""
    rows = []
    for study in facts:
        for kind, table in (("searches", study.trials), ("evaluations", study.evaluations)):
            counts = {words: int((table["status"] == status).sum()) for status, words in _STATUSES.items()}
            row = {"study": study.name, "of": kind, "started": len(table)} | counts
            seconds = float(table["seconds"].sum()) + (float(table["diagnostic_seconds"].sum()) if kind == "searches" else 0.0)
            rows.append(row | {"device_hours": seconds / 3600})
    return pd.DataFrame(rows)


def study_block(facts: StudyFacts, read: Read) -> StudyBlock:
    """The cells of each variant and the table of all searches of one study."""
    refusal, cells, measures = None, [], facts.trials
    try:
        study = of_several_settings(read(facts.folder))
        cells, measures = list_cells(study), study.trials
        if study.evaluations.groupby("data")["recipe_id"].nunique().le(1).all():
            measures = measure_trials(study)
    except ConfigError as error:
        refusal = str(error)
    table = Block(f"{facts.name}-trials", f"Searches of {facts.name}", trial_table(measures))
    return StudyBlock(facts.name, refusal, cells, table)


def list_cells(study: StudyTables) -> list[Cell]:
    """Of each variant, the cells that its first completed search ended with."""
    cells = []
    last = final_genotypes(study.cells, study.trials)
    for variant, trials in study.trials.groupby("variant", sort=False):
        completed = trials[trials["status"] == "completed"].sort_values(["seed", "split_seed"])
        if completed.empty:
            cells.append(Cell(str(variant), None, "No search of this variant is completed, so there is no cell.", ""))
            continue
        first = {str(name): value for name, value in completed.iloc[0].items()}
        genotype = final_genotype(first, read_rows(study.folder, "genotypes", first["trial_id"]))
        if genotype is None:
            cells.append(Cell(str(variant), None, f"The table genotypes has no rows of {first['trial_id']}.", ""))
            continue
        different = last.loc[last["trial_id"].isin(completed["trial_id"]), "genotype_id"].nunique()
        caption = (
            f"Search {first['trial_id']}: {genotype['skips']} skip-connects and depth {genotype['depth']} in the normal cell, "
            f"{genotype['params'] / 1e6:.2f} M parameters. The variant's {len(completed)} completed searches ended with "
            f"{different} different genotype{'s' if different != 1 else ''}."
        )
        cells.append(Cell(str(variant), draw_genotype(Genotype.parse(genotype["genotype"])), caption, genotype["genotype"]))
    return cells


def trial_table(measures: pd.DataFrame) -> pd.DataFrame:
    """One row a search, in columns that `section.as_text` knows how to show."""
    table = measures[["variant", "seed"]].copy()
    if measures["split_seed"].nunique() > 1:
        table["split_seed"] = measures["split_seed"]
    table["status"] = measures["status"].map(_STATUSES)
    for column, name, scale in (
        ("search_accuracy", "search_percent", 100.0),
        ("inherited_accuracy", "inherited_percent", 100.0),
        ("error_percent", "error_percent", 1.0),
        ("gap_points", "gap_points", 1.0),
        ("params", "params_millions", 1e-6),
        ("seconds", "search_seconds", 1.0),
        ("peak_bytes", "peak_mebibytes", 2.0**-20),
    ):
        if column in measures:
            table[name] = scale * measures[column].astype(float)
    table["genotype"] = measures.get("genotype_id", np.nan)
    return table


def list_failures(facts: StudyFacts) -> list[Failure]:
    """Searches and evaluations that ended in an error, with its whole text."""
    failures = []
    for table, column in ((facts.trials, "error"), (facts.evaluations, "failure")):
        for row in table[table["status"].isin(["failed", "out_of_memory"])].to_dict("records"):
            text = row[column] if isinstance(row[column], str) else "no message was recorded"
            where = f"evaluation of {row['genotype_id']} on {row['data']}" if column == "failure" else f"search {row['variant']}"
            where = f"{where}, seed {row['seed']}"
            failures.append(Failure(facts.name, where, _STATUSES[row["status"]], first_line(text), text))
    return failures


def environment(facts: Sequence[StudyFacts]) -> pd.DataFrame:
    """One row a study and circumstance, with every value that its trials have and how many have it."""
    rows = []
    for study in facts:
        for name, table in (("searches", study.trials), ("evaluations", study.evaluations)):
            if table.empty:
                continue
            names = {"data": "data", "recipe_id": "recipe", "device": "device", "commit": "commit"}
            values = {words: table[column] for column, words in names.items() if column in table}
            if "versions" in table:
                texts = table["versions"].dropna()
                versions = {text: json.loads(text) for text in texts.unique()}
                for library in sorted(set().union(*versions.values())):
                    values[library] = texts.map({text: known.get(library) for text, known in versions.items()})
            what = {words: _counted(column) for words, column in values.items()}
            start, end = f"{table['started'].min():%Y-%m-%d %H:%M}", table["finished"].max()
            what["started, finished"] = f"{start} UTC, none finished" if pd.isna(end) else f"{start} to {end:%Y-%m-%d %H:%M} UTC"
            rows += [{"study": study.name, "of": name, "what": words, "values": text} for words, text in what.items()]
    return pd.DataFrame(rows, columns=["study", "of", "what", "values"])


def _counted(values: pd.Series) -> str:
    counts = values.fillna("not recorded").astype(str).value_counts(sort=False)
    return str(counts.index[0]) if len(counts) == 1 else "; ".join(f"{value} ({count})" for value, count in counts.items())


def main(arguments: Sequence[str] | None = None) -> None:
    settings = parse(Arguments, arguments, description=__doc__ or "")
    out = settings.out or settings.results / "report.html"
    try:
        page = build_page(settings.results)
        if not out.parent.is_dir():
            raise ConfigError(f"--out: {out.parent} is no folder")
        write_text(out, render(page))
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    for part in page.parts:
        print(part.title, *(part.section.conclusion if part.section else [f"not answered: {part.refusal}"]), "", sep="\n")
    print(f"report: {out} ({out.stat().st_size / 2**20:.1f} MiB)")


if __name__ == "__main__":
    main()
