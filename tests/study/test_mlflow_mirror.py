import json
import shlex
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from sqlalchemy import make_url

from pdarts_tune.config.methods import RandomSampling
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.pdarts.progressive_depth import with_depths
from pdarts_tune.results.tables import read_rows, read_table, write_rows
from pdarts_tune.study import mlflow_mirror
from pdarts_tune.study.mlflow_mirror import FIGURES, Mirror, default_tracking_uri, sqlite_uri
from synthetic import START, make_evaluations, make_study, make_trial, shrink

SMALL = shrink(SearchConfig(), 2)
SHALLOW = replace(SMALL, stages=with_depths(SMALL.stages, (5, 5, 5)))
RANDOM = SearchConfig(method=RandomSampling())


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """A new database takes MLflow seven seconds, a copy of one none."""
    root = tmp_path_factory.mktemp("store")
    mlflow_mirror.open_client(default_tracking_uri(root)).search_experiments()
    return root / "mlflow.db"


@pytest.fixture
def root(empty_store, tmp_path):
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return tmp_path


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


def run_ids(root):
    return dict(query(root, "select name, run_uuid from runs where lifecycle_stage = 'active'"))


def points(root, trial_id, key="%"):
    return query(
        root,
        "select key, step, timestamp, value, is_nan from metrics join runs using (run_uuid) "
        f"where name = '{trial_id}' and lifecycle_stage = 'active' and key like '{key}' order by key, step, timestamp, value",
    )


def of_run(root, table, trial_id):
    rows = query(
        root,
        f"select key, {table}.value from {table} join runs using (run_uuid) "
        f"where name = '{trial_id}' and lifecycle_stage = 'active'",
    )
    return dict(rows)


def experiment_tags(root, study="study"):
    sql = f"select key, value from experiment_tags join experiments using (experiment_id) where name = '{study}'"
    return dict(query(root, sql))


def test_an_experiment_has_a_run_at_its_top_for_each_trial(root):
    variants = {"pdarts": SMALL, "shallow": SHALLOW, "random": RANDOM}
    make_study(root, "study", variants, (0, 1), epochs=2, failed=["study-pdarts-s1"])
    open_mirror(root).update()
    names = [f"study-{variant}-s{seed}" for variant in variants for seed in (0, 1)]
    assert runs(root) == dict.fromkeys(names, "FINISHED") | {"study-pdarts-s1": "FAILED"}
    assert query(root, "select * from tags where key = 'mlflow.parentRunId'") == []
    assert of_run(root, "tags", "study-pdarts-s1")["pdarts_tune.error"].startswith("FloatingPointError")
    assert of_run(root, "params", "study-pdarts-s1").items() >= {"variant": "pdarts", "seed": "1", "depths": "5-11-17"}.items()
    shallow = of_run(root, "params", "study-shallow-s0")
    assert shallow.items() >= {"variant": "shallow", "seed": "0", "method": "first_order", "depths": "5-5-5"}.items()
    assert [row[0] for row in points(root, "study-random-s0", "epoch/%")] == []


def test_epochs_and_final_figures_are_those_of_the_tables(root):
    folder = make_study(root, "study", {"pdarts": SMALL}, (0,), epochs=2)
    open_mirror(root).update()
    epochs = read_table(folder, "epochs").sort_values(["stage", "epoch"])
    for column in ("train_loss", "validation_accuracy", "normal_skip_count", "stage"):
        logged = points(root, "study-pdarts-s0", f"epoch/{column}")
        assert [(step, value) for _, step, _, value, _ in logged] == list(enumerate(epochs[column]))
        assert [stamp for _, _, stamp, _, _ in logged] == [round(time.timestamp() * 1000) for time in epochs["finished"]]
    assert points(root, "study-pdarts-s0", "epoch/hessian_eigenvalue") == []
    assert points(root, "study-pdarts-s0", "epoch/normal_max_pool_3x3_count") == []
    (trial,) = read_table(folder, "trials").to_dict("records")
    genotypes = read_table(folder, "genotypes")
    final = genotypes[(genotypes["stage"] == 3) & (genotypes["max_skips"] == 2)].iloc[0]
    search = epochs["validation_accuracy"].iloc[-1]
    accuracy = read_table(folder, "evaluations")["accuracy"].mean()
    expected = {
        "search_accuracy": search,
        "error_percent": 100 * (1 - accuracy),
        "depth_gap": search - accuracy,
        **{name: final[name] for name in ("inherited_accuracy", "skips", "depth", "params")},
        **{name: trial[name] for name in ("seconds", "peak_bytes")},
    }
    latest = of_run(root, "latest_metrics", "study-pdarts-s0")
    assert {key: value for key, value in latest.items() if not key.startswith("epoch/")} == pytest.approx(expected)
    assert set(FIGURES) == set(expected)


