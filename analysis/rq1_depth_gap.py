"""RQ1: does growing the search depth close the gap between search and evaluation? Reads the tables of the study depth_gap.

python analysis/rq1_depth_gap.py --results results

Writes rq1.md, rq1.csv, rq1.tex and the figures (PNG and SVG) to `<results>/depth_gap/report`, in seconds and without a GPU, and
prints the main table and what it supports. Works on unfinished studies too and says what they lack.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import frames
from comparisons import compare_variants, comparison_table, conclude
from frames import StudyTables, show, to_latex, to_markdown, write_text
from pdarts_tune.command_line import parse
from pdarts_tune.config import ConfigError
from pdarts_tune.figures import draw_depth_gap, draw_learning_curves, draw_skips, save_figure
from pdarts_tune.genotype import PUBLISHED
from pdarts_tune.statistics import mean_sd

STUDY = "depth_gap"
BASELINE = "progressive"
RNG_SEED = 0  # of the bootstrap: a report made twice is the same report

HEADERS = ("variant", "n", "search %", "inherited %", "error %", "gap", "skips", "depth", "params M", "seconds")
NOTES = f"""\
Means over seeds, of those that have the figure; ± is the standard deviation over search seeds, after averaging over evaluation
seeds. *n*: seeds evaluated, of those started. *search*: validation accuracy of the search network after its last epoch.
*inherited*: on the same images, that of the derived cell in the search network's own weights. *error*: test error of the derived
cell, trained from scratch, after the last epoch. *gap*: the depth gap, search validation accuracy minus evaluation test accuracy,
in points; it mixes depth with width, training length and images, in all of which the two networks differ. *skips*, *depth*: of
the normal cell. *params*: of the evaluation network in the papers' CIFAR setting. *seconds*: of search, on the study's device.
{frames.NOTHING}: none (a random cell has no search network), or not there yet."""

COMPARISON_NOTES = """\
*95 % interval*: bias-corrected and accelerated bootstrap of the pairs, too narrow with few of them. *p*: exact two-sided sign-flip
permutation test; *smallest p*: what n pairs can give at best (0.25 with 3, 0.008 with 8). *detectable*: the true difference that a
paired t-test finds with 80 % power at the spread seen here. A difference is claimed if its interval excludes 0 and its
Holm-adjusted p is below 0.05, and not otherwise; that none is claimed does not show that there is none."""

PUBLISHED_ROWS = (  # as the authors print them: name, CIFAR-10 and CIFAR-100 error %, parameters M, search cost in GPU days
    *(
        (name, cell.cifar10_error, cell.cifar100_error, cell.params_millions, cell.gpu_days)
        for name, cell in (
            ("DARTS, first order", PUBLISHED["DARTS_V1"]),
            ("DARTS, second order", PUBLISHED["DARTS_V2"]),
            ("P-DARTS, found on CIFAR-10", PUBLISHED["PDARTS_C10"]),
        )
    ),
    ("P-DARTS, found on CIFAR-100", 2.62, 15.92, 3.6, 0.3),
    ("DARTS, second order, beside the next three", 2.83, None, None, None),
    ("P-DARTS, cell after stage 1", 2.90, None, None, None),
    ("P-DARTS, cell after stage 2", 2.82, None, None, None),
    ("P-DARTS, cell after stage 3", 2.58, None, None, None),
)
PUBLISHED_NOTES = """\
Chen et al., ICCV 2019 (arXiv 1904.12760), who also print the DARTS figures; 20 cells, 36 channels, 600 epochs. An independent
replication with 8 runs each found an accuracy of 97.13 ± 0.13 for P-DARTS and 97.24 ± 0.20 for DARTS on CIFAR-10 (Yang et al.,
ICLR 2020). Figures of another data set or recipe cannot be compared with these."""


@dataclass(frozen=True)
class Answer:
    """RQ1 as far as the tables answer it."""

    study: StudyTables
    measures: pd.DataFrame  # a row a trial
    summary: pd.DataFrame  # a row a variant
    errors: pd.DataFrame  # evaluation error of each variant minus the baseline's
    gaps: pd.DataFrame  # the same of the depth gap
    conclusion: tuple[str, str]


def analyse(results: Path) -> Answer:
    """Raises ConfigError where frames.load_study does."""
    study = frames.load_study(results, STUDY)
    measures = frames.measure_trials(study)
    rng = np.random.default_rng(RNG_SEED)
    errors = compare_variants(measures, "error_percent", BASELINE, rng)
    gaps = compare_variants(measures, "gap_points", BASELINE, rng)
    conclusion = conclude(errors, BASELINE, "evaluation error", "growing the depth during search finds better cells")
    return Answer(study, measures, summarize(measures), errors, gaps, conclusion)


def summarize(measures: pd.DataFrame) -> pd.DataFrame:
    """One row a variant: how many seeds, and mean and standard deviation of every measure (columns `<measure>_sd`)."""
    columns = ["search_accuracy", "inherited_accuracy", "error_percent", "gap_points", "skips", "depth", "params", "seconds"]
    rows = []
    for variant, trials in measures.groupby("variant", sort=False):
        row: dict[str, object] = {"variant": variant, "seeds": len(trials), "evaluated": int(trials["error_percent"].count())}
        searched = trials[trials["status"] == "completed"]
        for column in columns:
            values = searched[column].dropna()
            row[column], row[f"{column}_sd"] = mean_sd(values) if len(values) else (np.nan, np.nan)
        rows.append(row)
    return pd.DataFrame(rows)


def main_rows(summary: pd.DataFrame) -> list[list[str]]:
    """The main table as text, with the columns of HEADERS."""

    def spread(row: dict[Any, Any], column: str, scale: float, digits: int) -> str:
        sd = row[f"{column}_sd"]
        return show(scale * row[column], digits) + ("" if np.isnan(sd) else f" ± {show(scale * sd, digits)}")

    return [
        [
            row["variant"],
            f"{row['evaluated']}/{row['seeds']}",
            spread(row, "search_accuracy", 100, 1),
            spread(row, "inherited_accuracy", 100, 1),
            spread(row, "error_percent", 1, 2),
            show(row["gap_points"], 1, sign=True),
            show(row["skips"], 1),
            show(row["depth"], 1),
            show(row["params"] / 1e6, 2),
            show(row["seconds"], 0),
        ]
        for row in summary.to_dict("records")
    ]


def stage_table(study: StudyTables) -> str:
    """Stage by stage, of completed searches: the search network's accuracy, and the cell that would be derived then."""
    ends = study.epochs.groupby(["trial_id", "stage"], as_index=False).tail(1)[["trial_id", "stage", "validation_accuracy"]]
    cells = frames.evaluate_cells(study, study.cells[study.cells["status"] == "completed"]).merge(ends, on=["trial_id", "stage"])
    depths = study.trials.set_index("trial_id")["depths"].str.split("-")
    cells["cells"] = [depths[trial_id][stage - 1] for trial_id, stage in zip(cells["trial_id"], cells["stage"], strict=True)]
    columns = ["validation_accuracy", "inherited_accuracy", "skips", "depth", "error_percent"]
    means = cells.groupby(["variant", "stage", "cells"], sort=False, as_index=False)[columns].mean()
    rows = [
        [
            row["variant"],
            str(row["stage"]),
            row["cells"],
            show(100 * row["validation_accuracy"], 1),
            show(100 * row["inherited_accuracy"], 1),
            show(row["skips"], 1),
            show(row["depth"], 1),
            show(row["error_percent"], 2),
        ]
        for row in means.to_dict("records")
    ]
    return to_markdown(("variant", "stage", "cells", "search %", "inherited %", "skips", "depth", "error %"), rows)


