"""A study whose results are in an object store and whose MLflow is a server: moto and `mlflow server`, on this machine.

Needs the extra `test`.
"""

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from contextlib import closing, contextmanager

import pytest
from test_survival import assert_mirrored, assert_whole, finish, running, undisturbed, wait_until  # noqa: F401

from pdarts_tune.results.storage import Storage, open_filesystem
from pdarts_tune.results.tables import read_table
from pdarts_tune.study.mlflow_mirror import default_tracking_uri, open_client

SECRET = "not-to-be-seen-anywhere"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def serving(command, port, log):
    """A server while the context lasts; SIGKILL ends it and its workers."""
    with log.open("a") as file:
        server = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
        yield server
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """s3://studies/results of a server that is gone after the test."""
    pytest.importorskip("moto", reason="needs the extra `test`")
    port = free_port()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    with serving([sys.executable, "-m", "moto.server", "-p", str(port)], port, tmp_path / "moto.log"):
        from pyarrow.fs import S3FileSystem

        S3FileSystem(allow_bucket_creation=True, endpoint_override=os.environ["AWS_ENDPOINT_URL"]).create_dir("studies")
        yield "s3://studies/results"
    open_filesystem.cache_clear()


def test_an_object_store_keeps_rows_and_checkpoints(bucket):
    storage = Storage(bucket)
    assert storage.stamps("trials") == {}
    storage.write("trials/a", b"one")
    before = storage.stamp("trials/a")
    storage.write("trials/a", bytes(7 * 2**20))
    assert storage.read("trials/a") == bytes(7 * 2**20)
    assert storage.stamp("trials/a") != before
    assert storage.folders() == ["trials"]
    assert storage.used() == (7 * 2**20, 1)
    storage.remove("trials/a")
    assert storage.stamp("trials/a") == ""
    with pytest.raises(FileNotFoundError):
        storage.read("trials/a")


@pytest.mark.slow  # two servers and a study with Ray
@pytest.mark.timeout(900)
def test_a_study_in_an_object_store_outlives_a_restart_of_its_mlflow_server(bucket, tmp_path, undisturbed):  # noqa: F811
    port = free_port()
    database = tmp_path / "mlflow.db"
    open_client(default_tracking_uri(tmp_path)).search_experiments()  # makes the database, quicker here than in the server
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{database}", "--artifacts-destination", str(tmp_path / "files")]
    env = {"OUTPUT": str(tmp_path / "output.txt")}
    arguments = "--tracking-uri", f"http://127.0.0.1:{port}"
    study = Storage(bucket).below("survival")
    with serving(command, port, tmp_path / "mlflow.log"):
        driver = running(bucket, *arguments, env=env)
        process, output = driver.__enter__()
        wait_until(lambda: study.stamp("epochs/steady-seed0.parquet"), process, output)
    try:  # the server is gone
        wait_until(lambda: "the tables are not affected" in output.read_text(), process, output)
        with serving(command, port, tmp_path / "mlflow.log"):
            assert process.wait(timeout=400) == 0, output.read_text()
            said = output.read_text()
            assert "\nTraceback" not in said
            assert_whole(bucket, undisturbed)
            assert_mirrored(database)
            before = {table: study.stamps(table) for table in ("trials", "epochs", "alphas", "genotypes", "evaluations")}
            assert "all of them done" in finish(bucket, *arguments, env=env)
            assert {table: study.stamps(table) for table in before} == before
            assert_mirrored(database)
    finally:
        driver.__exit__(None, None, None)
    assert study.stamp("completed.json")
    assert study.stamps("checkpoints") == {}
    assert "ray" not in study.folders()
    everything = b"".join(study.read(f"{table}/{name}") for table in before for name in before[table])
    with closing(sqlite3.connect(database)) as connection:
        everything += "\n".join(connection.iterdump()).encode()
    assert SECRET.encode() not in everything + output.read_bytes() + study.read("study.json")
    assert len(read_table(bucket, "evaluations")) == 1
