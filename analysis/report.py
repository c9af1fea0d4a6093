"""One self-contained HTML page for a results folder: answers, cells, tables, failures, environment, best practices.

python analysis/report.py --results results                 # writes results/report.html
python analysis/report.py --results results/depth_gap       # of one study

The study of a question is compared there alone: one difference in two families would have two p-values. The others are compared
with their baseline, whatever they vary. The page opens from disk, needs no network and prints. Works on partial and failed
studies and says what is missing.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

import baselines
import compare
import remedies
import rq1_depth_gap
import rq2_approximation
import rq3_regularization
import rq4_transfer
import schedule_search
import sizing
from checklist import SOURCE, StudyFacts, fill_checklist
from common.question import Arguments, Question
from common.section import NOTHING, NOTHING_MISSING, Draw, Section, as_text, errors_in_one_line, heading, write_text
from common.study_tables import find_studies, first_line, read_study
from pdarts_tune.config.command_line import parse
from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.results.schemas import SCHEMAS
from pdarts_tune.results.tables import read_table

QUESTIONS: Mapping[str, Question] = {
    "RQ1": rq1_depth_gap.QUESTION,
    "RQ2": rq2_approximation.QUESTION,
    "RQ3": rq3_regularization.QUESTION,
    "RQ3b": remedies.QUESTION,
    "RQ4": rq4_transfer.QUESTION,
    "Baselines": baselines.QUESTION,
    "Sizes": sizing.QUESTION,
    "Schedules": schedule_search.QUESTION,
}
MOST_ROWS = 2000  # of a table on the page; the tables themselves have all
MOST_TEXT = 20_000  # characters of one error
MOST_FAILURES = 200
VECTOR_BYTES = 40_000  # a drawing whose SVG is larger becomes a picture of dots
_LONG_NUMBER = re.compile(rb"\d+\.\d\d+")
_NUMBER = re.compile(r"^[\[(]?[+−-]?\d")
_KEPT = 2  # studies in memory, so that the questions about one folder read it once
_LISTS = ("train_accuracies", "validation_accuracies", "correct")
_EVALUATION_COLUMNS = [name for name in SCHEMAS["evaluations"].names if name not in _LISTS]
_STATUSES = {"completed": "completed", "failed": "failed", "out_of_memory": "out of memory", "running": "not finished"}


@dataclass(frozen=True)
class Part:
    """A question, or a study: its section, or why there is none."""

    key: str
    title: str
    section: Section | None
    refusal: str = ""


@dataclass(frozen=True)
class Failure:
    study: str
    where: str
    status: str
    line: str
    text: str


def build_page(results: Path, *, recipe: str | None = None, data: str | None = None) -> dict[str, Any]:
    """Everything that the page shows, by the names of its template.

    Raises:
        ConfigError: there is no study, a table cannot be read, or no study has the recipe or the data set.
    """
    facts = [read_facts(folder) for folder in find_studies(results)]
    choice: dict[str, Any] = {"read": lru_cache(_KEPT)(read_study), "recipe": recipe, "data": data}
    parts, answered = [], set[str]()
    for name, question in QUESTIONS.items():
        if own := _try(name, partial(question.build, results, **choice)):
            parts += own
            answered |= {question.study for part in own if part.section}
    for study in facts:
        parts += _try(study.name, partial(compare.build, study.folder, compared=study.name not in answered, **choice))
    if (recipe or data) and all(part.section is None for part in parts):
        raise ConfigError(parts[-1].refusal)
    return {
        "title": f"Results of {', '.join(study.name for study in facts)}",
        "overview": overview(facts),
        "parts": parts,
        "failures": [failure for study in facts for failure in list_failures(study)],
        "environment": environment(facts),
        "checklist": fill_checklist(facts),
    }


def _try(key: str, build: Callable[[], Section | None]) -> list[Part]:
    """The part that `build` gives, if there is one; where the study cannot be compared, the page says why."""
    try:
        section = build()
    except ConfigError as error:
        return [Part(key, key, None, str(error))]
    return [Part(key, section.title, section)] if section else []


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
    for study, kind, table in _tables(facts):
        counts = {words: int((table["status"] == status).sum()) for status, words in _STATUSES.items()}
        seconds = sum(float(table[column].sum()) for column in ("seconds", "diagnostic_seconds") if column in table)
        rows.append({"study": study, "of": kind, "started": len(table)} | counts | {"device_hours": seconds / 3600})
    return pd.DataFrame(rows)


def _tables(facts: Sequence[StudyFacts]) -> Iterator[tuple[str, str, pd.DataFrame]]:
    for study in facts:
        yield study.name, "searches", study.trials
        yield study.name, "evaluations", study.evaluations


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
    for study, kind, table in _tables(facts):
        if table.empty:
            continue
        names = {"data": "data", "recipe_id": "recipe", "device": "device", "commit": "commit"}
        values = {words: table[column] for column, words in names.items() if column in table}
        texts = table["versions"].dropna() if "versions" in table else pd.Series(dtype=str)
        versions = {text: json.loads(text) for text in texts.unique()}
        for library in sorted(set().union(*versions.values())):
            values[library] = texts.map({text: known.get(library) for text, known in versions.items()})
        what = {words: _counted(column) for words, column in values.items()}
        start, end = f"{table['started'].min():%Y-%m-%d %H:%M}", table["finished"].max()
        what["started, finished"] = f"{start} UTC, none finished" if pd.isna(end) else f"{start} to {end:%Y-%m-%d %H:%M} UTC"
        rows += [(study, kind, words, text) for words, text in what.items()]
    return pd.DataFrame(rows, columns=["study", "of", "what", "values"])


def _counted(values: pd.Series) -> str:
    counts = values.fillna("not recorded").astype(str).value_counts(sort=False)
    return str(counts.index[0]) if len(counts) == 1 else "; ".join(f"{value} ({count})" for value, count in counts.items())


def render(page: Mapping[str, Any]) -> str:
    """The page as HTML. All texts are escaped, all pictures lie in the page."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"picture": picture, "prose": prose, "heading": heading, "anchor": anchor}
    environment.globals |= {"lay_out": lay_out, "source": SOURCE, "nothing_missing": NOTHING_MISSING}
    template = environment.get_template("report.html.j2")
    return template.render(**page, most_text=MOST_TEXT, most_failures=MOST_FAILURES)


