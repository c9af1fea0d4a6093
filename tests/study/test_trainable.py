import random
import warnings
from dataclasses import asdict, replace
from types import SimpleNamespace

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from images import write_folders
from pdarts_tune.config.evaluation import EvalConfig
from pdarts_tune.config.methods import Given, RandomSampling
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.config.serialize import config_id, to_dict
from pdarts_tune.data import streaming
from pdarts_tune.data.datasets import load_dataset
from pdarts_tune.data.normalisation import IMAGENET_MOMENTS, sample_moments
from pdarts_tune.evaluation import job as evaluation_job
from pdarts_tune.evaluation.job import failure_status
from pdarts_tune.networks.checkpoint import load_checkpoint, save_checkpoint
from pdarts_tune.networks.cost import predict_stage_bytes
from pdarts_tune.pdarts.genotype import Genotype, random_genotype
from pdarts_tune.pdarts.progressive_depth import Stage
from pdarts_tune.pdarts.published import PUBLISHED
from pdarts_tune.results.storage import Storage
from pdarts_tune.results.tables import read_rows, read_table
from pdarts_tune.search import steps as search_steps
from pdarts_tune.search.loop import Search, StageMemoryError
from pdarts_tune.search.steps import Alternating
from pdarts_tune.study import trainable
from pdarts_tune.study.sweep import DIED, record_failure
from pdarts_tune.study.trainable import TrialSpec, prepare, run_trial

SEARCH = SearchConfig(
    stages=(Stage(3, 8, epochs=2, warmup_epochs=1), Stage(3, 3, 0.5, epochs=1, warmup_epochs=0)),
    data="digits",
    train_images=60,
    validation_fraction=0.2,
    channels=2,
    batch_size=24,
)
EVALUATION = EvalConfig(
    recipe="tiny",
    data="digits",
    train_images=60,
    test_images=30,
    validation_fraction=0.2,
    cells=3,
    channels=4,
    epochs=3,
    batch_size=32,
    cutout=2,
)
CLOCK = ["seconds", "diagnostic_seconds", "images_per_second", "started", "finished", "attempts"]
CLOCK += ["peak_bytes", "diagnostic_peak_bytes"]


class Killed(BaseException):
    """Ends a trial as SIGKILL would: no handler of the trial's own runs."""


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def reports(monkeypatch):
    """What the trial tells Tune, epoch by epoch."""
    told = []
    monkeypatch.setattr(trainable.tune, "report", told.append)
    return told


def search_settings(folder, config=SEARCH, trial_id="progressive-seed0"):
    return {"trial": asdict(TrialSpec(trial_id, str(folder), "", to_dict(config), variant="progressive", threads=1, commit="abc"))}


def evaluation_settings(folder, config=EVALUATION):
    genotype = str(PUBLISHED["PDARTS_C10"].genotype)
    spec = TrialSpec("genotype-seed0", str(folder), genotype, to_dict(config), variant="", threads=1, commit="abc")
    return {"trial": asdict(spec)}


def kill_after(monkeypatch, epochs):
    """Lets the next trial die right after it has told Tune of so many epochs."""
    told = []

    def report(metrics):
        told.append(metrics)
        if len(told) == epochs:
            raise Killed

    monkeypatch.setattr(trainable.tune, "report", report)


