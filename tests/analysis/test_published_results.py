"""The results in docs/results are what their tables say, and its page and the README quote them rightly."""

import csv
import importlib
import io
import json
import re
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow.dataset
import pytest

from common.section import show, show_interval
from pdarts_tune.results.schemas import SCHEMAS
from pdarts_tune.results.tables import read_table

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
SCRIPTS = {
    "depth_gap": ("rq1", "rq1_depth_gap"),
    "approximation": ("rq2", "rq2_approximation"),
    "regularization": ("rq3", "rq3_regularization"),
    "remedies": ("rq3b", "remedies"),
    "sizing": ("sizing", "sizing"),
}
PUBLISHED = sorted(str(path.parent.relative_to(RESULTS)) for path in RESULTS.glob("**/study.json"))


@pytest.mark.parametrize("study", PUBLISHED)
def test_a_published_report_follows_from_the_published_tables(study):
    name, script = SCRIPTS[Path(study).name]
    answer = importlib.import_module(script).build((RESULTS / study).parent)
    text = (RESULTS / study / "report" / f"{name}.md").read_text()
    assert " ".join(answer.conclusion) in text
    for table, rows in answer.tables.items():
        quoted = pd.read_csv(RESULTS / study / "report" / f"{name}_{table}.csv")
        assert list(quoted) == list(rows)
        again = pd.read_csv(io.StringIO(rows.to_csv(index=False)))
        pd.testing.assert_frame_equal(quoted, again, check_dtype=False, rtol=1e-9)


@pytest.mark.parametrize("study", PUBLISHED)
def test_a_published_study_is_whole_and_tells_nothing_of_the_machine_s_folders(study):
    definition = json.loads((RESULTS / study / "study.json").read_text())
    trials = read_table(RESULTS / study, "trials")
    assert trials.groupby("variant").size().to_dict() == definition["seeds"]
    assert (trials.status == "completed").all()
    for table in SCHEMAS:
        for name, column in read_table(RESULTS / study, table).select_dtypes(["object", "string"]).items():
            if name not in ("correct", "train_accuracies", "validation_accuracies"):
                assert not column.dropna().astype(str).str.contains(r"(?:^|[:\"\s])/\w", regex=True).any(), (table, name)


@pytest.mark.parametrize("study", PUBLISHED)
def test_pandas_pyarrow_and_duckdb_read_all_rows_of_the_published_tables(study):
    for table in SCHEMAS:
        place = RESULTS / study / table
        rows = len(read_table(RESULTS / study, table, ["trial_id"]))
        if study == "sizing" and table in ("epochs", "alphas"):
            assert not rows  # nothing is searched
            continue
        assert rows
        assert len(pd.read_parquet(place, columns=["trial_id"])) == rows
        assert pyarrow.dataset.dataset(place).count_rows() == rows
        assert duckdb.sql(f"SELECT count(*) FROM '{place}/*.parquet'").fetchall() == [(rows,)]


def test_the_page_quotes_the_published_depth_gap_study():
    text = section_of_page("Depth (RQ1)")
    differences = {row["variant"]: row for row in read_report("depth_gap", "rq1_error_differences")}
    for row in read_report("depth_gap", "rq1_variants"):
        depths = {"progressive": "3-5-7", "shallow": "3-3-3", "deep": "7-7-7", "random": "none"}[row["variant"]]
        search = mean_sd(row, "search_percent", 1) if row["search_percent"] else "–"
        cells = [row["variant"], depths, search, mean_sd(row, "error_percent", 2)]
        cells += difference_cells(differences.get(row["variant"]))
        assert " ".join(f"| {' | '.join(cells)} |".split()) in text, cells
    sizes = {name: show(float(row["detectable"]), 1) for name, row in differences.items()}
    assert "{random} (random), {shallow} (shallow) or {deep} points (deep)".format_map(sizes) in text
    assert not any(row["claimed"] == "True" for row in differences.values())
    ranks = read_report("depth_gap", "rq1_ranks")[0]
    tau, low, high = (show(float(ranks[name]), 2) for name in ("tau", "ci_low", "ci_high"))
    assert f"{tau}, 95 % interval {low} to +{high}" in text


