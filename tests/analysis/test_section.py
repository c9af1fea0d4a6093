"""What every question's script shares: how columns become readers' cells, and files that are whole."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

import rq1_depth_gap
from common.section import Section, as_text, heading, show_section, table_markdown, to_text, write_section

TABLE = pd.DataFrame(
    {
        "variant": ["deep", "random"],
        "n": [3, 1],
        "error_percent": [3.625, np.nan],
        "error_percent_sd": [0.5, np.nan],
        "params_millions": [2.5, 3.0],
        "difference": [-0.25, np.nan],
        "ci_low": [-1.0, np.nan],
        "ci_high": [0.5, np.nan],
        "p": [0.0625, np.nan],
        "claimed": [False, True],
    }
)


def section(**changes):
    figure = Figure()
    figure.subplots().plot([1, 2])
    fields = {
        "name": "rq9",
        "title": "RQ9?",
        "tables": {"variants": TABLE, "nothing": TABLE.iloc[:0], "published": TABLE[["variant", "n"]]},
        "figures": {"line": lambda: figure},
        "conclusion": ("One.", "Two."),
        "missing": ("deep, seed 1",),
        "notes": {"variants": "How to read it."},
    }
    return Section(**(fields | changes))


def test_columns_become_cells_by_their_names():
    headers, rows = as_text(TABLE)
    assert headers == ["variant", "n", "error, %", "params, M", "difference", "95 % interval", "p", "claimed"]
    assert rows == [
        ["deep", "3", "3.62 ± 0.50", "2.50", "−0.25", "[−1.00, +0.50]", "0.062", "no"],
        ["random", "1", "–", "3.00", "–", "–", "–", "yes"],
    ]


def test_a_figure_with_ends_is_shown_with_its_interval():
    ends = pd.DataFrame({"best_percent": [2.5, 3.0], "best_percent_low": [2.25, np.nan], "best_percent_high": [2.75, np.nan]})
    assert as_text(ends) == (["best, %"], [["2.50 [2.25, 2.75]"], ["3.00"]])


def test_published_figures_are_headed_as_such():
    assert heading("published") == "Published, not measured here"
    assert heading("published_imagenet") == "Published, not measured here: imagenet"
    assert heading("error_differences") == "Error differences"


def test_text_has_tables_that_have_rows_with_their_notes_and_what_is_missing():
    text = to_text(section())
    assert text.startswith("# RQ9?\n\nOne. Two.\n")
    assert "How to read it." in text
    assert "## Nothing" not in text
    assert "- deep, seed 1" in text
    assert "Nothing: every search" in to_text(section(missing=()))


def test_a_section_becomes_files_whose_csv_holds_every_digit(tmp_path):
    path = write_section(section(), tmp_path / "new" / "folder")
    names = {"rq9.md", "rq9_line.png", "rq9_line.svg"}
    names |= {f"rq9_{table}.{kind}" for table in ("variants", "nothing", "published") for kind in ("csv", "tex")}
    assert {file.name for file in path.parent.iterdir()} == names
    read = pd.read_csv(path.parent / "rq9_variants.csv")
    pd.testing.assert_frame_equal(read, TABLE)
    latex = (path.parent / "rq9_variants.tex").read_text()
    assert latex.isascii()
    assert all(command in latex for command in (r"\toprule", r"\bottomrule", r"3.62 $\pm$ 0.50", r"error, \%"))


def test_the_command_prints_the_main_table_and_the_conclusion(tmp_path, capsys):
    show_section(section(), tmp_path / "mine" / "report")
    out = capsys.readouterr().out
    assert out.startswith(table_markdown(TABLE))
    assert out.splitlines()[-3:] == ["One.", "Two.", f"report: {tmp_path / 'mine' / 'report' / 'rq9.md'}"]


def test_a_folder_without_data_is_one_line_and_exit_code_2(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        rq1_depth_gap.main(["--results", str(tmp_path)])
    assert capsys.readouterr().err.count("\n") == 1
    assert not list(tmp_path.iterdir())
