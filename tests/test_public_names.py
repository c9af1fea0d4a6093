"""`from pdarts_tune import ...` is all that a study or a notebook needs, and costs nothing until a name is used."""

import ast
import importlib
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import pdarts_tune

ROOT = Path(__file__).parents[1]


def test_importing_the_package_loads_no_heavy_library():
    script = "import sys, pdarts_tune; print({'torch', 'ray', 'pandas', 'mlflow', 'pydantic'} & set(sys.modules) or 'light')"
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert output == "light\n"


def test_a_study_file_and_its_help_load_neither_torch_nor_ray_nor_pandas():
    script = "import sys, depth_gap; print({'torch', 'ray', 'pandas', 'mlflow'} & set(sys.modules) or 'light')"
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT / "studies", check=True).stdout
    assert output == "light\n"


@pytest.mark.parametrize("name", pdarts_tune.__all__)
def test_every_public_name_is_that_of_its_room(name):
    room = importlib.import_module(f"pdarts_tune.{pdarts_tune._HOME[name]}")
    assert getattr(pdarts_tune, name) is getattr(room, name)


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(pdarts_tune.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    declared = {name.name: line.module.removeprefix("pdarts_tune.") for line in block.body for name in line.names}
    assert declared == pdarts_tune._HOME


def test_an_unknown_name_is_refused():
    with pytest.raises(ImportError, match="cannot import name 'Stagse'"):
        from pdarts_tune import Stagse  # noqa: F401
    assert "Stage" in dir(pdarts_tune)


@pytest.mark.parametrize(
    "path", [*sorted((ROOT / "studies").glob("*.py")), *sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]
)
def test_studies_and_examples_import_from_the_package_itself(path):
    assert not re.findall(r"^\s*(?:from|import) pdarts_tune\..*", path.read_text(), re.MULTILINE)


def test_ctrl_c_while_modules_are_imported_prints_no_traceback(tmp_path):
    (tmp_path / "slow.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(9)\n")
    for script, code, lines in (
        ("import pdarts_tune, slow", 130, 0),
        ("import pdarts_tune; raise KeyboardInterrupt", -signal.SIGINT, 1),
    ):
        # A test run in the background of a shell ignores Ctrl-C, and so would this process.
        heeds = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)"
        command = [sys.executable, "-c", f"{heeds}; sys.path.append({str(tmp_path)!r}); {script}"]
        process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        assert (process.returncode, process.stderr.count("Traceback")) == (code, lines), process.stderr