def test_the_experiment_shows_the_answer_and_its_figures_unasked(root):
    folder = make_study(root, "study", {"pdarts": SMALL, "shallow": SHALLOW}, (0,), epochs=2)
    mirror = open_mirror(root)
    mirror.update()
    (folder / "report").mkdir()
    (folder / "report" / "rq1.md").write_text("# RQ1\n\n| a |\n|---|\n| 1 |\n\n![cells](rq1_cells.png)\n")
    mirror.update()
    tags = experiment_tags(root)
    assert tags["mlflow.note.content"] == "# RQ1\n\n| a |\n|---|\n| 1 |\n\n"
    columns = json.loads(tags["mlflow.sharedViewState.table"])["selectedColumns"]
    assert columns == [*(f"metrics.`{name}`" for name in FIGURES), "params.`depths`"]
    charts = json.loads(tags["mlflow.sharedViewState.charts"])
    assert charts["groupBy"] == "param.average.variant"
    assert [chart["metricKey"] for chart in charts["compareRunCharts"]] == list(FIGURES)
    command, table, _ = mirror.links()
    assert command == f"mlflow ui --backend-store-uri sqlite:///{root}/mlflow.db"
    assert table.startswith("http://127.0.0.1:5000/#/experiments/1/runs?")
    assert "viewStateShareKey=table" in table
    (folder / "report" / "rq1.md").write_text("line\n" * 10_000)
    mirror.update()
    text = experiment_tags(root)["mlflow.note.content"]
    assert 19_900 < len(text) <= 20_000
    assert text.endswith(f"line\n\n... the rest is in {folder}/report")


def test_every_setting_is_a_parameter_and_those_that_differ_are_columns(root):
    make_trial(root / "study", "t", "pdarts", replace(SMALL, learning_rate=0.05))
    make_trial(root / "study", "u", "random", replace(RANDOM, learning_rate=0.05))
    open_mirror(root).update()
    params = of_run(root, "params", "t")
    assert params.items() >= {"variant": "pdarts", "seed": "0", "method": "first_order", "learning_rate": "0.05"}.items()
    assert {params["depths"], of_run(root, "params", "u")["learning_rate"]} == {"5-11-17", "0.05"}
    columns = json.loads(experiment_tags(root)["mlflow.sharedViewState.table"])["selectedColumns"]
    assert "params.`learning_rate`" not in columns
    before = run_ids(root)
    make_trial(root / "study", "v", "shallow", replace(SHALLOW, learning_rate=0.1))
    open_mirror(root).update()
    assert run_ids(root)["t"] == before["t"]
    columns = json.loads(experiment_tags(root)["mlflow.sharedViewState.table"])["selectedColumns"]
    assert {"params.`learning_rate`", "params.`depths`"} <= {*columns}


def test_updating_again_changes_nothing_and_reads_nothing(root, monkeypatch):
    make_study(root, "study", {"pdarts": SMALL, "random": RANDOM}, (0,), epochs=2)
    open_mirror(root).update()
    before = query(root, "select * from runs"), points(root, "%")
    query_all = "delete from experiment_tags where key = 'pdarts_tune.state'"
    with closing(sqlite3.connect(root / "mlflow.db")) as connection, connection:
        connection.execute(query_all)  # the experiment's, so that each run is looked at

    def refuse(*arguments):
        raise AssertionError("a table is read")

    monkeypatch.setattr(mlflow_mirror, "read_rows", refuse)
    open_mirror(root).update()
    monkeypatch.setattr(Mirror, "_find_runs", refuse)
    open_mirror(root).update()
    assert (query(root, "select * from runs"), points(root, "%")) == before