def lay_out(table: pd.DataFrame) -> dict[str, Any]:
    """A table as the template shows it: headers, each with whether its column holds numbers, rows of texts, rows left out."""
    headers, rows = as_text(table.head(MOST_ROWS))
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(headers)
    numeric = [all(cell == NOTHING or _NUMBER.match(cell) for cell in column) and set(column) != {NOTHING} for column in columns]
    return {"headers": list(zip(headers, numeric, strict=True)), "rows": rows, "left_out": max(0, len(table) - MOST_ROWS)}


def picture(draw: Draw) -> str:
    """A figure as a data address: SVG with its text as text and tenths of a point, or a PNG where that would be large."""
    figure, buffer = draw(), io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "0", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    kind, content = "svg+xml", _LONG_NUMBER.sub(lambda number: f"{float(number[0]):.1f}".encode(), buffer.getvalue())
    if len(content) > VECTOR_BYTES:
        dots, buffer = io.BytesIO(), io.BytesIO()
        figure.savefig(dots, format="png", dpi=100)
        Image.open(dots).convert("RGB").quantize(64).save(buffer, "png", optimize=True)
        kind, content = "png", buffer.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def prose(text: str) -> Markup:
    """A note's Markdown, as far as notes use it: paragraphs, *emphasis*, `code`."""
    paragraphs = []
    for paragraph in text.strip().split("\n\n"):
        shown = str(escape(" ".join(paragraph.split())))
        shown = re.sub(r"`([^`]+)`", r"<code>\1</code>", shown)
        paragraphs.append(re.sub(r"(?<![\w*])\*([^*\s][^*]*)\*(?![\w*])", r"<em>\1</em>", shown))
    return Markup("".join(f"<p>{paragraph}</p>" for paragraph in paragraphs))  # noqa: S704  (escaped above)


def anchor(text: str) -> str:
    """A name for an element, from any text."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "x"


def main(arguments: Sequence[str] | None = None) -> None:
    settings = parse(Arguments, arguments, description=__doc__ or "")
    out = settings.out or settings.results / "report.html"
    with errors_in_one_line():
        page = build_page(settings.results, recipe=settings.recipe, data=settings.data)
        if not out.parent.is_dir():
            raise ConfigError(f"--out: {out.parent} is no folder")
        write_text(out, render(page))
    for part in page["parts"]:
        if sentences := part.section.conclusion if part.section else [f"not answered: {part.refusal}"]:
            print(part.title, *sentences, "", sep="\n")
    print(f"report: {out} ({out.stat().st_size / 2**20:.1f} MiB)")


if __name__ == "__main__":
    main()