def test_a_search_leaves_its_rows_in_four_tables(tmp_path, reports):
    run_trial(search_settings(tmp_path))
    trials, epochs, alphas, genotypes = (read_table(tmp_path, t) for t in ("trials", "epochs", "alphas", "genotypes"))
    (trial,) = trials.to_dict("records")
    assert (trial["status"], trial["attempts"], trial["config_id"]) == ("completed", 1, config_id(SEARCH))
    assert (trial["depths"], trial["operations"], trial["skip_dropout"]) == ("3-3", "8-3", "0.0-0.5")
    assert list(zip(epochs.stage, epochs.epoch, epochs.phase, strict=True)) == [
        (1, 0, "weights"),
        (1, 1, "both"),
        (2, 0, "both"),
    ]
    assert trial["seconds"] == pytest.approx(epochs.seconds.sum())
    assert 0 < trial["diagnostic_seconds"] == pytest.approx(epochs.diagnostic_seconds.sum())
    assert len(alphas) == 2 * 2 * 14 * 8 + 2 * 14 * 3
    sums = alphas.groupby(["stage", "epoch", "cell", "edge"]).probability.sum()
    assert sums.to_numpy() == pytest.approx(1.0, abs=1e-12)
    assert list(genotypes.max_skips) == [8, 7, 6, 5, 4, 3, 2, 1, 0] * 2
    assert (genotypes.skips <= genotypes.max_skips).all()
    assert genotypes.inherited_accuracy.notna().to_list() == [m == SEARCH.max_skips for m in genotypes.max_skips]
    for row in genotypes.itertuples():
        assert Genotype.parse(row.genotype).genotype_id == row.genotype_id
    assert [r["position"] for r in reports] == ["stage 1/2, epoch 1/2", "stage 1/2, epoch 2/2", "stage 2/2, epoch 1/1"]
    assert [r["done_epochs"] for r in reports] == [1, 2, 3]
    assert [r["accuracy"] for r in reports] == [("validation", accuracy) for accuracy in epochs.validation_accuracy]


def test_the_skip_columns_follow_from_the_alphas(tmp_path, reports):
    run_trial(search_settings(tmp_path))
    epochs, alphas = read_table(tmp_path, "epochs"), read_table(tmp_path, "alphas")
    skips = alphas[(alphas.operation == "skip_connect") & (alphas.cell == "normal")]
    mass = skips.groupby(["stage", "epoch"]).probability.sum() / 14
    for row in epochs.itertuples():
        assert row.normal_skip_mass == pytest.approx(mass.get((row.stage, row.epoch), 0.0))
    first = epochs.iloc[0]
    assert first.alpha_entropy == pytest.approx(2.0794, abs=1e-3)  # ln 8: alphas are next to zero


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_a_killed_search_continues_with_no_row_lost_doubled_or_changed(tmp_path, reports, monkeypatch, epochs):
    run_trial(search_settings(tmp_path / "whole"))
    kill_after(monkeypatch, epochs)
    with pytest.raises(Killed):
        run_trial(search_settings(tmp_path / "killed"))
    assert read_rows(tmp_path / "killed", "trials", "progressive-seed0")[0]["status"] == "running"
    monkeypatch.setattr(trainable.tune, "report", reports.append)
    run_trial(search_settings(tmp_path / "killed"))
    for table in ("epochs", "alphas", "genotypes", "trials"):
        sides = [read_table(tmp_path / side, table) for side in ("whole", "killed")]
        whole, killed = (rows.drop(columns=[*CLOCK, "study"], errors="ignore") for rows in sides)  # a study is named by its folder
        pd.testing.assert_frame_equal(whole, killed)
    (trial,) = read_rows(tmp_path / "killed", "trials", "progressive-seed0")
    assert trial["attempts"] == 2
    assert not list((tmp_path / "killed" / "checkpoints").iterdir()), "a finished trial needs no checkpoint"


def test_a_cell_that_collapses_to_skip_connects_is_warned_of_once_a_stage_and_the_search_goes_on(tmp_path, reports, monkeypatch):
    """Alphas are pushed there in place of training. Frozen ones say nothing of a search, so the first epoch is not warned of."""

    def push(search, both):
        with torch.no_grad():
            for row, names in zip(search.network.alphas_normal, search.network.space.normal, strict=True):
                row[names.index("skip_connect")] = 5.0
        return 1.0, 0.5, 24

    monkeypatch.setattr(Search, "_train", push)
    stages = (Stage(3, 8, epochs=3, warmup_epochs=1), Stage(3, 3, epochs=1, warmup_epochs=0))
    run_trial(search_settings(tmp_path, replace(SEARCH, stages=stages)))
    collapsed = "8 of the normal cell's 8 operations are skip-connects now; the search goes on"
    assert [report["warning"] for report in reports] == [
        "",
        f"stage 1, epoch 2: {collapsed}",
        "",
        f"stage 2, epoch 1: {collapsed}",
    ]
    assert ["collapsed" in report["position"] for report in reports] == [False, True, True, True]
    assert read_table(tmp_path, "trials").status.item() == "completed"