def test_only_a_run_whose_tables_have_changed_is_replaced(root):
    folder = make_study(root, "study", {"pdarts": SMALL}, (0, 1), epochs=2)
    mirror = open_mirror(root)
    mirror.update()
    before = run_ids(root)
    rows = read_rows(folder, "epochs", "study-pdarts-s0")
    write_rows(folder, "epochs", "study-pdarts-s0", [*rows[:-1], rows[-1] | {"train_loss": 9.0}])
    mirror.update()
    after = run_ids(root)
    assert [name for name in before if after[name] != before[name]] == ["study-pdarts-s0"]
    losses = points(root, "study-pdarts-s0", "epoch/train_loss")
    assert [row[1] for row in losses] == [0, 1, 2, 3, 4, 5]
    assert losses[-1][3] == 9.0


def test_a_growing_trial_keeps_its_run_and_ends_whole(root, empty_store):
    mirror = open_mirror(root)
    logged = []
    for done in (0, 1, 2, 3, 4, 5):
        make_trial(root / "study", "t", "pdarts", SMALL, status="running", epochs_done=done)
        mirror.update(live=True)
        assert runs(root) == {"t": "RUNNING"}
        logged.append(len(points(root, "t", "epoch/train_loss")))
    assert logged == [0, 1, 2, 3, 4, 5]
    make_trial(root / "study", "t", "pdarts", SMALL)
    mirror.update(live=True)
    assert runs(root) == {"t": "FINISHED"}
    assert query(root, "select count(*) from runs") == [(1,)]
    other = root / "at_once"
    make_trial(other / "study", "t", "pdarts", SMALL)
    shutil.copy(empty_store, other / "mlflow.db")
    open_mirror(other).update()
    assert points(root, "t") == points(other, "t")


def test_runs_that_are_replaced_leave_nothing_in_a_database(root):
    folder = make_study(root, "study", {"pdarts": SMALL}, (0, 1, 2), epochs=2)
    for loss in (7.0, 8.0, 9.0):
        for seed in (0, 1, 2):
            rows = read_rows(folder, "epochs", f"study-pdarts-s{seed}")
            write_rows(folder, "epochs", f"study-pdarts-s{seed}", [rows[0] | {"train_loss": loss}, *rows[1:]])
        open_mirror(root).update()
        assert points(root, "study-pdarts-s0", "epoch/train_loss")[0][3] == loss
    assert query(root, "select count(*), count(distinct name) from runs") == [(3, 3)]
    assert query(root, "select count(distinct run_uuid) from metrics") == [(3,)]


class LostError(Exception):
    pass


class DyingClient:
    """A client whose process dies before or after one of its calls."""

    def __init__(self, client, calls, after):
        self.client, self.calls, self.after = client, calls, after

    def __getattr__(self, name):
        def call(*arguments, **keywords):
            self.calls -= 1
            if self.calls == 0 and not self.after:
                raise LostError
            result = getattr(self.client, name)(*arguments, **keywords)
            if self.calls == 0:
                raise LostError
            return result

        return getattr(self.client, name) if name == "_tracking_client" else call


@pytest.mark.parametrize("after", [False, True], ids=["before the call", "after the call"])
def test_whichever_call_the_driver_dies_at_nothing_is_lost_or_doubled(root, after):
    make_trial(root / "study", "t", "pdarts", SMALL)
    open_mirror(root).update()
    expected = points(root, "t")
    for fatal in range(1, 100):
        make_trial(root / "study", "t", "pdarts", SMALL, status="running", epochs_done=3, evaluation_seeds=())
        mirror = open_mirror(root)
        dying = mirror._client = DyingClient(mirror._client, fatal, after)
        try:
            mirror.update(live=True)
            make_trial(root / "study", "t", "pdarts", SMALL)
            mirror.update()
        except LostError:
            make_trial(root / "study", "t", "pdarts", SMALL)
            open_mirror(root).update()
        assert runs(root) == {"t": "FINISHED"}, f"call {fatal}"
        assert points(root, "t") == expected, f"call {fatal}"
        if dying.calls > 0:
            break
    assert 15 < fatal < 40


