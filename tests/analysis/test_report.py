import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from markupsafe import escape

from analysis.checklist import SOURCE, fill_checklist
from analysis.report import MOST_TEXT, Failure, build_page, lay_out, main, prose, read_facts, render
from chromium import browser, find_chromium
from pdarts_tune.config.methods import RandomSampling
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.pdarts.progressive_depth import PDARTS_CIFAR10, with_depths
from pdarts_tune.results.tables import read_rows, write_rows
from synthetic import make_study, make_trial, shrink

VARIANTS = {
    "progressive": SearchConfig(),
    "shallow": SearchConfig(stages=with_depths(PDARTS_CIFAR10, (5, 5, 5))),
    "random": SearchConfig(method=RandomSampling()),
}
EVIL = "<script>alert('variant')</script>"
TITLES = [  # Lindauer & Hutter (2020), sections 2 to 4
    "Release Code for the Training Pipeline(s) You Use",
    "Release Code for Your NAS Method",
    "Don’t Wait Until You’ve Cleaned up the Code; That Time May Never Come",
    "Use the Same NAS Benchmarks, not Just the Same Datasets",
    "Run Ablation Studies",
    "Use the Same Evaluation Protocol for the Methods Being Compared",
    "Evaluate Performance as a Function of Compute Resources",
    "Compare Against Random Sampling and Random Search",
    "Perform Multiple Runs with Different Seeds",
    "Use Tabular or Surrogate Benchmarks If Possible",
    "Control Confounding Factors",
    "Report the Use of Hyperparameter Optimization",
    "Report End-to-End Resources Required for the Entire NAS Method",
    "Report All the Details of Your Experimental Setup",
]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A study with a failed search, and one of one variant with a name and an error that would hurt a careless page."""
    root = tmp_path_factory.mktemp("results")
    make_study(root, "depth_gap", VARIANTS, (0, 1), epochs=2, failed=["depth_gap-shallow-s1"])
    make_trial(root / "other", "evil-s0", EVIL, shrink(SearchConfig(), 2), status="failed")
    (row,) = read_rows(root / "other", "trials", "evil-s0")
    error = "RuntimeError: <img src=x onerror=alert(1)>\n" + "Traceback & more\n" * 5000
    write_rows(root / "other", "trials", "evil-s0", [row | {"error": error}])
    return root


@pytest.fixture(scope="module")
def page(results):
    main(["--results", str(results)])
    return (results / "report.html").read_text(encoding="utf-8")


def test_the_page_needs_nothing_but_itself(page):
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!data:image/|#)""", page)
    assert "@import" not in page
    assert "url(" not in page
    assert "default-src 'none'" in page
    assert len(page) < 10e6


def test_the_page_has_every_part_and_says_what_is_missing(page):
    for heading in (
        "Summary",
        "depth_gap: its variants, cells and searches",
        "Failures",
        "Environment",
        "Best practices of NAS research",
    ):
        assert re.search(rf"<h2 id=[^>]*>{heading}</h2>", page), heading
    assert "RQ1: does growing the search depth" in page
    assert "shallow, seed 1: search failed (FloatingPointError: stage 1, epoch 2: the training loss is nan)" in page
    for caption in ("Variants", "Error differences", "Cells", "Searches"):
        assert f"<caption>{caption}</caption>" in page
    assert "synthetic" in page  # the device
    assert SOURCE.split(":")[0] in page


def test_the_study_of_a_question_is_compared_there_alone_and_any_other_with_its_baseline(tmp_path):
    for name in ("depth_gap", "own"):
        make_study(tmp_path, name, VARIANTS, (0, 1), epochs=1)
    parts = {part.title.partition(":")[0]: part.section for part in build_page(tmp_path)["parts"]}
    compared = [name for name, section in parts.items() if "error_differences" in section.tables]
    assert compared == ["RQ1", "own"]
    assert [name for name, section in parts.items() if section.conclusion] == compared
    assert list(parts["depth_gap"].tables) == ["variants", "cells", "searches"]
    assert all(name.startswith("cell_") for name in parts["depth_gap"].figures)
    assert "error_differences" in build_page(tmp_path / "own")["parts"][-1].section.tables  # it answers RQ1 too, in other families