def test_the_random_variant_draws_a_genotype_within_the_skip_limit_and_searches_nothing(tmp_path, reports):
    config = replace(SEARCH, method=RandomSampling(), max_skips=1)
    for seed in range(3):
        run_trial(search_settings(tmp_path, replace(config, seed=seed), f"random-seed{seed}"))
    genotypes = read_table(tmp_path, "genotypes")
    assert genotypes.genotype_id.nunique() == 3
    assert (genotypes.stage == 0).all()
    assert (genotypes.skips <= 1).all()
    assert not (tmp_path / "epochs").exists()


def test_a_random_control_has_as_many_skip_connects_as_the_search_of_its_seed(tmp_path, reports):
    controls = {}
    for seed, skips in enumerate((0, 2, 1)):
        control = replace(SEARCH, seed=seed, method=RandomSampling(skips_of="pair"))
        settings = search_settings(tmp_path, control, f"control-seed{seed}")
        with pytest.raises(RuntimeError, match=f"search pair-seed{seed} is not there, so its skip-connects are not known"):
            run_trial(settings)
        assert read_rows(tmp_path, "trials", f"control-seed{seed}")[0]["status"] == "failed"
        given = next(cell for cell in map(drawn_genotype, range(100)) if cell.normal.skips == skips)
        run_trial(search_settings(tmp_path, replace(SEARCH, seed=seed, method=Given(str(given), "here")), f"pair-seed{seed}"))
        run_trial(settings)
        (row,) = read_rows(tmp_path, "trials", f"control-seed{seed}")
        assert (row["status"], row["attempts"]) == ("completed", 2)
        (controls[seed],) = read_rows(tmp_path, "genotypes", f"control-seed{seed}")
        assert controls[seed]["genotype_id"] != given.genotype_id
    assert [controls[seed]["skips"] for seed in controls] == [0, 2, 1]


def drawn_genotype(seed):
    return random_genotype(random.Random(seed), 2)


def test_an_evaluation_leaves_one_row_with_the_test_result(tmp_path, reports):
    run_trial(evaluation_settings(tmp_path))
    (row,) = read_rows(tmp_path, "evaluations", "genotype-seed0")
    assert (row["status"], row["failure"], row["epochs"]) == ("completed", None, 3)
    assert row["genotype_id"] == PUBLISHED["PDARTS_C10"].genotype.genotype_id
    assert row["recipe_id"] == EVALUATION.recipe_id
    assert len(row["correct"]) == 30
    assert row["accuracy"] == sum(row["correct"]) / 30
    assert row["error_percent"] == pytest.approx(100 * (1 - row["accuracy"]))
    assert len(row["train_accuracies"]) == len(row["validation_accuracies"]) == 3
    assert row["best_validation_accuracy"] == max(row["validation_accuracies"])
    assert row["last_validation_accuracy"] == row["validation_accuracies"][-1]
    assert [r["accuracy"] for r in reports] == [("validation", accuracy) for accuracy in row["validation_accuracies"]]


def test_a_training_without_validation_images_shows_its_training_accuracy_as_such(tmp_path, reports):
    run_trial(evaluation_settings(tmp_path, replace(EVALUATION, validation_fraction=0.0, epochs=1)))
    (row,) = read_rows(tmp_path, "evaluations", "genotype-seed0")
    assert [r["accuracy"] for r in reports] == [("training", accuracy) for accuracy in row["train_accuracies"]]


def test_a_killed_evaluation_continues_to_the_same_result(tmp_path, reports, monkeypatch):
    run_trial(evaluation_settings(tmp_path / "whole"))
    kill_after(monkeypatch, 2)
    with pytest.raises(Killed):
        run_trial(evaluation_settings(tmp_path / "killed"))
    monkeypatch.setattr(trainable.tune, "report", reports.append)
    run_trial(evaluation_settings(tmp_path / "killed"))
    (whole,), (killed,) = (read_rows(tmp_path / side, "evaluations", "genotype-seed0") for side in ("whole", "killed"))
    assert killed["attempts"] == 2
    assert {k: v for k, v in whole.items() if k not in CLOCK} == {k: v for k, v in killed.items() if k not in CLOCK}