def test_the_page_quotes_the_published_sizing_study():
    text = section_of_page("How small may a training be?")
    sizes = read_report("sizing", "sizing_sizes")
    for row in sizes:
        cells = [row["setting"].split(", ")[1]]
        columns = (
            ("error_percent", 2),
            ("between_cells_points", 2),
            ("between_trainings_points", 2),
            ("share_percent", 0),
            ("seconds", 0),
        )
        cells += [show(float(row[column]), digits) for column, digits in columns]
        assert f"| {' | '.join(cells)} |" in text
    (row,) = read_report("sizing", "sizing_correlations")
    tau, low, high = (show(float(row[name]), 2) for name in ("tau", "ci_low", "ci_high"))
    assert f"+{tau} (95 % interval {low} to +{high})" in text
    columns = ("seconds", "between_cells_points", "between_trainings_points")
    whole, quarter = ({name: float(size[name]) for name in columns} for size in sizes)
    assert f"gives {whole['seconds'] / quarter['seconds']:.1f} times as many trainings" in text
    noise = [size["between_trainings_points"] / size["between_cells_points"] for size in (whole, quarter)]
    assert f"each with {noise[1] / noise[0]:.1f} times as much noise" in text


def test_the_page_quotes_the_published_approximation_study():
    text = section_of_page("Dropping operations (RQ2), on fewer images")
    differences = {row["variant"]: row for row in read_report("approximation", "rq2_error_differences")}
    stages = read_report("approximation", "rq2_stages")
    for row in read_report("approximation", "rq2_variants"):
        cells = [row["variant"], row["operations"], mean_sd(row, "error_percent", 2)]
        found = differences.get(row["variant"])
        if found:
            cells.append(show(float(found["difference"]), 2, sign=True))
            cells.append(show_interval(float(found["ci_low"]), float(found["ci_high"]), 2))
        else:
            cells += [""] * 2
        own = [stage for stage in stages if stage["variant"] == row["variant"]]
        for column in ("peak_mebibytes", "seconds"):
            cells.append(" / ".join(show(float(stage[column] or "nan"), 0) for stage in own))
        assert " ".join(f"| {' | '.join(cells)} |".split()) in text
    assert not any(row["claimed"] == "True" for row in differences.values())
    assert not any(row["shown"] == "True" for row in read_report("approximation", "rq2_non_inferiority"))
    variants = {row["variant"]: row for row in read_report("approximation", "rq2_variants")}
    for table, column, unit in (("seconds", "search_seconds", "s"), ("peak", "peak_mebibytes", "MiB")):
        more = {row["variant"]: float(row["difference"]) for row in read_report("approximation", f"rq2_{table}_differences")}
        percent = 100 * more["nothing_dropped"] / float(variants["lowest_dropped"][column])
        assert f"{more['nothing_dropped']:.0f} {unit} ({percent:.0f} %)" in text
    epochs = read_table(RESULTS / "approximation", "epochs").merge(
        read_table(RESULTS / "approximation", "trials", ["trial_id", "variant"]), on="trial_id"
    )
    seconds = epochs.groupby(["variant", "trial_id", "stage"], observed=True).seconds.sum().unstack()
    times = ((seconds[2] + seconds[3]) / seconds[1]).groupby("variant", observed=True).agg(["mean", "min", "max"])
    for variant, words in (
        ("nothing_dropped", "as long as it with all operations"),
        ("lowest_dropped", "with the least probable dropped"),
    ):
        mean, low, high = times.loc[variant]
        assert re.search(rf"{mean:.1f} times {words} \({low:.1f} to {high:.1f}\)", text)
    mean, low, high = times.loc["random_dropped"]
    assert f"{mean:.1f} times with random ones ({low:.1f} to {high:.1f})" in text
    assert {row["detectable"] for row in differences.values()} == {"inf"}
    assert "with four seeds none could be, however large" in text


