import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from pdarts_tune.config.methods import RandomSampling
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.results.tables import read_rows, read_table, write_rows
from pdarts_tune.study import mlflow_mirror
from pdarts_tune.study.mlflow_mirror import BackgroundMirror, Mirror, TrackingError, default_tracking_uri
from synthetic import make_evaluations, make_study, make_trial, shrink

SMALL = shrink(SearchConfig(), 2)
RANDOM = SearchConfig(method=RandomSampling())


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """A new database takes MLflow seven seconds, a copy of one none."""
    root = tmp_path_factory.mktemp("store")
    mlflow_mirror.MlflowStore(default_tracking_uri(root), "unused", root / "files")
    return root / "mlflow.db"


@pytest.fixture
def root(empty_store, tmp_path):
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return tmp_path


@pytest.fixture
def drawn(monkeypatch):
    """Draws nothing (a second a trial) and lists the trials whose files would have been logged."""
    names = []
    monkeypatch.setattr(Mirror, "_log_files", lambda *arguments: names.append(arguments[2]["trial_id"]))
    return names


def open_mirror(root, study="study"):
    return Mirror(root / study, default_tracking_uri(root))


def query(root, sql):
    with closing(sqlite3.connect(root / "mlflow.db")) as connection:
        return connection.execute(sql).fetchall()


def runs(root):
    """Name to status of the runs that are not deleted; two of one name are an error."""
    rows = query(root, "select name, status from runs where lifecycle_stage = 'active'")
    assert len(rows) == len(dict(rows)), rows
    return dict(rows)


def points(root, trial_id, key="%"):
    return query(
        root,
        "select key, step, timestamp, value, is_nan from metrics join runs using (run_uuid) "
        f"where name = '{trial_id}' and lifecycle_stage = 'active' and key like '{key}' order by key, step, timestamp, value",
    )


def params(root, trial_id):
    return dict(query(root, f"select key, value from params join runs using (run_uuid) where name = '{trial_id}'"))


def tags(root, trial_id):
    return dict(query(root, f"select key, tags.value from tags join runs using (run_uuid) where name = '{trial_id}'"))


def latest(root, trial_id):
    return dict(query(root, f"select key, value from latest_metrics join runs using (run_uuid) where name = '{trial_id}'"))


def test_a_study_is_one_run_and_each_trial_one_nested_in_it(root, drawn):
    folder = make_study(root, "study", {"pdarts": SMALL, "random": RANDOM}, (0, 1), epochs=2, failed=["study-pdarts-s1"])
    mirror = open_mirror(root)
    mirror.sync()
    names = ["study-pdarts-s0", "study-random-s0", "study-random-s1"]
    assert runs(root) == {"study": "RUNNING", "study-pdarts-s1": "FAILED"} | dict.fromkeys(names, "FINISHED")
    assert sorted(drawn) == names
    ((parent,),) = query(root, "select run_uuid from runs where name = 'study'")
    for name in [*names, "study-pdarts-s1"]:
        assert tags(root, name)["mlflow.parentRunId"] == parent
    (trial,) = read_rows(folder, "trials", "study-pdarts-s0")
    swept = ("method", "data", "depths", "operations", "skip_dropout", "epochs", "max_skips", "channels", "batch_size")
    named = ("variant", "seed", "split_seed", *swept, "config_id")
    assert params(root, "study-pdarts-s0") == {name: str(trial[name]) for name in named}
    assert tags(root, "study-pdarts-s1")["pdarts_tune.error"].startswith("FloatingPointError")
    assert [row[0] for row in points(root, "study-random-s0", "epoch/%")] == []
    mirror.finish(ok=False)
    assert runs(root)["study"] == "FAILED"
    open_mirror(root).finish(ok=True)
    assert runs(root)["study"] == "FINISHED"