def gap_frame(answer: Answer) -> pd.DataFrame:
    """What `figures.draw_depth_gap` draws."""
    columns = {"search_accuracy": "search", "inherited_accuracy": "inherited", "accuracy": "evaluation"}
    measures = answer.measures.rename(columns=columns)
    long = measures.melt(["variant", "seed"], list(columns.values()), var_name="measure", value_name="accuracy").dropna()
    long["mean"] = long.groupby(["variant", "measure"])["accuracy"].transform("mean")
    long["gap_points"] = long["variant"].map(answer.summary.set_index("variant")["gap_points"])
    return long.sort_values("variant", key=lambda names: names.map(list(answer.summary["variant"]).index), kind="stable")


def report(results: Path, out: Path | None = None) -> Path:
    """Writes the report and returns its folder, `<results>/depth_gap/report` unless told otherwise.

    Raises:
        ConfigError: the study cannot be read, or its figures must not be compared; see frames.load_study.
    """
    return write(analyse(results), out or results / STUDY / "report")


def write(answer: Answer, out: Path) -> Path:
    """Writes the report of an answer into the folder `out` and returns it."""
    out.mkdir(parents=True, exist_ok=True)
    figures = {}
    gap, epochs = gap_frame(answer), answer.study.epochs
    if len(gap):
        figures["depth_gap"] = draw_depth_gap(gap)
    if len(epochs):
        figures["learning_curves"] = draw_learning_curves(frames.average_curves(epochs, "validation_accuracy"))
        figures["skips"] = draw_skips(epochs)
    for name, figure in figures.items():
        save_figure(figure, out / name)
    write_text(out / "rq1.csv", answer.summary.to_csv(index=False))
    write_text(out / "rq1.tex", to_latex(HEADERS, main_rows(answer.summary)))
    write_text(out / "rq1.md", to_text(answer, list(figures)))
    return out