def test_the_page_quotes_the_published_regularization_study():
    text = section_of_page("Regularizers (RQ3)")
    limits = {(row["variant"], row["max_skips"]): row for row in read_report("regularization", "rq3_by_limit")}
    for row in read_report("regularization", "rq3_two_by_two"):
        skips = show(float(limits[row["variant"], "8"]["skips"]), 1)
        cells = [skips, mean_sd(row, "as_derived_percent", 2), mean_sd(row, "at_most_2_skips_percent", 2)]
        assert f"| {row['search']} | {' | '.join(cells)} |" in text
    effects = {row["effect"]: row for row in read_report("regularization", "rq3_effects")}
    assert not any(row["claimed"] == "True" for row in effects.values())
    for name, words in (
        ("dropout", "Its effect on the error is {difference} points ({low} to {high})"),
        ("refinement", "which changed 1 of 16 cells, is {difference} ({low} to {high})"),
    ):
        figures = {
            end: show(float(effects[name][f"ci_{end}"]), 2, sign=end == "high" and name == "dropout") for end in ("low", "high")
        }
        assert words.format(difference=show(float(effects[name]["difference"]), 2, sign=True), **figures) in text
    assert f"a true effect of {show(float(effects['dropout']['detectable']), 1)} points" in text
    assert sum(int(limits[variant, "2"]["changed"]) for variant in ("dropout", "no_dropout")) == 1
    (skips,) = read_report("regularization", "rq3_skip_differences")
    low, high, p = (show(float(skips[name]), digits) for name, digits in (("ci_low", 2), ("ci_high", 2), ("p_holm", 3)))
    assert f"95 % interval +{low} to +{high}; Holm-adjusted p {p}, so it is not claimed" in text
    (spread,) = (row for row in read_report("regularization", "rq3_spread_between_seeds") if row["variant"] == "no_dropout")
    assert f"Brown-Forsythe p {show(float(spread['p']), 3)}" in text
    assert not any(int(row["collapsed_at_end"]) for row in read_report("regularization", "rq3_collapse"))


def test_the_page_quotes_the_published_remedies_study():
    text = section_of_page("Remedies against collapse, in S2 and S3 (RQ3b)")
    differences = {row["variant"]: row for row in read_report("remedies", "rq3b_error_differences")}
    collapse = {row["variant"]: row for row in read_report("remedies", "rq3b_collapse")}
    variants = {row["variant"]: row for row in read_report("remedies", "rq3b_variants")}
    for name, row in variants.items():
        cells = [name, show(float(row["skips"]), 1), f"{collapse[name]['collapsed_at_end']} of {collapse[name]['n']}"]
        cells.append(mean_sd(row, "error_percent", 2))
        cells += difference_cells(differences.get(name))
        assert " ".join(f"| {' | '.join(cells)} |".split()) in text, cells
    assert claimed(differences) == ["auxiliary_skip_S3"]
    assert f"have {show(float(differences['auxiliary_skip_S3']['difference']), 2)} points of error more" in text
    near = [name for name, row in differences.items() if float(row["ci_low"]) * float(row["ci_high"]) > 0]
    assert near == ["beta_decay_S2", "pdarts_S3", "auxiliary_skip_S3"]
    assert {show(float(differences[name]["p_holm"]), 3) for name in near[:2]} == {"0.078"}
    decay, own = (show(float(differences[name]["difference"]), 2, sign=True) for name in near[:2])
    assert f"lowest error of its space ({decay} points), and P-DARTS' own remedies in S3 ({own})" in text
    sizes = {name: show(float(row["detectable"]), 1) for name, row in differences.items()}
    assert min(sizes, key=lambda name: float(sizes[name])) == "auxiliary_skip_S3"
    assert max(sizes, key=lambda name: float(sizes[name])) == "auxiliary_skip_S2"
    words = "{auxiliary_skip_S3} (auxiliary_skip_S3) to {auxiliary_skip_S2} points (auxiliary_skip_S2)"
    assert words.format_map(sizes) in text