def test_epochs_and_final_figures_are_those_of_the_tables(root, drawn):
    folder = make_study(root, "study", {"pdarts": SMALL}, (0,), epochs=2)
    open_mirror(root).finish(ok=True)
    epochs = read_table(folder, "epochs").sort_values(["stage", "epoch"])
    for column in ("train_loss", "validation_accuracy", "normal_skip_count", "stage"):
        logged = points(root, "study-pdarts-s0", f"epoch/{column}")
        assert [(step, value) for _, step, _, value, _ in logged] == list(enumerate(epochs[column]))
        assert [stamp for _, _, stamp, _, _ in logged] == [round(time.timestamp() * 1000) for time in epochs["finished"]]
    assert points(root, "study-pdarts-s0", "epoch/hessian_eigenvalue") == []
    (trial,) = read_table(folder, "trials").to_dict("records")
    genotypes = read_table(folder, "genotypes")
    final = genotypes[(genotypes["stage"] == 3) & (genotypes["max_skips"] == 2)].iloc[0]
    search = epochs["validation_accuracy"].iloc[-1]
    accuracy = read_table(folder, "evaluations")["accuracy"].mean()
    expected = {
        "search_validation_accuracy": search,
        "inherited_accuracy": final["inherited_accuracy"],
        "evaluation_error_percent": 100 * (1 - accuracy),
        "depth_gap": search - accuracy,
        "normal_skip_count": final["skips"],
        "params_millions": final["params"] / 1e6,
        "search_seconds": trial["seconds"],
        "peak_bytes": trial["peak_bytes"],
    }
    figures = {key: value for key, value in latest(root, "study-pdarts-s0").items() if not key.startswith("epoch/")}
    assert figures == pytest.approx(expected)
    means = {f"pdarts/{key}": value for key, value in expected.items()} | {"pdarts/completed_trials": 1}
    assert latest(root, "study") == pytest.approx(means)


def test_syncing_again_changes_nothing(root, drawn):
    make_study(root, "study", {"pdarts": SMALL, "random": RANDOM}, (0,), epochs=2)
    mirror = open_mirror(root)
    mirror.finish(ok=True)
    before = runs(root), points(root, "%"), len(drawn)
    mirror.finish(ok=True)
    open_mirror(root).finish(ok=True)
    for (run_id,) in query(root, "select run_uuid from runs"):  # even if MLflow has forgotten what is there
        mlflow_mirror.MlflowStore(default_tracking_uri(root), "study", root)._client.set_tag(run_id, mlflow_mirror.DONE, "")
    open_mirror(root).finish(ok=True)
    assert (runs(root), points(root, "%"), len(drawn)) == before


def test_a_trial_that_has_not_changed_costs_no_reading(root, drawn, monkeypatch):
    make_study(root, "study", {"pdarts": SMALL}, (0,), epochs=2)
    open_mirror(root).sync()
    again = open_mirror(root)
    again.sync()  # reads the evaluations, once

    def refuse(*arguments):
        raise AssertionError("a table is read")

    monkeypatch.setattr(mlflow_mirror, "read_rows", refuse)
    again.sync()


def test_a_growing_trial_ends_as_if_it_had_been_mirrored_once(root, drawn, empty_store):
    folder = root / "study"
    mirror = open_mirror(root)
    for done in (0, 1, 4):
        make_trial(folder, "t", "pdarts", SMALL, status="running", epochs_done=done)
        mirror.sync(["t"])
        assert runs(root) == {"study": "RUNNING", "t": "RUNNING"}
        assert len(points(root, "t", "epoch/train_loss")) == done
    make_trial(folder, "t", "pdarts", SMALL)
    mirror.sync(["t"])
    assert runs(root) == {"study": "RUNNING", "t": "FINISHED"}
    other = root / "at_once"
    make_trial(other / "study", "t", "pdarts", SMALL)
    shutil.copy(empty_store, other / "mlflow.db")
    open_mirror(other).sync()
    assert points(root, "t") == points(other, "t")


class LostError(Exception):
    pass


