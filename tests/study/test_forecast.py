"""The forecast of bytes and seconds, and the mobile setting's limit."""

import math
import re
from dataclasses import replace

import pytest
import torch

from pdarts_tune.config.evaluation import RECIPES
from pdarts_tune.config.methods import RandomSearch
from pdarts_tune.config.presets import LAPTOP
from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.data.datasets import DatasetInfo, check_dataset
from pdarts_tune.networks.cost import predict_stage_bytes
from pdarts_tune.pdarts.progressive_depth import Stage
from pdarts_tune.pdarts.published import PUBLISHED
from pdarts_tune.results.storage import Storage
from pdarts_tune.results.tables import read_rows, read_table
from pdarts_tune.study import forecast as room
from pdarts_tune.study.forecast import (
    Forecaster,
    StepTimes,
    check_gpu,
    forecast,
    forecast_here,
    predict_need,
    probe_evaluation,
    probe_stage,
    refuse_large,
)
from pdarts_tune.study.plan import Arguments, EvalTrial, make_plan
from pdarts_tune.study.run import StudyState
from studies import approximation, depth_gap, transfer

DIGITS = DatasetInfo(1, 8, 10, 1437, 360)
GIGABYTE = 10**9


@pytest.fixture
def clock(monkeypatch):
    """A device on which a step of the weights takes 1 s, of the alphas too 2 s, and without training 0.5 s."""
    probed = []

    def probe(config, stage, info, device):
        probed.append((stage.cells, stage.operations))
        return StepTimes(1.0, 3.0, 0.5)

    monkeypatch.setattr(room, "probe_stage", probe)
    monkeypatch.setattr(room, "probe_evaluation", lambda *_: StepTimes(1.0, 1.0, 0.25))
    # Real predictions take a second each, and two tests below have them.
    monkeypatch.setattr(room, "predict_stage_bytes", lambda _, stage, *__, **___: 10**6 * stage.cells * stage.operations)
    monkeypatch.setattr(room, "predict_evaluation_bytes", lambda *_, **__: 10**6)
    return probed


def test_seconds_follow_from_epochs_steps_and_phases(clock):
    stage = LAPTOP.search.stages[0]  # 7 epochs, 3 of them warm-up; 1,437 images, a fifth held out, batches of 64
    seconds = Forecaster(torch.device("cpu"), 10.0).search_stage(LAPTOP.search, stage, DIGITS).seconds
    assert seconds == pytest.approx(9 * (3 * 1.0 + 4 * 3.0) + 7 * 5 * 0.5)


def test_diagnostics_are_forecast_apart_as_often_as_they_are_asked_for(clock, tmp_path):
    """Nine batches of training and five of validation: a look takes 0.2 x 14 + 1 steps, the default one look in the stage."""

    def diagnostics(**settings):
        config = replace(LAPTOP.search, **settings)
        found = Forecaster(torch.device("cpu"), 10.0).search_stage(config, config.stages[0], DIGITS)
        assert found.seconds == pytest.approx(9 * 15.0 + 7 * 5 * 0.5)
        return found.diagnostic_seconds

    assert diagnostics() == pytest.approx(3.8)
    assert diagnostics(diagnostics_every=1) == pytest.approx(7 * 3.8)
    assert diagnostics(diagnostics_every=1, eigenvalue_every=2) == pytest.approx(7 * 3.8 + 3 * 13)
    candidate = Stage(3, 8, epochs=2, warmup_epochs=2)
    config = replace(LAPTOP.search, stages=(candidate,), method=RandomSearch(2))
    assert Forecaster(torch.device("cpu"), 10.0).search_stage(config, candidate, DIGITS).diagnostic_seconds == 0
    plan = make_plan(approximation.STUDY, Arguments("laptop", seeds=2, variants="lowest_dropped"))
    text = forecast_here(StudyState(plan, tmp_path), 10.0)
    assert f"of which diagnostics take {2 * 3 * 3.8:.3g} seconds" in text