def test_without_validation_images_those_columns_are_empty(tmp_path, reports):
    run_trial(evaluation_settings(tmp_path, replace(EVALUATION, validation_fraction=0.0, epochs=1)))
    (row,) = read_rows(tmp_path, "evaluations", "genotype-seed0")
    assert row["validation_accuracies"] is None
    assert row["best_epoch"] is None
    assert row["accuracy"] is not None


def test_a_failed_search_writes_its_reason_and_raises(tmp_path, reports):
    settings = search_settings(tmp_path, replace(SEARCH, learning_rate=1e30))
    with pytest.raises(FloatingPointError) as raised:
        run_trial(settings)
    (row,) = read_rows(tmp_path, "trials", "progressive-seed0")
    assert row["status"] == "failed"
    assert row["error"].startswith("FloatingPointError: stage 1, epoch")
    assert record_failure(settings, raised.value) == row["error"]
    assert read_rows(tmp_path, "trials", "progressive-seed0") == [row]


def test_a_failed_evaluation_writes_its_reason_and_raises(tmp_path, reports):
    settings = evaluation_settings(tmp_path, replace(EVALUATION, learning_rate=1e30))
    with pytest.raises(FloatingPointError) as raised:
        run_trial(settings)
    (row,) = read_rows(tmp_path, "evaluations", "genotype-seed0")
    assert (row["status"], row["accuracy"], row["correct"]) == ("failed", None, None)
    assert row["failure"].startswith("FloatingPointError: ")
    assert record_failure(settings, raised.value) == row["failure"]
    assert read_rows(tmp_path, "evaluations", "genotype-seed0") == [row]


def test_a_trial_whose_process_died_is_recorded_by_the_driver(tmp_path, reports, monkeypatch):
    kill_after(monkeypatch, 1)
    for settings, table, column in (
        (search_settings(tmp_path), "trials", "error"),
        (evaluation_settings(tmp_path), "evaluations", "failure"),
    ):
        kill_after(monkeypatch, 1)
        with pytest.raises(Killed):
            run_trial(settings)
        assert record_failure(settings, None) == DIED
        (row,) = read_rows(tmp_path, table, settings["trial"]["trial_id"])
        assert (row["status"], row[column], row["attempts"]) == ("failed", DIED, 1)


def both_kinds(folder):
    return (search_settings(folder), "trials", "error"), (evaluation_settings(folder), "evaluations", "failure")


def test_a_trial_whose_process_died_before_its_first_row_has_one_and_attempts_count_on(tmp_path, reports):
    for settings, table, column in both_kinds(tmp_path):
        for attempt in (1, 2):
            assert record_failure(settings, None) == DIED
            (row,) = read_rows(tmp_path, table, settings["trial"]["trial_id"])
            assert (row["status"], row[column], row["attempts"]) == ("failed", DIED, attempt)
        broken = {"trial": settings["trial"] | {"config": settings["trial"]["config"] | {"learning_rate": 1e30}}}
        with pytest.raises(FloatingPointError):
            run_trial(broken)
        assert record_failure(settings, None) == DIED  # of an attempt after that one: its reason is not the earlier one's
        (row,) = read_rows(tmp_path, table, settings["trial"]["trial_id"])
        assert (row[column], row["attempts"]) == (DIED, 4)
        run_trial(settings)
        (row,) = read_rows(tmp_path, table, settings["trial"]["trial_id"])
        assert (row["status"], row[column], row["attempts"]) == ("completed", None, 5)


def test_a_trial_that_is_killed_as_it_starts_has_a_row(tmp_path, reports, monkeypatch):
    """Its driver too may be gone by then."""

    def die(*_):
        raise Killed

    monkeypatch.setattr(trainable, "Search", die)
    monkeypatch.setattr(evaluation_job, "Evaluation", die)
    for settings, table, _ in both_kinds(tmp_path):
        with pytest.raises(Killed):
            run_trial(settings)
        (row,) = read_rows(tmp_path, table, settings["trial"]["trial_id"])
        assert (row["status"], row["attempts"], row["finished"]) == ("running", 1, None)