def test_a_run_whose_update_was_cut_short_is_made_anew(root, monkeypatch):
    """Its points may be of rows that a trial has written again since, from its checkpoint."""
    monkeypatch.setattr(mlflow_mirror, "_BATCH", 5)
    make_trial(root / "study", "t", "pdarts", SMALL, status="running", epochs_done=2)
    mirror = open_mirror(root)
    mirror.update(live=True)
    make_trial(root / "study", "t", "pdarts", SMALL, status="running", epochs_done=3)
    mirror._client = DyingClient(mirror._client, 4, True)  # the first batch is in, the tag is not
    with pytest.raises(LostError):
        mirror.update(live=True)
    rows = read_rows(root / "study", "epochs", "t")
    write_rows(root / "study", "epochs", "t", [*rows[:-1], rows[-1] | {"train_loss": 9.0, "finished": START}])
    open_mirror(root).update(live=True)
    assert [row[1] for row in points(root, "t", "epoch/train_loss")] == [0, 1, 2]


def test_losses_that_are_not_numbers_are_mirrored_once(root):
    folder = root / "study"
    make_trial(folder, "t", "pdarts", SMALL, status="failed")
    write_rows(folder, "epochs", "t", [row | {"train_loss": float("nan")} for row in read_rows(folder, "epochs", "t")])
    for _ in range(2):
        open_mirror(root).update()
    assert [row[4] for row in points(root, "t", "epoch/train_loss")] == [1, 1]


def test_evaluations_that_come_later_are_in_the_trials_figures(root):
    folder = root / "study"
    make_trial(folder, "t", "pdarts", SMALL, evaluation_seeds=())
    mirror = open_mirror(root)
    mirror.update()
    assert "error_percent" not in of_run(root, "latest_metrics", "t")
    row = next(row for row in read_rows(folder, "genotypes", "t") if row["stage"] == 3 and row["max_skips"] == 2)
    (trial,) = read_rows(folder, "trials", "t")
    for seed in (0, 1, 2):
        make_evaluations(folder, row, "cifar10", trial["finished"], seeds=(seed,))
        mirror.update()
        mean = read_table(folder, "evaluations")["accuracy"].mean()
        assert of_run(root, "latest_metrics", "t")["error_percent"] == pytest.approx(100 * (1 - mean))
    make_evaluations(folder, row, "cifar100", trial["finished"], seeds=(7,))
    mirror.update()
    figures = of_run(root, "latest_metrics", "t")
    assert figures["error_percent"] == pytest.approx(100 * (1 - mean))
    assert sum(key.startswith("error_percent/cifar100/cifar-") for key in figures) == 1
    assert query(root, "select count(*) from runs") == [(1,)]
    for path in (folder / "evaluations").iterdir():  # a figure of before has no later moment
        if path.stem.endswith("seed2"):
            path.unlink()
    mirror.update()
    mean = read_table(folder, "evaluations").query("data == 'cifar10'")["accuracy"].mean()
    assert of_run(root, "latest_metrics", "t")["error_percent"] == pytest.approx(100 * (1 - mean))
    assert query(root, "select count(*) from runs") == [(1,)]


def test_a_study_that_is_stopped_leaves_no_run_running_and_goes_on_later(root):
    make_trial(root / "study", "t", "pdarts", SMALL, status="running", epochs_done=1)
    mirror = open_mirror(root)
    mirror.update(live=True)
    assert runs(root) == {"t": "RUNNING"}
    mirror.update()
    assert runs(root) == {"t": "KILLED"}
    again = open_mirror(root)
    again.update(live=True)
    assert runs(root) == {"t": "RUNNING"}
    make_trial(root / "study", "t", "pdarts", SMALL, status="out_of_memory", epochs_done=4)
    again.update()
    assert runs(root) == {"t": "FAILED"}
    assert of_run(root, "tags", "t")["pdarts_tune.status"] == "out_of_memory"


