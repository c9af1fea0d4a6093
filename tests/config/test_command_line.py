"""Whatever is wrong with a command line is said in one line on stderr, with exit code 2."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from pdarts_tune.config import command_line
from pdarts_tune.config.command_line import change_settings, first_paragraph, parse
from pdarts_tune.config.methods import Snas
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.config.serialize import ConfigError, from_dict, to_dict

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


def changed(*changes):
    return from_dict(SearchConfig, change_settings(to_dict(SearchConfig()), changes))


def test_any_setting_can_be_changed_by_its_name():
    config = changed("batch_size=64", "stages.1.cells=8", "stages.epochs=30", "alpha_betas=[0.4, 0.9]", "execution.recompute=True")
    assert (config.batch_size, config.alpha_betas, config.execution.recompute) == (64, (0.4, 0.9), True)
    assert [stage.cells for stage in config.stages] == [5, 8, 17]
    assert [stage.epochs for stage in config.stages] == [30, 30, 30]
    assert changed("method=snas", "method.penalty=mild").method == Snas(penalty="mild")
    assert changed("eigenvalue_every=1", "early_stop_ratio=1.3").early_stop_ratio == 1.3
    control = changed("eigenvalue_every=1", "early_stop_ratio=1.3", "method=random")  # so that a study with a control can have them
    assert control.eigenvalue_every == 1
    assert changed("batch_size=96", "image_size=null") == SearchConfig()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("batchsize=3", "set: 'batchsize' is unknown, near are batch_size"),
        ("epochs=3", "set: 'epochs' is unknown, near are stages.epochs, stages.0.epochs, stages.1.epochs, stages.2.epochs"),
        ("stages.3.cells=8", "near are stages.2.cells"),
        ("colour=red", "set: 'colour' is unknown, known are stages, method, data, train_images"),
        ("batch_size", "set: 'batch_size' is wrong, it must be NAME=VALUE"),
        ("batch_size=many", "batch_size: 'many' is wrong, it must be a whole number of at least 1"),
        ("stages.1.cells=2", "stages[1].cells: 2 is wrong, it must be a whole number of at least 3"),
        ("momentum=1.5", "momentum: 1.5 is wrong, it must be a number in [0, 1)"),
        ("stages.1.skip_dropout=high", "stages[1].skip_dropout: 'high' is wrong, it must be a number in [0, 1)"),
        ("max_skips=x", "max_skips: 'x' is wrong, it must be a whole number from 0 to 8"),
        ("train_images=all", "train_images: 'all' is wrong, it must be a whole number of at least 2 or None"),
        ("early_stop_ratio=1", "early_stop_ratio: 1 is wrong, it must be a number of more than 1 or None"),
        ("alpha_betas=3", "alpha_betas: 3 is wrong, it must be a list"),
        ("data=", "data: '' is wrong, it must be a text, not empty"),
        ("execution.compile=1", "execution.compile: 1 is wrong, it must be True or False"),
        ("execution=3", "execution: 3 is wrong, it must be settings of Execution"),
        ("alpha_betas=[0.1, 0.2, 0.3]", "alpha_betas: [0.1, 0.2, 0.3] is wrong, it must be 2 values"),
        ("method=snass", "one of first_order, second_order, snas"),
        ("method.k=3", "method.k: unknown setting of FirstOrder, known are name"),
    ],
)
def test_a_wrong_change_names_the_setting_and_what_would_be_right(change, says):
    with pytest.raises(ConfigError) as caught:
        changed(change)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("goes_on", [False, True])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_without_a_reader_ends_a_command_quietly_or_lets_it_go_on(tmp_path, goes_on, unbuffered):
    script = (
        "import sys\nfrom dataclasses import dataclass\nfrom pathlib import Path\n"
        "from pdarts_tune.config import command_line\n@dataclass\nclass A:\n    out: Path\n"
        "settings = command_line.parse(A, description='')\n"
        f"if {goes_on}: command_line.outlive_reader()\n"
        "for _ in range(3): print('line', flush=True)\n"
        "settings.out.write_text('written')\n"
    )
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-c", script, "--out", tmp_path / "out"]
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False, env=environment)
    os.close(writing)
    warning = "warning: the output cannot be printed (Broken pipe); the work goes on without it\n"
    assert (done.returncode, done.stderr) == ((0, warning) if goes_on else (command_line.NOBODY_READS, ""))
    assert (tmp_path / "out").exists() == goes_on