def test_pictures_have_a_text_and_tables_a_caption_and_ids_are_one_of_a_kind(page):
    pictures = re.findall(r"<img [^>]*>", page)
    assert len(pictures) >= 6
    assert all(re.search(r'alt="[^"]{20,}"', tag) for tag in pictures)
    assert page.count("<table>") == page.count("<caption>")
    ids = re.findall(r' id="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]*)"', page)) <= set(ids)


def test_names_and_errors_are_shown_as_text(page):
    assert page.count("<script>") == 1  # ours
    assert "&lt;script&gt;alert(&#39;variant&#39;)&lt;/script&gt;" in page
    assert "<img src=x" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page


def test_a_huge_error_is_folded_and_cut_with_a_word_about_the_rest(page):
    folded = re.search(r"<details><summary><code>RuntimeError.*?</details>", page, re.DOTALL)
    assert folded
    assert len(folded.group()) < 1.5 * MOST_TEXT
    assert re.search(r"\d+ more characters are in the table", folded.group())


def test_one_studys_folder_will_do_and_without_an_answer_the_page_says_so(results, tmp_path):
    main(["--results", str(results / "other"), "--out", str(tmp_path / "one.html")])
    html = (tmp_path / "one.html").read_text(encoding="utf-8")
    assert "<h1>Results of other</h1>" in html
    assert "depth_gap" not in html
    assert "Nothing can be compared" in html


def test_mixed_recipes_stand_beside_each_other_and_one_can_be_chosen(tmp_path, capsys):
    folder = make_study(tmp_path, "depth_gap", VARIANTS, (0,), epochs=1, evaluation_seeds=(0, 1))
    path = next((folder / "evaluations").glob("*-s1.parquet"))
    (row,) = read_rows(folder, "evaluations", path.stem)
    write_rows(folder, "evaluations", path.stem, [row | {"recipe_id": "cifar-other"}])
    page = build_page(tmp_path)
    assert not any(part.refusal for part in page["parts"])
    variants = page["parts"][-1].section.tables["variants"]
    assert {f"cifar10, {name}: error_percent" for name in ("cifar-other", row["recipe_id"])} <= set(variants)
    assert {item.number: item.status for item in page["checklist"]}[6] == "not met"
    chosen = build_page(tmp_path, recipe="cifar-other")["parts"][-1].section.tables["variants"]
    assert list(chosen["evaluated"].sort_values()) == [0, 0, 1]
    with pytest.raises(SystemExit, match="2"):
        main(["--results", str(tmp_path), "--recipe", "longer"])
    error = capsys.readouterr().err
    assert error.startswith("error: recipe: 'longer' is no recipe of evaluations of depth_gap, which are: cifar-")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path / "nowhere", "no such results folder"),
        (lambda path: path, "holds no trials; --results is a folder that holds one folder a study"),
    ],
)
def test_a_folder_without_trials_is_refused_in_one_line(tmp_path, capsys, make, message):
    with pytest.raises(SystemExit) as stopped:
        main(["--results", str(make(tmp_path)), "--out", str(tmp_path / "report.html")])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