def test_an_error_before_a_search_begins_is_in_its_row(tmp_path, monkeypatch):
    def fail(_):
        raise RuntimeError("CUDA error: device is busy")

    monkeypatch.setattr(trainable, "prepare", fail)
    with pytest.raises(RuntimeError):
        run_trial(search_settings(tmp_path))
    (row,) = read_rows(tmp_path, "trials", "progressive-seed0")
    assert row["error"].startswith("RuntimeError: CUDA error: device is busy")


def test_a_completed_row_is_never_touched(tmp_path, reports, monkeypatch):
    def refuse(*_):
        raise OSError("no answer")

    for settings, table, _ in both_kinds(tmp_path):
        monkeypatch.setattr(Storage, "remove", refuse)  # of the checkpoint: what a finished trial does last
        with pytest.raises(OSError, match="no answer") as raised:
            run_trial(settings)
        monkeypatch.undo()
        monkeypatch.setattr(trainable.tune, "report", reports.append)
        path = tmp_path / table / f"{settings['trial']['trial_id']}.parquet"
        before = path.read_bytes()
        assert record_failure(settings, raised.value) is None
        assert record_failure(settings, None) is None
        run_trial(settings)  # as Tune does after a failure
        assert path.read_bytes() == before
        assert read_rows(tmp_path, table, settings["trial"]["trial_id"])[0]["status"] == "completed"