def to_text(answer: Answer, figures: list[str]) -> str:
    """The report in Markdown; `figures` are the names of those that there are."""
    captions = {
        "depth_gap": "A dot a seed, bars at the means, in grey the way from search to evaluation.",
        "learning_curves": "Search networks, epoch by epoch; bands from the lowest to the highest seed.",
        "skips": "Skip-connects of the cell that would be derived, before refinement; a line a search.",
    }
    pictures = {name: f"![{name}]({name}.png)\n\n{captions[name]}" for name in figures}
    published = [[name, *map(show, figures, (2, 2, 1, 1))] for name, *figures in PUBLISHED_ROWS]
    missing = frames.list_missing(answer.study, answer.measures)
    if BASELINE not in set(answer.summary["variant"]):
        missing.insert(0, f"{BASELINE}: no trial at all, so there is nothing to compare the others with")
    parts = [
        "# RQ1: does growing the search depth close the gap between search and evaluation?",
        " ".join(answer.conclusion),
        frames.describe_study(answer.study),
        pictures.get("depth_gap", ""),
        "## Variants",
        to_markdown(HEADERS, main_rows(answer.summary)),
        NOTES,
        f"## Each variant minus {BASELINE}, paired by seed",
        "Evaluation error, in points:",
        comparison_table(answer.errors, BASELINE),
        "Depth gap, in points (a second question, corrected apart):",
        comparison_table(answer.gaps, BASELINE),
        COMPARISON_NOTES,
        "## Stage by stage",
        stage_table(answer.study),
        "Means over the seeds of completed searches, at the end of each stage. A study evaluates the last stage's cells.",
        pictures.get("learning_curves", ""),
        pictures.get("skips", ""),
        "## What is missing",
        "\n".join(f"- {line}" for line in missing) or "Nothing: every search and every evaluation is there.",
        "## Published, not measured here",
        to_markdown(("published", "CIFAR-10 error %", "CIFAR-100 error %", "params M", "GPU days"), published),
        PUBLISHED_NOTES,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


@dataclass(frozen=True)
class Arguments:
    results: Path = Path("results")
    """The results folder, which holds one folder a study."""
    out: Path | None = None
    """Where the report goes; <results>/depth_gap/report if not given."""


def main(results: Path = Path("results"), out: Path | None = None) -> None:
    """Answers RQ1 from the tables in a results folder; the report goes to <results>/depth_gap/report if `out` is not given."""
    try:
        answer = analyse(results)
        folder = write(answer, out or results / STUDY / "report")
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(to_markdown(HEADERS, main_rows(answer.summary)))
    print("", *answer.conclusion, f"report: {folder / 'rq1.md'}", sep="\n")


if __name__ == "__main__":
    settings = parse(Arguments, description="Answers RQ1 from the tables of the study depth_gap.")
    main(settings.results, settings.out)