def test_an_output_folder_that_is_not_there_is_refused(results, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        main(["--results", str(results / "other"), "--out", str(tmp_path / "no" / "report.html")])
    assert stopped.value.code == 2


def test_the_checklist_has_the_papers_14_items(results):
    items = fill_checklist([read_facts(results / "depth_gap")])
    assert [item.title for item in items] == TITLES
    assert [item.number for item in items] == list(range(1, 15))


def status_of(facts, number):
    return fill_checklist(facts)[number - 1].status


def answer_of(facts, number):
    return fill_checklist(facts)[number - 1].answer


def changed(facts, table, **columns):
    return dataclasses.replace(facts, **{table: getattr(facts, table).assign(**columns)})


def more(facts, **columns):
    """The study with its evaluations twice, the second time with other `columns`."""
    others = facts.evaluations.assign(trial_id=facts.evaluations["trial_id"] + "-more", **columns)
    return dataclasses.replace(facts, evaluations=pd.concat([facts.evaluations, others], ignore_index=True))


def test_the_checklist_says_what_the_tables_know_and_no_more(results):
    facts = read_facts(results / "depth_gap")
    assert [status_of([facts], number) for number in (1, 2, 3, 12)] == ["not known"] * 4
    named = changed(facts, "trials", commit="abc")
    assert status_of([named], 1) == "not known"  # of evaluations no table has the commit
    assert status_of([named], 2) == "partly"  # whether it was published is not known
    assert "(abc) for 6 of 6 searches." in answer_of([named], 2)
    assert status_of([changed(facts, "trials", commit="unknown")], 2) == "not known"
    dirty = changed(facts, "trials", commit=["abc+", *["abc"] * 5])
    assert "(abc) for 5 of 6 searches; 1 ran code that was changed after its commit" in answer_of([dirty], 2)
    assert status_of([facts], 8) == "partly"
    assert "random sampling, but no random search" in answer_of([facts], 8)
    both = facts.trials.assign(method=["random_search", *facts.trials["method"][1:]])
    assert status_of([dataclasses.replace(facts, trials=both)], 8) == "met"
    assert status_of([facts], 9) == "partly"  # two seeds, and one of them failed
    many = pd.concat([facts.trials.assign(seed=seed, status="completed") for seed in range(3)])
    assert status_of([dataclasses.replace(facts, trials=many)], 9) == "met"
    assert status_of([facts], 10) == "not met"
    assert status_of([changed(facts, "evaluations", device=None)], 10) == "not known"
    assert status_of([facts], 14) == "partly"
    searched = dataclasses.replace(named, evaluations=named.evaluations.head(0))
    assert [status_of([searched], number) for number in (10, 11, 14)] == ["not known", "met", "met"]
    assert [status_of([named], number) for number in (11, 14)] == ["partly", "partly"]  # versions of evaluations are not recorded
    one = dataclasses.replace(facts, trials=facts.trials.head(1), evaluations=facts.evaluations.head(0))
    assert [status_of([one], number) for number in (5, 6, 9)] == ["not met", "not known", "not met"]


def test_one_recipe_is_said_of_a_study_that_has_one(results):
    facts = read_facts(results / "depth_gap")
    assert status_of([facts], 6) == "met"
    assert answer_of([facts], 6) == (
        "Cells of all variants were trained from scratch in the same settings, with the same seeds. "
        "depth_gap: recipes 1, data sets 1, cells a search 1, seeds a cell 2."
    )
    two = more(facts, recipe="longer", recipe_id="longer-0")
    assert status_of([two], 6) == "met"  # each cell by both
    assert "recipes 2, data sets 1, cells a search 1, seeds a cell 2" in answer_of([two], 6)
    assert "data sets 2" in answer_of([more(facts, data="cifar100")], 6)
    assert status_of([more(facts, recipe_id="cifar-other")], 6) == "not met"  # two recipes of one name
    last = facts.genotypes.merge(facts.trials[["trial_id", "variant"]])
    of_shallow = facts.evaluations["genotype_id"].isin(last.loc[last["variant"] == "shallow", "genotype_id"])
    apart = facts.evaluations.assign(recipe=np.where(of_shallow, "longer", "cifar"), recipe_id=np.where(of_shallow, "b-1", "a-1"))
    assert status_of([dataclasses.replace(facts, evaluations=apart)], 6) == "not met"  # no setting has both variants
    fewer = two.evaluations[
        ~(
            two.evaluations["genotype_id"].isin(last.loc[last["variant"] == "shallow", "genotype_id"])
            & (two.evaluations["recipe"] == "longer")
        )
    ]
    assert status_of([dataclasses.replace(two, evaluations=fewer)], 6) == "partly"
    assert "not in every setting in depth_gap: shallow" in answer_of([dataclasses.replace(two, evaluations=fewer)], 6)
    uneven = dataclasses.replace(facts, evaluations=facts.evaluations.iloc[1:])
    assert status_of([uneven], 6) == "partly"
    assert "cells trained with different seeds in depth_gap" in answer_of([uneven], 6)
    failed = facts.evaluations.assign(status=np.where(of_shallow, "failed", "completed"))
    assert "without an evaluation of their cells in depth_gap: shallow" in answer_of(
        [dataclasses.replace(facts, evaluations=failed)], 6
    )


def test_several_cells_a_search_are_counted(results):
    """As with several skip limits, and with cells of several stages."""
    facts = read_facts(results / "depth_gap")
    assert status_of([facts], 7) == "partly"
    trial_id = facts.trials.query("variant == 'progressive'")["trial_id"].iloc[0]
    others = facts.genotypes.query(f"trial_id == '{trial_id}' and stage < 3 and max_skips == 2")["genotype_id"]
    runs = pd.concat([facts.evaluations.head(1).assign(genotype_id=name, trial_id=name) for name in others])
    staged = dataclasses.replace(facts, evaluations=pd.concat([facts.evaluations, runs]))
    assert "cells a search 1 to 3" in answer_of([staged], 6)
    assert status_of([staged], 7) == "met"
    assert status_of([staged, dataclasses.replace(facts)], 7) == "partly"
    assert status_of([changed(facts, "trials", seconds=None)], 7) == "not known"


def test_searches_of_one_study_on_different_images_are_not_the_same_benchmark(results):
    facts = read_facts(results / "depth_gap")
    assert status_of([facts], 4) == "met"
    mixed = ["cifar100" if variant == "shallow" else "cifar10" for variant in facts.trials["variant"]]
    configs = [
        text.replace('"data": "cifar10"', f'"data": "{data}"') for text, data in zip(facts.trials["config"], mixed, strict=True)
    ]
    assert status_of([changed(facts, "trials", data=mixed, config=configs)], 4) == "not met"
    few = [text.replace('"train_images": null', '"train_images": 500') for text in facts.trials["config"].iloc[:1]]
    assert status_of([changed(facts, "trials", config=[*few, *facts.trials["config"].iloc[1:]])], 4) == "not met"
    assert status_of([changed(facts, "trials", split_seed=facts.trials["seed"])], 4) == "met"  # of a seed, the same for all
    assert status_of([changed(facts, "trials", split_seed=range(len(facts.trials)))], 4) == "not met"
    assert status_of([changed(facts, "trials", method="given")], 4) == "not known"


def test_an_ablation_is_one_setting_away(results):
    facts = read_facts(results / "depth_gap")
    assert status_of([facts], 5) == "met"
    far = ['"batch_size": 96', '"channels": 16']
    configs = []
    for text, variant in zip(facts.trials["config"], facts.trials["variant"], strict=True):
        for setting in far if variant == "shallow" else ():
            text = text.replace(setting, setting[:-2] + "32")
        configs.append(text)
    assert status_of([changed(facts, "trials", config=configs)], 5) == "partly"
    assert "shallow of depth_gap (3 settings)" in answer_of([changed(facts, "trials", config=configs)], 5)
    assert status_of([changed(facts, "trials", status="failed")], 5) == "not known"
    same = facts.trials["config"].iloc[0]
    assert "(no settings)" in answer_of([changed(facts, "trials", config=same)], 5)


def test_seeds_count_where_the_cell_was_evaluated_and_random_cells_in_the_study_that_has_them(results):
    facts = read_facts(results / "depth_gap")
    own = facts.evaluations["genotype_id"].iloc[0]
    gone = dataclasses.replace(facts, evaluations=facts.evaluations[facts.evaluations["genotype_id"] != own])
    assert "completed and evaluated: 1 to 2." in answer_of([facts], 9)
    (lost,) = facts.genotypes.loc[(facts.genotypes["genotype_id"] == own), "trial_id"].unique()
    variant = facts.trials.set_index("trial_id").loc[lost, "variant"]
    assert f"depth_gap: {variant}" in answer_of([gone], 9)
    other = dataclasses.replace(facts, folder=facts.folder.parent / "other", trials=facts.trials.query("variant != 'random'"))
    assert status_of([facts, other], 8) == "partly"
    assert "other: no random sampling and no random search" in answer_of([facts, other], 8)
    assert status_of([other], 8) == "not met"


def test_what_differs_between_searches_beside_their_variant_is_named(results):
    facts = changed(read_facts(results / "depth_gap"), "trials", commit="abc")
    for column, values, words in (
        ("device", ["a"] + ["b"] * 5, "2 devices in depth_gap"),
        ("commit", ["abc"] * 5 + ["abd"], "2 commits in depth_gap"),
        ("tf32", [True] + [False] * 5, "2 values of tf32 in depth_gap"),
    ):
        assert words in answer_of([changed(facts, "trials", **{column: values})], 11)
    half = ["x", *["y"] * (len(facts.evaluations) - 1)]
    assert "2 devices of evaluations in depth_gap" in answer_of([changed(facts, "evaluations", device=half)], 11)
    other = [facts.trials["config"].iloc[0].replace('"batch_size": 96', '"batch_size": 32'), *facts.trials["config"].iloc[1:]]
    variant = facts.trials["variant"].iloc[0]
    assert f"2 configurations of {variant} in depth_gap" in answer_of([changed(facts, "trials", config=other)], 11)
    assert "library versions and commits of evaluations" in answer_of([facts], 11)


def test_what_two_studies_share_was_paid_for_once_and_hours_of_two_devices_are_not_added(results):
    facts = read_facts(results / "depth_gap")
    twin = dataclasses.replace(facts, folder=facts.folder.parent / "twin")
    assert answer_of([facts, twin], 13) == answer_of([facts], 13)
    assert status_of([facts], 13) == "partly"  # what was spent on tuning is not known
    devices = changed(facts, "trials", device=["a", *["b"] * 5])
    assert re.search(
        r"Searching: [\d.]+ h on a, [\d.]+ h on b; training from scratch: [\d.]+ h on synthetic", answer_of([devices], 13)
    )
    assert "1 rows that ended have no duration" in answer_of([changed(facts, "trials", seconds=[None, *[9.0] * 5])], 13)


def test_columns_of_numbers_are_told_from_text():
    table = pd.DataFrame({"variant": ["a", "b"], "change_points": [-1.5, 2.0], "error_percent": [np.nan, 3.0], "seed": [1, 2]})
    laid = lay_out(table.assign(status=["1 of 2", "none"]))
    assert [numeric for _, numeric in laid["headers"]] == [False, True, True, True, False]
    assert laid["rows"][0][1:3] == ["−1.50", "–"]


def test_notes_are_escaped_and_their_emphasis_kept():
    assert prose("*n*: a < b, 2 * 3 * 4, `x_y`") == "<p><em>n</em>: a &lt; b, 2 * 3 * 4, <code>x_y</code></p>"


def large_page(rows):
    table = pd.DataFrame({"variant": [f"v{index % 7}" for index in range(rows)], "seed": np.arange(rows)[::-1]})
    table["change_points"] = [np.nan if index % 10 == 0 else (-1) ** index * index / 10 for index in range(rows)]
    failures = [Failure("s", f"search {index}", "failed", "E", "E\n" * 100) for index in range(300)]
    empty = {"parts": [], "environment": table.head(1), "checklist": []}
    return {"title": "Large", "overview": table, "failures": failures} | empty


def test_a_table_longer_than_the_page_bears_says_how_much_is_left_out():
    html = render(large_page(2500))
    assert "500 more rows are in the tables" in html
    assert "100 more are in the tables" in html  # failures
    assert html.count("<tr>") < 2100


PUBLISHED = Path(__file__).parents[2] / "docs" / "results" / "report.html"


def test_the_published_page_is_what_make_report_makes_of_the_published_tables():
    """Its sentences; the numbers of the tables are those of the reports, which another test compares."""
    html = PUBLISHED.read_text(encoding="utf-8")
    assert len(html) < 0.5e6 * len(list(PUBLISHED.parent.glob("*/study.json")))
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!data:image/|#)""", html)
    page = build_page(PUBLISHED.parent)
    for part in page["parts"]:
        assert f">{escape(part.title)}</h2>" in html
        assert str(escape(" ".join(part.section.conclusion))) in html
        summary = html.partition(f"<h3>{escape(part.title)}</h3>")[2].partition("</div>")[0]
        shown = [line for number, line in enumerate(part.section.conclusion) if number == 0 or line.startswith("Shown")]
        assert all(str(escape(sentence)) in summary for sentence in shown)
        assert bool(summary) == bool(shown)
    assert html.count("</h2>") == len(page["parts"]) + 4


def test_a_page_is_made_without_torch_ray_or_mlflow(results, tmp_path):
    code = "import sys; sys.path[:0] = ['analysis']; import report; report.main(sys.argv[1:]); "
    code += "sys.exit(str([name for name in ('torch', 'ray', 'mlflow', 'duckdb') if name in sys.modules]))"
    command = [sys.executable, "-c", code, "--results", str(results / "other"), "--out", str(tmp_path / "page.html")]
    done = subprocess.run(command, cwd=PUBLISHED.parents[2], capture_output=True, text=True, check=False)
    assert done.stderr == "[]\n"
    assert (tmp_path / "page.html").stat().st_size > 10_000


needs_chromium = pytest.mark.skipif(find_chromium() is None, reason="no Chromium on this machine: apt-get install chromium")

SORT = """(() => {{
  const table = document.querySelector("#table-{table} table");
  const head = [...table.tHead.rows[0].cells].findIndex((cell) => cell.textContent.startsWith("{column}"));
  table.tHead.rows[0].cells[head].querySelector("button").click();
  return [...table.tBodies[0].rows].map((row) => row.cells[head].textContent);
}})()"""


@needs_chromium
def test_chromium_shows_sorts_finds_and_prints_the_page(page, results, tmp_path):
    large = tmp_path / "large.html"
    large.write_text(render(large_page(1000)), encoding="utf-8")
    with browser(tmp_path / "profile") as chromium:
        for path, width in ((PUBLISHED, 1280), (results / "report.html", 1280), (results / "report.html", 400)):
            chromium.open(path, width)
            assert chromium.run("document.title").startswith("Results of ")
            assert chromium.run("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
            assert chromium.run("document.documentElement.scrollWidth") <= width
        errors = chromium.run(SORT.format(table="depth-gap-searches", column="error"))
        known = [float(text) for text in errors if text != "–"]
        assert known == sorted(known)
        assert errors == [*errors[: len(known)], *["–"] * (len(errors) - len(known))]  # the failed search stays last
        assert len(known) == 5
        text = chromium.pdf()
        assert text.startswith(b"%PDF")
        assert 3 <= len(re.findall(rb"/Type\s*/Page\b", text)) <= 20

        chromium.open(large)
        sort = SORT.format(table="overview", column="change")
        timed = f"(() => {{ const start = performance.now(); {sort}; return performance.now() - start }})()"
        assert chromium.run(timed) < 2000  # milliseconds
        falling = chromium.run(sort)  # the second click
        numbers = [float(text.replace("−", "-")) for text in falling if text != "–"]
        assert numbers == sorted(numbers, reverse=True)
        assert falling[900:] == ["–"] * 100
        assert chromium.run("document.querySelector('#table-overview th[aria-sort]').getAttribute('aria-sort')") == "descending"
        chromium.run("window.box = document.querySelector('#table-overview input'); box.value = 'v3'")
        chromium.run("box.dispatchEvent(new Event('input'))")
        assert chromium.run("document.querySelectorAll('#table-overview tbody tr:not([hidden])').length") == 143
        assert chromium.run("document.querySelector('#table-overview [role=status]').textContent") == "143 rows"
        assert len(re.findall(rb"/Type\s*/Page\b", chromium.pdf())) < 20  # not all thousand rows
        assert chromium.problems == []
        assert all(url.startswith(("file:", "data:")) for url in chromium.requests)


def test_a_folder_of_an_unknown_kind_of_table_names_the_file(results, tmp_path):
    folder = tmp_path / "study" / "trials"
    folder.mkdir(parents=True)
    (folder / "x.parquet").write_bytes(b"no table")
    with pytest.raises(ConfigError, match=r"x\.parquet: cannot be read as Parquet"):
        build_page(tmp_path)