def test_the_page_quotes_the_skip_connects_of_the_published_remedies_study():
    text = section_of_page("Remedies against collapse, in S2 and S3 (RQ3b)")
    rows = {row["variant"]: row for row in read_report("remedies", "rq3b_skip_differences")}
    assert claimed(rows) == ["auxiliary_skip_S2", "beta_decay_S2", "auxiliary_skip_S3", "beta_decay_S3"]
    assert {show(float(rows[name]["p_holm"]), 3) for name in claimed(rows)} == {"0.047"}
    more, low, high = (
        {name: show(float(row[column]), 1) for name, row in rows.items()} for column in ("difference", "ci_low", "ci_high")
    )
    for remedy, words in (
        (
            "auxiliary_skip",
            "with {} skip-connects more than no remedy in S2 (95 % interval +{} to +{}), with {} more in S3 (+{} to +{};",
        ),
        ("beta_decay", "skip-connects too**, {} in S2 (+{} to +{}) and {} in S3 (+{} to +{};"),
    ):
        names = [f"{remedy}_{space}" for space in ("S2", "S3")]
        assert words.format(*(figures[name] for name in names for figures in (more, low, high))) in text
    epochs = read_table(RESULTS / "remedies", "epochs")
    last = epochs[(epochs.stage == 3) & (epochs.epoch == epochs.epoch.max())].set_index("trial_id")["normal_skip_count"]
    ends = [[last[f"{name}_S3-seed{seed}"] for seed in range(3)] for name in ("auxiliary_skip", "none")]
    assert ends == [[7, 5, 6], [1, 1, 2]]  # as the page quotes them; those at a constant weight are from no study
    alphas = read_table(RESULTS / "remedies", "alphas")
    decay = alphas[alphas.trial_id.str.startswith("beta_decay_S2") & (alphas.stage == 3) & (alphas.epoch == alphas.epoch.max())]
    low, high = (f"{value:.3f}" for value in (decay.probability.min(), decay.probability.max()))
    assert f"the last epoch's probabilities are {low} to {high}" in text


def claimed(rows):
    """The variants whose difference is claimed, of rows by variant."""
    return [name for name, row in rows.items() if row["claimed"] == "True"]


def difference_cells(found):
    """Difference, interval and adjusted p; of the variant that the others are compared with, nothing."""
    if found is None:
        return [""] * 3
    interval = show_interval(float(found["ci_low"]), float(found["ci_high"]), 2)
    return [show(float(found["difference"]), 2, sign=True), interval, show(float(found["p_holm"]), 3)]


def section_of_page(heading):
    """Its text without the line breaks."""
    return " ".join((RESULTS / "README.md").read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0].split())


def test_the_readme_quotes_the_published_differences():
    lines = (ROOT / "README.md").read_text().splitlines()
    for study, table, key, name, words in (
        ("depth_gap", "rq1_error_differences", "variant", "shallow", "shallow − progressive"),
        ("remedies", "rq3b_error_differences", "variant", "beta_decay_S2", "Beta-DARTS' decay − none"),
        ("remedies", "rq3b_error_differences", "variant", "auxiliary_skip_S3", "auxiliary skip-connect − none"),
        ("approximation", "rq2_error_differences", "variant", "nothing_dropped", "nothing_dropped − lowest_dropped"),
        ("regularization", "rq3_effects", "effect", "dropout", "with − without dropout"),
    ):
        (row,) = (row for row in read_report(study, table) if row[key] == name)
        (seeds,) = set(json.loads((RESULTS / study / "study.json").read_text())["seeds"].values())
        interval = show_interval(float(row["ci_low"]), float(row["ci_high"]), 2)
        shown = {"False": "no", "True": "yes"}[row["claimed"]]
        place = f"{study}, in {name[-2:]}" if study == "remedies" else study
        line = f"| {place} | {seeds} | {words} | {show(float(row['difference']), 2, sign=True)} | {interval} | {shown} |"
        assert line in lines, line


def read_report(study, name):
    with (RESULTS / study / "report" / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def mean_sd(row, column, digits):
    return f"{show(float(row[column]), digits)} ± {show(float(row[f'{column}_sd']), digits)}"
