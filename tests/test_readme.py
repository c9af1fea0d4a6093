import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_example_of_an_own_study_runs_as_it_stands(tmp_path):
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "width.py").write_text(example)
    command = [sys.executable, "width.py", "--preset", "smoke", "--results", "results", "--dry-run", "--probe-seconds", "0"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "3 variants x 1 seeds = 3 searches on digits" in done.stdout
    assert "skip_dropout 0.0-0.0-0.0 (base: 0.0-0.4-0.7); channels 8 (base: 4)" in done.stdout
    assert not (tmp_path / "results").exists()


def test_every_study_is_in_the_readme():
    text = (ROOT / "README.md").read_text()
    for path in (ROOT / "studies").glob("*.py"):
        assert f"`python studies/{path.name}`" in text, path.name
