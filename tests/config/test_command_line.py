"""Whatever is wrong with a command line is said in one line on stderr, with exit code 2."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from pdarts_tune.config.command_line import first_paragraph, parse

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Settings:
    genotype: str
    """What to train."""
    seeds: int = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    results: Path = Path("results")


def test_what_is_given_is_read_and_the_rest_has_its_default():
    settings = parse(Settings, ["--genotype", "DARTS", "--seeds", "3"], description="Trains.")
    assert settings == Settings("DARTS", 3)


@pytest.mark.parametrize("columns", ["30", "80", "300"])
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--genotype", "DARTS", "--sedes", "3"], "--sedes"),
        (["--genotype", "DARTS", "stray"], "stray"),
        (["--genotype", "DARTS", "--seeds", "many"], "--seeds"),
        (["--genotype", "DARTS", "--seeds"], "--seeds"),
        (["--genotype", "DARTS", "--precision", "fp8"], "fp8"),
        ([], "--genotype"),
    ],
)
def test_a_wrong_option_is_named_in_one_line(capsys, monkeypatch, columns, arguments, said):
    monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(SystemExit) as stopped:
        parse(Settings, arguments, prog="train.py", description="Trains.")
    output = capsys.readouterr()
    assert stopped.value.code == 2
    assert output.out == ""
    assert output.err.startswith("error: ")
    assert output.err.endswith(" (--help lists the options)\n")
    assert said in output.err
    assert output.err.count("\n") == 1
    assert not set("╭╰│─") & set(output.err)


def test_boxes_of_terminals_with_colours_and_without_lines_are_read_too():
    coloured = "\x1b[31m╭─ Value error ─╮\x1b[0m\n│ Error parsing \x1b[1m--a\x1b[0m: │\n│ no number. │\n│            │\n│ Got: │\n"
    plain = " Value error  \n ------------- \n  Error parsing --a:  \n  no number.  \n  ------------\n  For help, run x\n"
    assert first_paragraph(coloured) == first_paragraph(plain) == "Error parsing --a: no number"


def test_help_is_printed_as_a_whole_and_is_no_error(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(Settings, ["--help"], prog="train.py", description="Trains.")
    output = capsys.readouterr()
    assert not stopped.value.code
    assert "What to train." in output.out
    assert output.err == ""


@pytest.mark.parametrize("script", ["analysis/rq4_transfer.py", "analysis/diagnostics.py", "studies/depth_gap.py"])
def test_scripts_refuse_an_unknown_option_in_one_line(script):
    command = [sys.executable, ROOT / script, "--bogus", "3"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: Unrecognized options: --bogus, 3 (--help lists the options)\n"