def test_bytes_are_those_that_a_stage_is_predicted_to_take(monkeypatch):
    monkeypatch.setattr(room, "probe_stage", lambda *_: StepTimes(1.0, 3.0, 0.5))
    stage = replace(LAPTOP.search.stages[1], cells=3)
    needed = Forecaster(torch.device("cpu"), 10.0).search_stage(LAPTOP.search, stage, DIGITS).needed_bytes
    assert needed == predict_stage_bytes(LAPTOP.search, stage, 8, 10, 1)


def test_stages_of_one_shape_are_probed_once(clock, tmp_path):
    plan = make_plan(depth_gap.STUDY, Arguments("smoke", variants="progressive,progressive_all_operations"))
    forecast_here(StudyState(plan, tmp_path), 1000.0)
    assert clock == [(3, 8), (4, 5), (5, 3), (4, 8), (5, 8)]


def test_what_probing_has_no_time_for_is_scaled_by_its_work(clock):
    forecaster = Forecaster(torch.device("cpu"), 10.0)
    first = forecaster.search_stage(LAPTOP.search, LAPTOP.search.stages[0], DIGITS)
    forecaster.patience = 0.0
    twice = replace(LAPTOP.search.stages[0], cells=6)
    scaled = forecaster.search_stage(LAPTOP.search, twice, DIGITS)
    assert (first.timed, scaled.timed) == (True, False)
    # Twice the weights' steps, for the alphas two thirds of three times as much, a third without training.
    assert scaled.seconds == pytest.approx(9 * (3 * 2.0 + 4 * 4.0) + 7 * 5 * 2 / 3)
    assert math.isnan(Forecaster(torch.device("cpu"), 0.0).search_stage(LAPTOP.search, twice, DIGITS).seconds)


def test_a_dry_run_forecasts_every_variant_the_total_and_what_fits_on_a_gpu(clock, tmp_path):
    plan = make_plan(approximation.STUDY, Arguments("laptop", seeds=2, variants="lowest_dropped,random_dropped,random"))
    text = forecast_here(StudyState(plan, tmp_path), 10.0)
    for variant in plan.variants:
        assert f"  {variant.name} " in text
    per_search = 3 * (9 * 15 + 7 * 5 * 0.5)
    assert text.count(f"{per_search / 3:.3g} seconds") + text.count(f"{per_search / 180:.1f} minutes") == 6
    assert "nothing is trained" in text
    assert "CPU core-hours" in text
    assert "one GPU of 16 GB: 8 trials" in text
    assert "disk: about" in text


def test_a_gpu_that_is_too_small_is_told(clock, tmp_path):
    plan = make_plan(approximation.STUDY, Arguments("laptop", variants="lowest_dropped,nothing_dropped"))
    text = forecast(StudyState(plan, tmp_path), Forecaster(torch.device("cpu"), 10.0), 640_000_000)
    assert "one GPU of this GPU (640 MB): 0 trials (nothing_dropped) to 1 (lowest_dropped) at a time" in text
    assert "too large for it: nothing_dropped" in text


def test_what_trials_need_is_predicted_for_searches_and_evaluations():
    plan = make_plan(transfer.STUDY, Arguments("smoke", variants="pdarts_c10"))
    cell = {"a": str(PUBLISHED["PDARTS_C10"].genotype)}
    search = make_plan(approximation.STUDY, Arguments("smoke", variants="lowest_dropped")).searches
    trials = [*plan.searches, *plan.evaluations(cell), *search]
    needs = {trial.trial_id: predict_need(trial) for trial in trials}
    assert needs["pdarts_c10-seed0"] == 0
    images = (1 if search[0].config.validation_fraction else 1.5) * check_dataset(search[0].config).train_images * 8 * 8
    assert needs["lowest_dropped-seed0"] == images + predict_stage_bytes(
        search[0].config, search[0].config.stages[0], 8, 10, 1, device=torch.device("cuda")
    )
    evaluations = [needs[trial.trial_id] for trial in plan.evaluations(cell)]
    assert evaluations[0] > evaluations[1] > 0  # the second recipe has no auxiliary head