def test_folders_with_a_study_of_one_name_have_an_experiment_each_in_a_store(root):
    for _ in range(2):
        for name in ("a", "b"):
            make_trial(root / name / "study", "t", "random", RANDOM)
            Mirror(root / name / "study", default_tracking_uri(root)).update()
        assert query(root, "select count(*) from runs where lifecycle_stage = 'active'") == [(2,)]
        assert query(root, "select count(distinct experiment_id) from runs") == [(2,)]


def test_runs_are_found_beyond_the_first_page(root, monkeypatch):
    monkeypatch.setattr(mlflow_mirror, "_PAGE", 2)
    for number in range(5):
        make_trial(root / "study", f"t{number}", "random", RANDOM, evaluation_seeds=())
    open_mirror(root).update()
    before = run_ids(root)
    make_trial(root / "study", "t5", "random", RANDOM, evaluation_seeds=())
    open_mirror(root).update()
    assert run_ids(root).items() >= before.items()
    assert len(runs(root)) == 6


def test_a_folder_that_is_moved_or_copied_keeps_its_runs(root, empty_store):
    inside, elsewhere = root / "results", default_tracking_uri(root)
    make_study(inside, "study", {"pdarts": SMALL}, (0,), epochs=2)
    shutil.copy(empty_store, inside / "mlflow.db")
    open_mirror(inside).update()
    Mirror(inside / "study", elsewhere).update()
    before = run_ids(inside), run_ids(root)
    shutil.copytree(inside, root / "copy")
    inside.rename(root / "moved")
    for name in ("moved", "copy"):
        open_mirror(root / name).update()
        Mirror(root / name / "study", elsewhere).update()
        assert (run_ids(root / name), run_ids(root)) == before
        assert query(root / name, "select artifact_uri from runs where artifact_uri not like 'mlflow-artifacts:/study/%'") == []
    assert of_run(root / "moved", "tags", "study-pdarts-s0")["mlflow.note.content"].startswith("`Genotype(normal=[('")
    assert not inside.exists()


def test_an_experiment_of_somebody_else_keeps_its_name_and_runs(root):
    client = mlflow_mirror.open_client(default_tracking_uri(root))
    client.create_run(client.create_experiment("study"), 1, {}, "mine")
    make_trial(root / "study", "t", "random", RANDOM)
    open_mirror(root).update()
    assert runs(root) == {"mine": "RUNNING", "t": "FINISHED"}
    assert query(root, "select count(distinct experiment_id) from runs") == [(2,)]


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
    with pytest.raises(ConfigError, match="tracking_uri: ") as error:
        Mirror(tmp_path / "study", uri)
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)


def away_for(mirror, monkeypatch, calls, reason="refused"):
    """Makes MLflow refuse that many batches; returns those that it has refused."""
    refused: list[float] = []
    real = mirror._client.log_batch

    def log_batch(*arguments, **keywords):
        if len(refused) < calls:
            refused.append(time.monotonic())
            raise ConnectionError(reason)
        return real(*arguments, **keywords)

    monkeypatch.setattr(mirror._client, "log_batch", log_batch)
    return refused


def test_updates_during_a_study_warn_once_of_an_outage_and_catch_up(root, capfd, monkeypatch):
    make_trial(root / "study", "t", "random", RANDOM)
    mirror = open_mirror(root)
    refused = away_for(mirror, monkeypatch, 3)
    with mirror.updating(interval=0.05):
        deadline = time.monotonic() + 60
        while "pdarts_tune.status" not in of_run(root, "tags", "t") and time.monotonic() < deadline:
            time.sleep(0.05)
    assert len(refused) == 3
    assert runs(root) == {"t": "FINISHED"}
    warning = capfd.readouterr().err
    assert warning.count("warning: MLflow at sqlite:///") == 1
    assert "ConnectionError: refused; the tables are not affected, it is tried again" in warning
    assert not [thread for thread in threading.enumerate() if thread.name == "mlflow mirror"]


