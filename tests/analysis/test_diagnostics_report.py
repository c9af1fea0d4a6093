"""The figures and the table of `analysis/diagnostics.py`, on a synthetic study."""

import subprocess
import sys
from pathlib import Path

from pdarts_tune.config.methods import PartialChannels, RandomSampling
from pdarts_tune.config.remedies import ResourcePenalty
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.results.tables import read_rows, write_rows
from synthetic import make_study

SCRIPT = Path(__file__).parents[2] / "analysis" / "diagnostics.py"
VARIANTS = {
    "pdarts": SearchConfig(penalty=ResourcePenalty("macs", 0.5)),
    "pc_darts": SearchConfig(method=PartialChannels()),
    "random": SearchConfig(method=RandomSampling()),
}


def run(*arguments):
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, check=False)


def test_a_figure_a_variant_and_a_line_for_a_collapsed_trial(tmp_path):
    folder = make_study(tmp_path, "baselines", VARIANTS, seeds=(0, 1), epochs=3, evaluation_seeds=())
    trial = "baselines-pdarts-s1"
    rows = read_rows(folder, "epochs", trial)
    assert not any(row["collapsed"] for row in rows)
    write_rows(folder, "epochs", trial, [row | {"collapsed": row["stage"] == 3} for row in rows])
    done = run("--results", tmp_path)
    assert done.returncode == 0, done.stderr
    report = folder / "report"
    names = {"diagnostics.md", "diagnostics_chosen_epochs.csv", "diagnostics_chosen_epochs.tex"}
    names |= {"diagnostics_resources.csv", "diagnostics_resources.tex"}
    names |= {f"diagnostics_{variant}.{kind}" for variant in ("pc_darts", "pdarts") for kind in ("png", "svg")}
    assert {path.name for path in report.iterdir()} == names
    text = (report / "diagnostics.md").read_text()
    # Epoch 6, the first of stage 3, trains weights alone: there the cell is as drawn.
    assert "baselines-pdarts-s1: 5 skip-connects or more in the normal cell in 2 epochs, first in epoch 7" in text
    assert text.count("skip-connects or more") == 1
    assert "torch" not in SCRIPT.read_text()
    # Per cell of the synthetic search network: 40,000 expected and 30,000 derived weights; the last stage has 17 cells.
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| p") and " x " in line]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["pdarts", "0.5 x macs", "680.00", "510.00", "85.00", "68.00"],
    ]


def test_a_study_without_epochs_is_refused_in_one_line(tmp_path):
    make_study(tmp_path, "baselines", {"random": VARIANTS["random"]}, seeds=(0,), evaluation_seeds=())
    done = run("--results", tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip() == f"error: {tmp_path / 'baselines'}: holds no epochs yet"