def test_averaged_images_are_forecast_at_the_size_that_the_network_sees():
    whole = make_plan(approximation.STUDY, Arguments("smoke", variants="lowest_dropped")).searches[0]
    small = replace(whole, config=replace(whole.config, downsample=2))
    assert predict_need(small) < 0.5 * predict_need(whole)


def test_a_probe_times_real_steps(monkeypatch):
    """Not by the clock, which a busy machine makes say anything: by the gradients that each step computes."""
    steps, backward = [], torch.Tensor.backward

    def noting(*given, **named):
        steps[-1] += 1
        return backward(*given, **named)

    def count(step, device):
        assert device.type == "cpu"
        steps.append(0)
        step()
        return steps[-1]

    config = replace(LAPTOP.search, batch_size=8)
    stage, evaluation = replace(config.stages[0], operations=3), replace(LAPTOP.evaluation, cells=3, batch_size=8)
    genotype, cpu = PUBLISHED["DARTS_V2"].genotype, torch.device("cpu")
    times = probe_stage(config, stage, DIGITS, cpu)
    assert min(times.weights, times.both, times.forward) > 0
    monkeypatch.setattr(torch.Tensor, "backward", noting)
    monkeypatch.setattr("pdarts_tune.study.forecast._time", count)
    assert probe_stage(config, stage, DIGITS, cpu) == StepTimes(weights=1, both=2, forward=0)
    assert probe_evaluation(genotype, evaluation, DIGITS, cpu) == StepTimes(weights=1, both=1, forward=0)


MOBILE = RECIPES["imagenet-mobile"]


@pytest.fixture
def imagenet(monkeypatch):
    monkeypatch.setattr(room, "_info", lambda _: DatasetInfo(3, 224, 1000, 1_281_167, 50_000))


def test_a_network_over_the_mobile_limit_is_not_trained_and_its_row_says_why(tmp_path, imagenet):
    text = str(PUBLISHED["PDARTS_C10"].genotype)
    fits, large = EvalTrial("fits", text, MOBILE), EvalTrial("large", text, replace(MOBILE, channels=60))
    refusals = [refuse_large(trial, Storage(tmp_path)) for trial in (fits, large)]
    (row,) = read_rows(tmp_path, "evaluations", "large")
    assert row["status"] == "failed"
    assert row["failure"].startswith("refused: genotype ")
    assert refusals == [None, row["failure"]]
    assert "multiply-adds at 60 channels, the mobile setting allows 600M" in row["failure"]
    assert len(read_table(tmp_path, "evaluations")) == 1


def test_other_recipes_have_no_limit(tmp_path, imagenet):
    large = EvalTrial("large", str(PUBLISHED["PDARTS_C10"].genotype), RECIPES["cifar-large"])
    assert refuse_large(large, Storage(tmp_path)) is None
    assert not list(tmp_path.iterdir())


def test_a_gpu_smaller_than_the_smallest_stage_is_refused_with_what_would_fit():
    searches = make_plan(approximation.STUDY, Arguments("laptop", variants="lowest_dropped,nothing_dropped")).searches
    check_gpu(searches, 80 * 10**9)
    with pytest.raises(
        ConfigError, match=r"^address: the smallest stage, \d of lowest_dropped, takes [\d.]+ MB .* has 640 MB; a batch"
    ) as caught:
        check_gpu(searches, 640_000_000)
    batch = int(re.search(r"batch_size=(\d+)", str(caught.value))[1])
    check_gpu([replace(trial, config=replace(trial.config, batch_size=batch)) for trial in searches], 640_000_000)
    with pytest.raises(ConfigError, match="no batch would fit"):
        check_gpu(searches, 600_000_000)