def test_a_context_that_ends_leaves_the_rest_of_an_update_to_the_next(root):
    make_study(root, "study", {"pdarts": SMALL}, (0, 1), epochs=2)
    mirror, ended = open_mirror(root), threading.Event()
    ended.set()
    mirror.update(live=True, ended=ended)
    assert runs(root) == {}
    mirror.update()
    assert len(runs(root)) == 2


def test_the_end_of_a_study_waits_for_a_server_that_is_away_but_not_for_ever(root, capfd, monkeypatch):
    make_trial(root / "study", "t", "random", RANDOM)
    mirror = open_mirror(root)
    away_for(mirror, monkeypatch, 2, "database is locked")
    mirror.finish(patience=2.0)
    assert runs(root) == {"t": "FINISHED"}
    assert capfd.readouterr().err.count("database is locked; the tables are not affected") == 1
    make_trial(root / "study", "u", "random", RANDOM)
    refused = away_for(mirror, monkeypatch, 1000, "database is locked")
    mirror.finish(patience=1.5)
    assert len(refused) > 2
    assert "database is locked; the tables are complete" in capfd.readouterr().err


def test_what_will_fail_again_is_not_tried_again(root, capfd, monkeypatch):
    make_trial(root / "study", "t", "random", RANDOM)
    mirror = open_mirror(root)
    refused = away_for(mirror, monkeypatch, 1000, "attempt to write a readonly database")
    begun = time.monotonic()
    mirror.finish()
    assert len(refused) == 1
    assert time.monotonic() - begun < 10
    assert "readonly database; the tables are complete" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["what?now", "50%41 #1; {a}&'b' ü"])
def test_a_store_is_in_the_results_folder_whatever_the_folder_is_called(tmp_path, empty_store, name):
    root = tmp_path / name
    make_trial(root / "study", "t", "random", RANDOM)
    shutil.copy(empty_store, root / "mlflow.db")
    mirror = open_mirror(root)
    mirror.update()
    assert runs(root) == {"t": "FINISHED"}
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert make_url(shlex.split(mirror.links()[0])[3]).database == str(root / "mlflow.db")
    study = optuna.create_study(storage=optuna.storages.RDBStorage(sqlite_uri(root / "optuna.db")))
    assert study.trials == []
    assert {path.name for path in tmp_path.rglob("*.db")} == {"mlflow.db", "optuna.db"}
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("content", [b"no database at all, but long enough to be one" * 40, b"no"])
def test_a_store_that_is_damaged_may_be_deleted(tmp_path, content):
    make_trial(tmp_path / "study", "t", "random", RANDOM)
    (tmp_path / "mlflow.db").write_bytes(content)
    begun = time.monotonic()
    with pytest.raises(ConfigError, match=r"file is not a database; .*/mlflow.db is a mirror of the tables: delete it") as error:
        open_mirror(tmp_path)
    assert "\n" not in str(error.value)
    assert time.monotonic() - begun < 10
    with pytest.raises(ConfigError, match=r"file is not a database$"):  # it may hold what is not ours
        Mirror(tmp_path / "elsewhere" / "study", default_tracking_uri(tmp_path))


def test_drivers_that_start_at_once_in_a_new_folder_share_its_store(tmp_path):
    code = (
        "import sys; from pathlib import Path; from pdarts_tune.study.mlflow_mirror import Mirror, default_tracking_uri\n"
        "assert 'mlflow' not in sys.modules\n"
        "root = Path(sys.argv[1]); Mirror(root / sys.argv[2], default_tracking_uri(root)).update()\n"
    )
    drivers = [
        subprocess.Popen([sys.executable, "-c", code, tmp_path, name], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for name in ("a", "b")
    ]
    assert [(driver.communicate()[0], driver.returncode) for driver in drivers] == [("", 0)] * 2
    assert {name for (name,) in query(tmp_path, "select name from experiments")} == {"Default", "a", "b"}
    assert Path(default_tracking_uri(tmp_path).removeprefix("sqlite:///")).exists()