@pytest.mark.parametrize("after", [False, True], ids=["before the call", "after the call"])
def test_whichever_call_the_driver_dies_at_nothing_is_lost_or_doubled(root, drawn, after, monkeypatch):
    folder = root / "study"
    make_trial(folder, "t", "pdarts", SMALL, evaluation_seeds=())
    open_mirror(root).sync()
    expected = {row for row in points(root, "t") if row[0].startswith("epoch/")}
    calls = ("create_run", "log_batch", "set_terminated", "update_run")
    for fatal in range(1, 100):
        study = f"study{fatal}"
        make_trial(root / study, "t", "pdarts", SMALL, status="running", epochs_done=3)
        mirror = open_mirror(root, study)
        left = [fatal]

        def dying(name, mirror=mirror, left=left):
            real = getattr(mirror._store._client, name)

            def call(*arguments, **keywords):
                left[0] -= 1
                if left[0] == 0 and not after:
                    raise LostError
                result = real(*arguments, **keywords)
                if left[0] == 0:
                    raise LostError
                return result

            return call

        for name in calls:
            monkeypatch.setattr(mirror._store._client, name, dying(name))
        try:
            mirror.sync()
            make_trial(root / study, "t", "pdarts", SMALL, evaluation_seeds=())
            mirror.sync()
        except TrackingError:
            mirror = open_mirror(root, study)
        make_trial(root / study, "t", "pdarts", SMALL, evaluation_seeds=())
        open_mirror(root, study).sync()
        found = query(
            root,
            "select key, step, timestamp, metrics.value, is_nan from metrics join runs using (run_uuid) "
            f"join experiments using (experiment_id) where experiments.name = '{study}' and key like 'epoch/%'",
        )
        assert len(found) == len(expected), f"call {fatal}"
        assert set(found) == expected
        status = query(root, f"select status from runs join experiments using (experiment_id) where experiments.name = '{study}'")
        assert sorted(status) == [("FINISHED",), ("RUNNING",)]
        if left[0] > 0:
            break
    assert 8 < fatal < 30


def test_a_search_that_was_done_again_another_way_gets_a_new_run(root, drawn):
    folder = root / "study"
    make_trial(folder, "t", "pdarts", SMALL, status="running", epochs_done=4)
    mirror = open_mirror(root)
    mirror.sync()
    rows = read_rows(folder, "epochs", "t")
    write_rows(folder, "epochs", "t", [*rows[:3], rows[3] | {"train_loss": 9.0}])
    mirror.sync()
    assert runs(root) == {"study": "RUNNING", "t": "RUNNING"}
    losses = points(root, "t", "epoch/train_loss")
    assert [row[1] for row in losses] == [0, 1, 2, 3]
    assert losses[3][3] == 9.0
    write_rows(folder, "epochs", "t", rows[:2])
    open_mirror(root).sync()
    assert [row[1] for row in points(root, "t", "epoch/train_loss")] == [0, 1]


def test_a_search_that_went_another_way_after_the_driver_died_gets_a_new_run(root, drawn, monkeypatch):
    folder = root / "study"
    make_trial(folder, "t", "pdarts", SMALL, status="running", epochs_done=4)
    mirror = open_mirror(root)
    real = mirror._store.set_tags

    def set_tags(run, changed):
        if mlflow_mirror.DONE in changed:
            raise LostError
        real(run, changed)

    monkeypatch.setattr(mirror._store, "set_tags", set_tags)
    with pytest.raises(LostError):
        mirror.sync()
    assert len(points(root, "t", "epoch/train_loss")) == 4
    rows = read_rows(folder, "epochs", "t")
    write_rows(folder, "epochs", "t", [*rows[:3], rows[3] | {"train_loss": 9.0}])
    open_mirror(root).sync()
    assert [row[1] for row in points(root, "t", "epoch/train_loss")] == [0, 1, 2, 3]
    assert points(root, "t", "epoch/train_loss")[3][3] == 9.0


def test_losses_that_are_not_numbers_are_mirrored_once(root, drawn):
    folder = root / "study"
    make_trial(folder, "t", "pdarts", SMALL, status="failed")
    write_rows(folder, "epochs", "t", [row | {"train_loss": float("nan")} for row in read_rows(folder, "epochs", "t")])
    for _ in range(2):
        mirror = open_mirror(root)
        mirror.sync()
        mirror._store.set_tags(mirror._runs["t"], {mlflow_mirror.DONE: ""})
    assert [row[4] for row in points(root, "t", "epoch/train_loss")] == [1, 1]


