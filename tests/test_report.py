import dataclasses
import re

import numpy as np
import pandas as pd
import pytest

from checklist import SOURCE, fill_checklist
from chromium import browser, find_chromium
from pdarts_tune.config import ConfigError, SearchConfig
from pdarts_tune.methods import RandomSampling
from pdarts_tune.results import read_rows, write_rows
from pdarts_tune.stages import PDARTS_CIFAR10, with_depths
from report import build_page, main, read_facts
from report_page import MOST_TEXT, Block, Failure, Page, lay_out, prose, render
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
        "Cells of each variant",
        "All searches",
        "Failures",
        "Environment",
        "Best practices of NAS research",
    ):
        assert re.search(rf"<h2 id=[^>]*>{heading}</h2>", page), heading
    assert "RQ1: does growing the search depth" in page
    assert "shallow, seed 1: search failed (FloatingPointError: stage 1, epoch 2: the training loss is nan)" in page
    assert "No search of this variant is completed" in page  # of the other study, which has no cell
    assert "synthetic" in page  # the device
    assert SOURCE.split(":")[0] in page


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
    assert "Searches of other" in html


def test_mixed_recipes_are_refused_by_name_and_the_rest_is_shown(tmp_path):
    folder = make_study(tmp_path, "depth_gap", VARIANTS, (0,), epochs=1, evaluation_seeds=(0, 1))
    path = next((folder / "evaluations").glob("*-s1.parquet"))
    (row,) = read_rows(folder, "evaluations", path.stem)
    write_rows(folder, "evaluations", path.stem, [row | {"recipe_id": "cifar-other"}])
    page = build_page(tmp_path)
    assert any(part.refusal and "2 recipes" in part.refusal and "cifar-other" in part.refusal for part in page.parts)
    html = render(page)
    assert "Not answered:" in html
    assert "Searches of depth_gap" in html
    assert {item.number: item.status for item in page.checklist}[6] == "not met"


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


def test_the_checklist_says_what_the_tables_know_and_no_more(results):
    facts = read_facts(results / "depth_gap")
    assert [status_of([facts], number) for number in (1, 2, 3)] == ["not known"] * 3  # the synthetic trials name no commit
    nowhere = dataclasses.replace(facts, trials=facts.trials.assign(commit="unknown"))
    assert status_of([nowhere], 1) == "not known"
    named = dataclasses.replace(facts, trials=facts.trials.assign(commit="abc"))
    assert status_of([named], 1) == "partly"  # whether it was published is not known
    assert "abc" in fill_checklist([named])[0].answer
    assert status_of([facts], 8) == "partly"
    assert "random sampling, but no random search" in fill_checklist([facts])[7].answer
    both = facts.trials.assign(method=["random_search", *facts.trials["method"][1:]])
    assert status_of([dataclasses.replace(facts, trials=both)], 8) == "met"
    assert status_of([facts], 9) == "partly"  # two seeds, and one of them failed
    many = pd.concat([facts.trials.assign(seed=seed, status="completed") for seed in range(3)])
    assert status_of([dataclasses.replace(facts, trials=many)], 9) == "met"
    assert status_of([facts], 11) == "partly"  # no commit
    assert status_of([named], 11) == "met"
    devices = named.trials.assign(device=["a", *["b"] * (len(named.trials) - 1)])
    assert "2 devices in depth_gap" in fill_checklist([dataclasses.replace(named, trials=devices)])[10].answer.lower()
    assert status_of([facts], 14) == "partly"
    assert status_of([named], 14) == "met"
    one = dataclasses.replace(facts, trials=facts.trials.head(1), evaluations=facts.evaluations.head(0))
    assert [status_of([one], number) for number in (5, 6, 9)] == ["not met", "not known", "not met"]


def test_columns_of_numbers_are_told_from_text():
    table = pd.DataFrame({"variant": ["a", "b"], "change_points": [-1.5, 2.0], "error_percent": [np.nan, 3.0], "seed": [1, 2]})
    laid = lay_out(table.assign(status=["1 of 2", "none"]))
    assert [numeric for _, numeric in laid.headers] == [False, True, True, True, False]
    assert laid.rows[0][1:3] == ["−1.50", "–"]


def test_notes_are_escaped_and_their_emphasis_kept():
    assert prose("*n*: a < b, 2 * 3 * 4, `x_y`") == "<p><em>n</em>: a &lt; b, 2 * 3 * 4, <code>x_y</code></p>"


def large_page(rows):
    table = pd.DataFrame({"variant": [f"v{index % 7}" for index in range(rows)], "seed": np.arange(rows)[::-1]})
    table["change_points"] = [np.nan if index % 10 == 0 else (-1) ** index * index / 10 for index in range(rows)]
    failures = [Failure("s", f"search {index}", "failed", "E", "E\n" * 100) for index in range(300)]
    block = Block("large", "A large table", table)
    return Page("Large", block, [], [], failures, Block("environment", "None", table.head(1)), [])


def test_a_table_longer_than_the_page_bears_says_how_much_is_left_out():
    html = render(large_page(2500))
    assert "500 more rows are in the tables" in html
    assert "100 more are in the tables" in html  # failures
    assert html.count("<tr>") < 2100


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
        for width in (1280, 400):
            chromium.open(results / "report.html", width)
            assert chromium.run("document.title").startswith("Results of depth_gap")
            assert chromium.run("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
            assert chromium.run("document.documentElement.scrollWidth") <= width
        errors = chromium.run(SORT.format(table="depth-gap-trials", column="error"))
        known = [float(text) for text in errors if text != "–"]
        assert known == sorted(known)
        assert errors == [*errors[: len(known)], *["–"] * (len(errors) - len(known))]  # the failed search stays last
        assert len(known) == 5
        text = chromium.pdf()
        assert text.startswith(b"%PDF")
        assert 3 <= len(re.findall(rb"/Type\s*/Page\b", text)) <= 20

        chromium.open(large)
        sort = SORT.format(table="large", column="change")
        timed = f"(() => {{ const start = performance.now(); {sort}; return performance.now() - start }})()"
        assert chromium.run(timed) < 2000  # milliseconds
        falling = chromium.run(sort)  # the second click
        numbers = [float(text.replace("−", "-")) for text in falling if text != "–"]
        assert numbers == sorted(numbers, reverse=True)
        assert falling[900:] == ["–"] * 100
        assert chromium.run("document.querySelector('#table-large th[aria-sort]').getAttribute('aria-sort')") == "descending"
        chromium.run("window.box = document.querySelector('#table-large input'); box.value = 'v3'")
        chromium.run("box.dispatchEvent(new Event('input'))")
        assert chromium.run("document.querySelectorAll('#table-large tbody tr:not([hidden])').length") == 143
        assert chromium.run("document.querySelector('#table-large [role=status]').textContent") == "143 rows"
        assert len(re.findall(rb"/Type\s*/Page\b", chromium.pdf())) < 20  # not all thousand rows
        assert chromium.problems == []
        assert all(url.startswith(("file:", "data:")) for url in chromium.requests)


def test_a_folder_of_an_unknown_kind_of_table_names_the_file(results, tmp_path):
    folder = tmp_path / "study" / "trials"
    folder.mkdir(parents=True)
    (folder / "x.parquet").write_bytes(b"no table")
    with pytest.raises(ConfigError, match=r"x\.parquet: cannot be read as Parquet"):
        build_page(tmp_path)
