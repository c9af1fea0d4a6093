"""The kernels' library is compiled once, by any number of processes at a time, and a damaged one is never used."""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from pdarts_tune.networks.kernels import build

ROOT = Path(__file__).parents[2]
QUICK = ("-std=gnu11", "-O0", "-ffp-contract=fast", "-fPIC", "-shared", "-w")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own, and quick compilation."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "FLAGS", QUICK)
    build.load.cache_clear()
    yield tmp_path / "pdarts_tune"
    build.load.cache_clear()


def libraries(cache):
    return sorted(cache.glob("cells-*.so"))


def no_compilation(*arguments, **settings):
    pytest.fail("it compiled")


def nothing(name):
    return None


def load_again():
    build.load.cache_clear()
    return build.load(torch.float32)


def test_a_second_start_compiles_nothing(cache, monkeypatch):
    build.load(torch.float32)
    monkeypatch.setattr(build.subprocess, "run", no_compilation)
    load_again()
    assert len(libraries(cache)) == 1


@pytest.mark.parametrize("damage", ["half", "empty", "one byte"])
def test_a_damaged_library_is_compiled_again(cache, damage):
    build.load(torch.float32)
    (path,) = libraries(cache)
    whole = path.read_bytes()
    path.unlink()  # the loaded one must not change under this process
    path.write_bytes({"half": whole[: len(whole) // 2], "empty": b"", "one byte": whole[:-1] + b"?"}[damage])
    load_again()
    assert libraries(cache) == [path]
    assert len(path.read_bytes()) == len(whole)


def test_another_processor_flag_type_or_source_has_a_library_of_its_own(cache, monkeypatch, tmp_path):
    build.load(torch.float32)
    build.load(torch.float64)
    monkeypatch.setattr(build, "processor", lambda: "another")
    load_again()
    monkeypatch.setattr(build, "FLAGS", (*QUICK, "-DANOTHER"))
    load_again()
    copies = [shutil.copy(source, tmp_path) for source in build.SOURCES]
    monkeypatch.setattr(build, "SOURCES", tuple(Path(path) for path in copies))
    Path(copies[1]).write_text(Path(copies[1]).read_text() + "\n")
    load_again()
    assert len(libraries(cache)) == 5


def test_without_a_compiler_one_line_says_what_to_install(cache, monkeypatch):
    monkeypatch.setattr(build.shutil, "which", nothing)
    monkeypatch.setattr(build.importlib.util, "find_spec", nothing)
    with pytest.raises(build.BuildError, match=r"^kernels: no C compiler was found; install a C compiler .*ziglang`$"):
        build.load(torch.float32)
    assert not libraries(cache)


def compiler(tmp_path, monkeypatch, script):
    path = tmp_path / "compiler"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("CC", str(path))


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'cells.c:1: error: no stdint.h' >&2; echo more >&2; exit 1", "no stdint.h"),
        ("exit 1", "no message"),
        ("exit 0", "failed"),
    ],
)
def test_a_compiler_that_fails_leaves_one_line_and_no_library(cache, tmp_path, monkeypatch, script, message):
    compiler(tmp_path, monkeypatch, script)
    with pytest.raises(build.BuildError, match=message) as error:
        build.load(torch.float32)
    assert "\n" not in str(error.value)
    assert list(cache.iterdir()) == []


def test_a_compiler_that_makes_nonsense_is_told(cache, tmp_path, monkeypatch):
    compiler(tmp_path, monkeypatch, 'while [ "$1" != -o ]; do shift; done; echo nonsense > "$2"')
    with pytest.raises(build.BuildError, match="cannot be loaded"):
        build.load(torch.float32)


def test_a_cache_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    build.load.cache_clear()
    try:
        with pytest.raises(build.BuildError, match=r"cache folder cannot be written.*XDG_CACHE_HOME") as error:
            build.load(torch.float32)
    finally:
        build.load.cache_clear()
    assert "\n" not in str(error.value)


def run_python(code, tmp_path, **environment):
    command = [sys.executable, "-c", textwrap.dedent(code)]
    variables = {
        **os.environ,
        "XDG_CACHE_HOME": str(tmp_path),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent)]),
    }
    return subprocess.Popen(
        command, env=variables | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
    )


def test_two_workers_may_race(tmp_path):
    code = f"""
        import torch
        from pdarts_tune.networks.kernels import build
        build.FLAGS = {QUICK}
        print(build.load(torch.float32).number_of_bytes())
    """
    workers = [run_python(code, tmp_path) for _ in range(2)]
    assert [worker.communicate()[0].strip() for worker in workers] == ["4"] * 2
    assert len(libraries(tmp_path / "pdarts_tune")) == 1
    assert not list((tmp_path / "pdarts_tune").glob(".*"))  # nothing unfinished is left


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["x86-64", "native"])
def test_address_and_undefined_behaviour_sanitizers_find_nothing(tmp_path, architecture):
    names = "libasan.so", "libstdc++.so.6"  # the second one, so that PyTorch can throw exceptions
    command = [*build.find_compiler(), "-print-file-name="]
    found = [subprocess.run([*command[:-1], command[-1] + name], capture_output=True, text=True, check=False) for name in names]
    runtimes = [Path(result.stdout.strip()) for result in found]
    if not all(runtime.is_absolute() and runtime.exists() for runtime in runtimes):
        pytest.skip("this compiler has no address sanitizer")
    if architecture == "x86-64" and os.uname().machine != "x86_64":
        pytest.skip("another processor")
    code = f"""
        import sys, pytest
        from pdarts_tune.networks.kernels import build
        build.FLAGS = ("-std=gnu11", "-O1", "-g", "-march={architecture}", "-ffp-contract=fast", "-fPIC", "-shared", "-w",
                       "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
        sys.exit(pytest.main(["-q", "-x", "-s", "-p", "no:cacheprovider", "tests/networks/test_kernels.py"]))
    """
    environment = {
        "LD_PRELOAD": " ".join(map(str, runtimes)),
        "ASAN_OPTIONS": "detect_leaks=0",
        "OMP_NUM_THREADS": "1",
        "KERNEL_EXAMPLES": "12",
    }
    worker = run_python(code, tmp_path, **environment)
    output = worker.communicate()[0]
    assert worker.returncode == 0, output[-5000:]
    assert list((tmp_path / "pdarts_tune").glob("cells-*.so"))