def test_evaluations_that_come_later_update_the_finished_run(root, drawn):
    folder = root / "study"
    make_trial(folder, "t", "pdarts", SMALL, evaluation_seeds=())
    mirror = open_mirror(root)
    mirror.sync()
    assert "evaluation_error_percent" not in latest(root, "t")
    row = next(row for row in read_rows(folder, "genotypes", "t") if row["stage"] == 3 and row["max_skips"] == 2)
    (trial,) = read_rows(folder, "trials", "t")
    for seed in (0, 1, 2):
        make_evaluations(folder, row, "cifar10", trial["finished"], seeds=(seed,))
        mirror.sync([f"eval-{row['genotype_id']}-s{seed}"])
        mean = read_table(folder, "evaluations")["accuracy"].mean()
        assert latest(root, "t")["evaluation_error_percent"] == pytest.approx(100 * (1 - mean))
    assert [step for _, step, *_ in points(root, "t", "evaluation_error_percent")] == [1, 2, 3]
    make_evaluations(folder, row, "cifar100", trial["finished"], seeds=(7,))
    mirror.sync()
    assert latest(root, "t")["evaluation_error_percent"] == pytest.approx(100 * (1 - mean))
    assert sum(key.startswith("evaluation_error_percent/cifar100/cifar-") for key in latest(root, "t")) == 1
    assert drawn == ["t"]


def test_a_failed_trial_that_is_taken_up_again_runs_and_finishes(root, drawn):
    folder = root / "study"
    make_trial(folder, "t", "pdarts", SMALL, status="failed")
    mirror = open_mirror(root)
    mirror.sync()
    make_trial(folder, "t", "pdarts", SMALL, status="running", epochs_done=3)
    mirror.sync()
    assert runs(root)["t"] == "RUNNING"
    assert tags(root, "t")["pdarts_tune.error"] == ""
    make_trial(folder, "t", "pdarts", SMALL, status="out_of_memory", epochs_done=4)
    mirror.sync()
    assert runs(root)["t"] == "FAILED"
    assert tags(root, "t")["pdarts_tune.status"] == "out_of_memory"
    make_trial(folder, "t", "pdarts", SMALL)
    open_mirror(root).sync()
    assert runs(root)["t"] == "FINISHED"
    assert len(points(root, "t", "epoch/train_loss")) == 6


def test_two_results_folders_can_share_a_store(root, drawn):
    for name in ("a", "b"):
        make_trial(root / name / "study", "t", "random", RANDOM)
        Mirror(root / name / "study", default_tracking_uri(root)).finish(ok=True)
    assert query(root, "select count(*) from runs") == [(4,)]
    Mirror(root / "a" / "study", default_tracking_uri(root)).finish(ok=True)
    assert query(root, "select count(*) from runs") == [(4,)]


def test_runs_are_found_beyond_the_first_page(root, drawn, monkeypatch):
    monkeypatch.setattr(mlflow_mirror, "_RUNS_PER_CALL", 2)
    for number in range(5):
        make_trial(root / "study", f"t{number}", "random", RANDOM, evaluation_seeds=())
    for _ in range(2):
        open_mirror(root).sync()
    assert len(runs(root)) == 6


def test_files_of_a_trial_are_logged_once(root):
    make_study(root, "study", {"pdarts": SMALL, "random": RANDOM}, (0,), epochs=2)
    mirror = open_mirror(root)
    mirror.sync()
    folders = {
        name: root / "study" / "mlflow" / run_id / "artifacts" for name, run_id in query(root, "select name, run_uuid from runs")
    }
    files = sorted(folders["study-pdarts-s0"].iterdir())
    assert [path.name for path in files] == ["alphas.png", "cells.png", "cells.svg", "genotype.txt"]
    assert sorted(path.name for path in folders["study-random-s0"].iterdir()) == ["cells.png", "cells.svg", "genotype.txt"]
    assert files[3].read_text().startswith("Genotype(normal=[('")
    before = [path.stat().st_mtime_ns for path in files]
    (row,) = read_rows(root / "study", "trials", "study-pdarts-s0")
    write_rows(root / "study", "trials", "study-pdarts-s0", [row])
    mirror.sync()
    assert [path.stat().st_mtime_ns for path in files] == before


@pytest.mark.parametrize(
    "uri", ["", "mlruns", "./mlruns", "file:///tmp/mlruns", "sqlite:", "sqlite://", "ftp://host", "databricks"]
)
def test_a_uri_of_a_kind_that_is_not_supported_is_refused(tmp_path, uri):
    with pytest.raises(ConfigError, match=r"tracking_uri: .* must start with one of sqlite://, postgresql://"):
        Mirror(tmp_path / "study", uri)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "uri", ["http://127.0.0.1:9", "sqlite:////dev/null/x.db", "postgresql+nodriver://me:secret@127.0.0.1:9/db"]
)
def test_a_store_that_does_not_answer_is_refused_in_one_line(tmp_path, uri, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr("mlflow.store.db.utils.MAX_RETRY_COUNT", 1)
    with pytest.raises(ConfigError, match="tracking_uri: MLflow at ") as error:
        Mirror(tmp_path / "study", uri)
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)


