"""Weights that were kept are a network that takes images as they are, and tests as it did after its training."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from pdarts_tune.config.evaluation import RECIPES
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.data.datasets import load_dataset
from pdarts_tune.evaluation.__main__ import main
from pdarts_tune.evaluation.trained import load_trained
from pdarts_tune.networks.checkpoint import save_weights
from pdarts_tune.networks.evaluation_network import EvalNetwork, NetworkConfig
from pdarts_tune.pdarts.published import PUBLISHED
from pdarts_tune.results.storage import Storage
from pdarts_tune.results.tables import read_table, write_rows
from pdarts_tune.search.records import genotype_row
from synthetic import START
from synthetic_rows import trial_row

ROOT = Path(__file__).parents[2]
PDARTS = PUBLISHED["PDARTS_C10"].genotype
SMALL = ["cells=3", "channels=4", "epochs=2", "cutout=2", "train_images=60", "test_images=30", "batch_size=20", "weight_decay=1e-3"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    main(["--genotype", "PDARTS", "--data", "digits", "--seeds", "2", "--results", str(folder), "--set", *SMALL])
    yield folder
    torch.set_num_threads(threads)


def rows(folder):
    return read_table(folder, "evaluations").set_index("trial_id")


def test_set_changes_any_setting_of_the_recipe(results):
    (found,) = set(rows(results / "trainings")["config"].map(lambda text: '"weight_decay": 0.001' in text))
    assert found
    (recipe_id,) = set(rows(results / "trainings")["recipe_id"])
    assert recipe_id != RECIPES["cifar"].recipe_id


@pytest.mark.parametrize("name", ["genotype", "trial"])
def test_a_loaded_network_classifies_test_images_as_after_its_training(results, name):
    trained = rows(results / "trainings")
    trial = trained.index[trained["seed"] == (0 if name == "genotype" else 1)][0]
    network = load_trained(results / "trainings", PDARTS.genotype_id if name == "genotype" else trial)
    test = load_dataset(network.config).test
    with torch.no_grad():
        logits = network(test.images)
        assert torch.allclose(network(test.images / 255), logits, atol=1e-5)
    assert (logits.argmax(1) == test.labels).tolist() == trained["correct"][trial].tolist()
    assert network.class_names == tuple("0123456789")
    assert not network.training


def test_kept_weights_are_tested_without_saying_genotype_data_or_recipe(results, tmp_path, capsys):
    trained = rows(results / "trainings").iloc[0]
    main(["--weights", str(results / "trainings" / "weights" / f"{trained.name}.pt"), "--results", str(tmp_path)])
    (tested,) = read_table(tmp_path / "trainings", "evaluations").to_dict("records")
    assert (tested["loss"], tested["correct"].tolist()) == (trained["loss"], trained["correct"].tolist())
    assert PDARTS.genotype_id in capsys.readouterr().out


def test_weights_of_an_earlier_release_have_their_genotype_from_the_tables_of_their_study(results, tmp_path, capsys):
    study = tmp_path / "study"
    (study / "weights").mkdir(parents=True)
    for source in (results / "trainings").glob("*/*-seed0-*"):
        if source.suffix == ".pt":
            saved = torch.load(source, weights_only=True)
            torch.save({name: saved[name] for name in ("state_dict", "mean", "std")}, study / "weights" / source.name)
        else:
            (study / "evaluations").mkdir()
            (study / "evaluations" / source.name).write_bytes(source.read_bytes())
    (weights,) = (study / "weights").iterdir()
    with pytest.raises(ConfigError, match="does not say its genotype"):
        load_trained(study, PDARTS.genotype_id)
    write_rows(study, "genotypes", "found-seed0", [{"trial_id": "found-seed0"} | genotype_row(PDARTS, 3, 2, None)])
    row = trial_row("study", "found", "found-seed0", SearchConfig(), "completed", START, START, None)
    write_rows(study, "trials", "found-seed0", [row])
    for name in ("found-seed0", PDARTS.genotype_id, weights.stem):
        network = load_trained(study, name)
        assert (network.network.genotype, network.config.channels, network.class_names) == (PDARTS, 4, ())
    main(["--weights", str(weights), "--results", str(tmp_path / "again")])
    assert PDARTS.genotype_id in capsys.readouterr().out


def test_what_is_not_there_is_said_in_one_line(results, tmp_path):
    trainings = results / "trainings"
    for folder, name, says in (
        (results, "x", "holds no table evaluations, give the folder of one study"),
        (trainings, "x", "'x' is no evaluated genotype and no trial of it"),
    ):
        with pytest.raises(ConfigError, match=says):
            load_trained(folder, name)
    (tmp_path / "evaluations").mkdir()
    for path in (trainings / "evaluations").iterdir():
        (tmp_path / "evaluations" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ConfigError, match=r"no weights of .* are kept, which --keep-weights does"):
        load_trained(tmp_path, PDARTS.genotype_id)


def test_the_page_about_results_runs_as_it_stands(tmp_path, monkeypatch):
    """On the published study, with drawn weights in place of trained ones."""
    shutil.copytree(ROOT / "docs" / "results" / "depth_gap", tmp_path / "results" / "depth_gap")
    page = (ROOT / "docs" / "use_the_results.md").read_text()
    monkeypatch.chdir(tmp_path)
    names: dict = {"images": torch.rand(2, 3, 32, 32)}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        if "load_trained" in block:
            trial = rows("results/depth_gap").query(f"genotype_id == '{names['genotype'].genotype_id}'").iloc[0]
            config = json.loads(trial["config"])
            network = EvalNetwork(names["genotype"], NetworkConfig(config["channels"], config["cells"], 10, 32, "cifar"))
            about = {"mean": [0.5] * 3, "std": [0.25] * 3, "class_names": list("abcdefghij"), "config": config}
            about["genotype"] = str(names["genotype"])
            save_weights(network, about, Storage("results/depth_gap"), f"weights/{trial.name}.pt")
        exec(block, names)
    assert len(names["classes"]) == 2
    assert set(names["classes"]) <= set("abcdefghij")
    assert {path.name for path in tmp_path.glob("*.png")} == {"alphas.png", "cells.png"}