def test_running_out_of_memory_is_a_status_of_its_own():
    assert failure_status(torch.OutOfMemoryError("CUDA out of memory")) == "out_of_memory"
    assert failure_status(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")) == "out_of_memory"
    assert failure_status(MemoryError()) == "out_of_memory"
    assert failure_status(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`")) == "out_of_memory"
    assert failure_status(RuntimeError("shape mismatch")) == "failed"


def test_a_stage_over_the_memory_limit_ends_the_search_as_a_result(tmp_path, reports):
    first, second = (predict_stage_bytes(SEARCH, stage, 8, 10, 1) for stage in SEARCH.stages)
    assert second < first
    config = replace(SEARCH, memory_limit=first - 1)
    run_trial(search_settings(tmp_path, config))
    (row,) = read_rows(tmp_path, "trials", "progressive-seed0")
    assert (row["status"], row["peak_bytes"], row["seconds"]) == ("out_of_memory", first, 0.0)
    assert row["error"].startswith(f"MemoryLimitError: stage 1: takes {first:,} bytes by prediction, memory_limit is {first - 1:,}")
    assert reports == [{"finished": True}]
    run_trial(search_settings(tmp_path, replace(SEARCH, memory_limit=first), "enough-seed0"))
    assert read_rows(tmp_path, "trials", "enough-seed0")[0]["status"] == "completed"


def test_a_later_stage_over_the_limit_keeps_the_epochs_before_it(tmp_path, reports):
    growing = replace(SEARCH, stages=(SEARCH.stages[0], replace(SEARCH.stages[1], cells=12, operations=8)))
    run_trial(search_settings(tmp_path, replace(growing, memory_limit=predict_stage_bytes(SEARCH, SEARCH.stages[0], 8, 10, 1))))
    (row,) = read_rows(tmp_path, "trials", "progressive-seed0")
    epochs = read_rows(tmp_path, "epochs", "progressive-seed0")
    assert row["error"].startswith("MemoryLimitError: stage 2: takes ")
    assert [epoch["stage"] for epoch in epochs] == [1, 1]
    assert row["seconds"] == pytest.approx(sum(epoch["seconds"] for epoch in epochs))
    assert not list(tmp_path.glob("checkpoints/*"))


def test_an_allocation_that_fails_is_recorded_with_its_stage_and_raised_for_another_attempt(tmp_path, reports, monkeypatch):
    class Full(Alternating):
        def train_weights(self, batch, both):
            if len(self.network.cells) == 4:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return super().train_weights(batch, both)

    monkeypatch.setattr(search_steps, "Alternating", Full)
    config = replace(SEARCH, stages=(SEARCH.stages[0], replace(SEARCH.stages[1], cells=4)))
    with pytest.raises(StageMemoryError):
        run_trial(search_settings(tmp_path, config))
    (row,) = read_rows(tmp_path, "trials", "progressive-seed0")
    assert row["status"] == "out_of_memory"
    assert row["error"].startswith(
        f"StageMemoryError: stage 2: takes {row['peak_bytes']:,} bytes by prediction; CUDA out of memory."
    )
    assert "Traceback" in row["error"]


def test_a_checkpoint_is_replaced_whole(tmp_path):
    storage, name = Storage(tmp_path), "checkpoints/a.pt"
    save_checkpoint({"epoch": 1}, storage, name)

    class Unpicklable:
        def __reduce__(self):
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        save_checkpoint({"epoch": 2, "broken": Unpicklable()}, storage, name)
    assert load_checkpoint(storage, name, torch.device("cpu")) == {"epoch": 1}
    assert load_checkpoint(storage, "checkpoints/b.pt", torch.device("cpu")) is None


def test_rows_of_other_trials_are_untouched(tmp_path, reports):
    run_trial(search_settings(tmp_path, replace(SEARCH, method=RandomSampling()), "random-seed0"))
    before = (tmp_path / "trials" / "random-seed0.parquet").read_bytes()
    run_trial(search_settings(tmp_path, replace(SEARCH, method=RandomSampling(), seed=1), "random-seed1"))
    assert (tmp_path / "trials" / "random-seed0.parquet").read_bytes() == before


STREAMED = {"train_images": None, "image_size": 8, "batch_size": 8}


@pytest.fixture
def photographs(tmp_path, monkeypatch):
    """A data set that streams, and the mean and deviation of its training images."""
    monkeypatch.setattr(streaming, "MAX_WORKERS", 0)
    name = write_folders(tmp_path / "set", train=40, test=10, size=12)
    moments = sample_moments(load_dataset(SearchConfig(data=name, image_size=8)).train)
    assert moments != IMAGENET_MOMENTS
    return name, moments


def streamed(kind, name, folder, trial_id="one-seed0", seed=0):
    """The settings of a search or an evaluation on a set that streams, and the table that it has a row in."""
    if kind == "search":
        return search_settings(folder, replace(SEARCH, data=name, seed=seed, **STREAMED), trial_id), "trials"
    config = replace(EVALUATION, data=name, test_images=None, seed=seed, **STREAMED)
    settings = evaluation_settings(folder, config)
    return {"trial": settings["trial"] | {"trial_id": trial_id}}, "evaluations"


def moments_of(folder, table, trial_id="one-seed0"):
    (row,) = read_rows(folder, table, trial_id)
    assert row["status"] == "completed"
    return tuple(row["mean"]), tuple(row["std"])


@pytest.mark.parametrize("kind", ["search", "evaluation"])
def test_a_run_of_an_earlier_release_continues_with_the_normalisation_that_it_began_with(
    tmp_path, reports, monkeypatch, photographs, kind
):
    name, measured = photographs
    settings, table = streamed(kind, name, tmp_path / "study")
    kill_after(monkeypatch, 1)
    with pytest.raises(Killed):
        run_trial(settings)
    storage, checkpoint = Storage(tmp_path / "study"), "checkpoints/one-seed0.pt"
    state = load_checkpoint(storage, checkpoint, torch.device("cpu"))
    said = state if kind == "search" else state["evaluation"]
    assert (tuple(said["mean"]), tuple(said["std"])) == IMAGENET_MOMENTS
    for begun in ("now", "earlier"):
        if begun == "earlier":
            del said["mean"], said["std"]
        save_checkpoint(state, storage, checkpoint)
        (tmp_path / "study" / table / "one-seed0.parquet").unlink()  # a completed row would end it at once
        monkeypatch.setattr(trainable.tune, "report", reports.append)
        run_trial(settings)
        assert moments_of(tmp_path / "study", table) == (measured if begun == "earlier" else IMAGENET_MOMENTS)


@pytest.mark.parametrize("kind", ["search", "evaluation"])
def test_a_study_with_finished_runs_of_an_earlier_release_goes_on_with_their_normalisation(tmp_path, reports, photographs, kind):
    name, measured = photographs
    settings, table = streamed(kind, name, tmp_path / "study")
    run_trial(settings)
    assert moments_of(tmp_path / "study", table) == IMAGENET_MOMENTS
    (file,) = (tmp_path / "study" / table).iterdir()
    pq.write_table(pq.read_table(file).drop_columns(["mean", "std"]), file)
    for folder, expected in (("study", measured), ("another", IMAGENET_MOMENTS)):
        settings, _ = streamed(kind, name, tmp_path / folder, "two-seed1", seed=1)
        run_trial(settings)
        assert moments_of(tmp_path / folder, table, "two-seed1") == expected
    other = write_folders(tmp_path / "other", train=40, test=10, size=12)
    settings, _ = streamed(kind, other, tmp_path / "study", "three-seed0")
    run_trial(settings)
    assert moments_of(tmp_path / "study", table, "three-seed0") == IMAGENET_MOMENTS


def test_a_state_of_images_normalised_in_another_way_is_refused():
    search = Search(SEARCH, torch.device("cpu"), ((0.25,), (0.5,)))
    other = Search(SEARCH, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"the checkpoint is of images normalised with \[0.25\], \[0.5\], this is \(0.29"):
        other.load_state_dict(search.state_dict())


@pytest.mark.parametrize("kind", ["search", "evaluation"])
def test_kept_weights_say_what_images_were_normalised_with_and_so_does_the_row(tmp_path, reports, kind):
    settings = (search_settings if kind == "search" else evaluation_settings)(tmp_path)
    settings["trial"]["keep_weights"] = True
    run_trial(settings)
    (file,) = (tmp_path / "weights").iterdir()
    saved = torch.load(file, weights_only=True)
    dataset = load_dataset(SearchConfig(data="digits", train_images=60))
    assert (tuple(saved["mean"]), tuple(saved["std"])) == (dataset.mean, dataset.std)
    assert moments_of(tmp_path, "trials" if kind == "search" else "evaluations", file.stem) == (dataset.mean, dataset.std)
    assert all(isinstance(tensor, torch.Tensor) for tensor in saved["state_dict"].values())


def test_a_gpu_that_pytorch_cannot_use_fails_the_trial_in_one_line(tmp_path, monkeypatch):
    """A driver older than the CUDA build hides the GPU; training on the CPU without a word would take weeks."""
    settings = search_settings(tmp_path)
    settings["trial"]["gpus"] = 0.5
    monkeypatch.setattr(torch.cuda, "is_available", lambda: warnings.warn("The NVIDIA driver is too old", stacklevel=1))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(RuntimeError, match="given a GPU that PyTorch cannot use"):
        run_trial(settings)
    (row,) = read_table(tmp_path, "trials").to_dict("records")
    assert row["status"] == "failed"
    first = row["error"].splitlines()[0]
    assert first.endswith("is built for CUDA 13.0, and The NVIDIA driver is too old")


def test_pretended_gpus_need_an_explicit_switch(monkeypatch):
    monkeypatch.setenv(trainable.PRETEND, "1")
    assert prepare(TrialSpec(**search_settings("/nowhere")["trial"] | {"gpus": 1.0})).type == "cpu"


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_a_trial_takes_its_share_of_the_gpus_memory_and_gives_back_what_an_earlier_one_left(share, monkeypatch):
    """On stubs of PyTorch's functions: the order and the numbers of the calls."""
    calls = []

    def set_fraction(part, device=None):
        assert device is None or device.index is not None, "PyTorch refuses it: so every trial of a study failed on an H100"
        calls.append(("fraction", part))

    monkeypatch.setattr(trainable, "cuda_problem", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=80 * 10**9))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", set_fraction)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("empty"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: calls.append("reset"))
    assert prepare(TrialSpec(**search_settings("/nowhere")["trial"] | {"gpus": share})).type == "cuda"
    assert calls == [("fraction", 1.0 if share == 1 else 0.25 - 0.6 / 80), "empty", "reset"]