def test_the_background_mirror_warns_once_and_catches_up(root, drawn, capfd, monkeypatch):
    make_trial(root / "study", "t", "random", RANDOM)
    mirror = open_mirror(root)
    away = [True]
    refused: list[float] = []
    real = mirror._store._client.log_batch

    def log_batch(*arguments, **keywords):
        if away[0]:
            refused.append(time.monotonic())
            raise ConnectionError("refused")
        return real(*arguments, **keywords)

    monkeypatch.setattr(mirror._store._client, "log_batch", log_batch)
    with BackgroundMirror(mirror, interval=0.05) as background:
        background.touch("t")
        deadline = time.monotonic() + 60
        while len(refused) < 3 and time.monotonic() < deadline:  # the second time it must keep quiet
            time.sleep(0.05)
        away[0] = False
        while runs(root).get("t") != "FINISHED" and time.monotonic() < deadline:
            time.sleep(0.05)
    assert runs(root) == {"study": "RUNNING", "t": "FINISHED"}
    warning = capfd.readouterr().err
    assert warning.count("warning: MLflow at sqlite:///") == 1
    assert "ConnectionError: refused; the tables are not affected, it is tried again" in warning


def test_the_end_of_a_study_waits_for_a_server_that_is_away_but_not_for_ever(root, drawn, capfd, monkeypatch):
    make_trial(root / "study", "t", "random", RANDOM)
    mirror = open_mirror(root)
    calls = []
    real = mirror._store._client.log_batch

    def log_batch(*arguments, **keywords):
        calls.append(arguments)
        if len(calls) < 3:
            raise ConnectionError("refused")
        return real(*arguments, **keywords)

    monkeypatch.setattr(mirror._store._client, "log_batch", log_batch)
    mirror.finish_patiently(ok=True, patience=2.0)
    assert runs(root) == {"study": "FINISHED", "t": "FINISHED"}
    assert capfd.readouterr().err.count("ConnectionError: refused; the tables are not affected") == 1
    make_trial(root / "study", "u", "random", RANDOM)
    calls.clear()
    monkeypatch.setattr(mirror._store._client, "log_batch", lambda *_, **__: log_batch() if calls.clear() is None else None)
    with pytest.raises(TrackingError, match="ConnectionError: refused"):
        mirror.finish_patiently(ok=True, patience=0.3)


def test_a_study_that_is_stopped_leaves_no_run_running_and_goes_on_later(root, drawn):
    make_trial(root / "study", "t", "pdarts", SMALL, status="running", epochs_done=1)
    mirror = open_mirror(root)
    mirror.sync()
    assert runs(root) == {"study": "RUNNING", "t": "RUNNING"}
    mirror.stop()
    assert runs(root) == {"study": "KILLED", "t": "KILLED"}
    again = open_mirror(root)
    make_trial(root / "study", "t", "pdarts", SMALL, status="running", epochs_done=2)
    again.sync()
    assert runs(root) == {"study": "RUNNING", "t": "RUNNING"}


def test_a_study_in_which_nothing_has_changed_is_finished_without_reading_its_runs(root, drawn, monkeypatch):
    make_study(root, "study", {"pdarts": SMALL}, (0,), epochs=2)
    open_mirror(root).finish(ok=True)
    again = open_mirror(root)

    def refuse(*arguments):
        raise AssertionError("a trial is looked at")

    monkeypatch.setattr(again, "_known_runs", refuse)
    monkeypatch.setattr(mlflow_mirror, "read_rows", refuse)
    again.finish(ok=True)
    assert runs(root)["study"] == "FINISHED"


def test_mlflow_is_imported_late_and_is_silent(tmp_path):
    code = (
        "import sys; from pathlib import Path; from pdarts_tune.study.mlflow_mirror import Mirror, default_tracking_uri\n"
        "assert 'mlflow' not in sys.modules\n"
        f"root = Path({str(tmp_path)!r}); Mirror(root / 'study', default_tracking_uri(root)).finish(ok=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""
    assert runs(tmp_path) == {"study": "FINISHED"}
    assert Path(default_tracking_uri(tmp_path).removeprefix("sqlite:///")).exists()
