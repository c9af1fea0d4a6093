"""A folder of the cache appears whole or not at all, one process builds it, and a digest is kept until its file changes."""

import multiprocessing
import time
from pathlib import Path

import pytest

from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.data.cache import cached_folder, file_digest


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty folder of this test."""
    monkeypatch.setenv("PDARTS_TUNE_DATA", str(tmp_path / "data"))
    return tmp_path / "data" / "cache"


def folders(cache):
    return sorted(path.name for path in cache.iterdir() if path.is_dir())


def test_a_build_that_fails_leaves_nothing(cache):
    def build(folder):
        (folder / "half").write_text("a")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        cached_folder("key", build)
    assert folders(cache) == []
    assert cached_folder("key", Path.touch).is_dir()


def test_a_cache_that_cannot_be_written_names_the_variable_to_set(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("PDARTS_TUNE_DATA", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match=r"cannot be kept in .*file/cache \(Not a directory\); let PDARTS_TUNE_DATA name"):
        cached_folder("key", Path.touch)


def _build_slowly(built):
    def build(folder):
        time.sleep(0.3)
        built.put(folder.name)

    cached_folder("shared", build)


def test_of_two_processes_one_builds_and_the_other_waits(cache):
    context = multiprocessing.get_context("spawn")
    built = context.Queue()
    processes = [context.Process(target=_build_slowly, args=(built,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert built.get(timeout=5)
    assert built.empty()
    assert folders(cache) == ["shared"]


def test_the_digest_of_a_large_file_is_kept_until_the_file_changes(tmp_path, cache, monkeypatch):
    file = tmp_path / "large"
    file.write_bytes(b"one")
    monkeypatch.setattr("pdarts_tune.data.cache.REMEMBER_ABOVE", 0)
    first = file_digest(file)
    assert file_digest(file) == first
    assert len(folders(cache)) == 1
    file.write_bytes(b"other")
    assert file_digest(file) != first
