"""The command line trains, continues, tests weights and says in one line what is wrong."""

import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from images import encode, pixels, write_folders, write_image_set, write_parquet
from pdarts_tune.config.evaluation import RECIPES, EvalConfig
from pdarts_tune.evaluation import job as evaluation_job
from pdarts_tune.evaluation.__main__ import Arguments, build_config, main
from pdarts_tune.evaluation.genotype_source import find_genotypes
from pdarts_tune.networks.evaluation_network import EvalNetwork, NetworkConfig
from pdarts_tune.networks.supernet import Supernet
from pdarts_tune.pdarts.published import PUBLISHED
from pdarts_tune.pdarts.space import SearchSpace
from pdarts_tune.results.tables import read_table

PDARTS = PUBLISHED["PDARTS_C10"].genotype
(RANDOM,) = find_genotypes("random:0").values()
SHORT = [
    *("--data", "digits", "--recipe", "cifar-short", "--epochs", "2", "--cells", "3", "--channels", "4"),
    *("--cutout", "2", "--train-images", "60", "--test-images", "30", "--batch-size", "20"),
]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(tmp_path, *arguments, genotype="PDARTS_C10"):
    main(["--genotype", genotype, *SHORT, "--results", str(tmp_path), *arguments])


def row(tmp_path):
    (only,) = read_table(tmp_path / "trainings", "evaluations").to_dict("records")
    return only


def test_a_training_prints_costs_beside_the_papers_and_a_line_an_epoch_and_writes_its_row(tmp_path, capsys):
    run(tmp_path)
    out = capsys.readouterr().out
    lines = {line.split("  ")[0]: line.split() for line in out.splitlines() if "M " in line}
    assert lines["CIFAR setting"][2:4] == ["3.43M", "3.4M"]
    assert lines["ImageNet mobile"][2:] == ["4.94M", "4.9M", "542.8M", "557.4M", "557M"]
    assert out.count("epoch 1/2: ") == out.count("epoch 2/2: ") == 1
    found = row(tmp_path)
    assert (found["status"], found["recipe"], found["epochs"]) == ("completed", "cifar-short", 2)
    assert found["accuracy"] == sum(found["correct"]) / 30 <= found["top5_accuracy"]
    assert not list((tmp_path / "trainings" / "checkpoints").glob("*.pt"))


def test_the_same_command_shows_a_finished_training_and_its_weights_test_the_same(tmp_path, capsys):
    run(tmp_path)
    first = row(tmp_path)
    run(tmp_path)
    assert capsys.readouterr().out.count("epoch 1/2") == 1
    (weights,) = (tmp_path / "trainings" / "weights").iterdir()
    run(tmp_path / "again", "--weights", str(weights))
    second = row(tmp_path / "again")
    assert second["correct"].tolist() == first["correct"].tolist()
    assert (second["recipe"], second["epochs"]) == ("weights", 0)
    assert second["recipe_id"] != first["recipe_id"]


def darkened(tmp_path):
    """Two sets with the same test images; the training images of the second are dark. Their names, and how to train on them."""
    names = [write_image_set(tmp_path / name, train=60, test=30) for name in ("light", "dark")]
    dark = [encode(image // 4) for image in pixels(60)]
    write_parquet(tmp_path / "dark" / "train.parquet", dark, [0, 1] * 30, {"class_names": ["ant", "bee"]})
    return [("--data", name) for name in names]


def test_weights_are_tested_with_the_normalisation_that_they_were_trained_with(tmp_path, capsys):
    light, dark = darkened(tmp_path)
    run(tmp_path / "trained", *light)
    trained = row(tmp_path / "trained")
    assert trained["train_images"] == 60
    (weights,) = (tmp_path / "trained" / "trainings" / "weights").iterdir()
    saved = torch.load(weights, weights_only=True)
    for name, (data, results) in {"light": (light, "again"), "dark": (dark, "beside")}.items():
        run(tmp_path / results, *data, "--weights", str(weights))
        tested = row(tmp_path / results)
        assert pd.isna(tested["train_images"])
        assert (name, tested["loss"], tested["correct"].tolist()) == (name, trained["loss"], trained["correct"].tolist())
        for moment in ("mean", "std"):
            assert tested[moment].tolist() == trained[moment].tolist() == saved[moment]
    assert capsys.readouterr().out.count(f"{weights} says so") == 2
    assert saved["mean"] == pytest.approx([0.5] * 3, abs=0.05)  # and not the dark ones'


def test_the_row_says_how_many_images_of_a_small_set_were_used(tmp_path):
    run(tmp_path, "--data", write_image_set(tmp_path / "few", train=20, test=10), "--epochs", "1")
    found = row(tmp_path)
    assert (found["train_images"], len(found["correct"]), json.loads(found["config"])["train_images"]) == (20, 10, 60)


def unlabelled(tmp_path, side=8, channels=1, classes=10):
    """Weights as other projects save them, and earlier releases of this one did: they do not say their normalisation."""
    torch.save(
        EvalNetwork(PDARTS, NetworkConfig(4, 3, classes, side, "cifar", channels), auxiliary=False).state_dict(), tmp_path / "w.pt"
    )
    return str(tmp_path / "w.pt")


def test_weights_that_do_not_say_it_get_their_family_s_constants_which_one_line_says(tmp_path, capsys):
    weights = unlabelled(tmp_path, 32, 3, 2)
    name = write_image_set(tmp_path / "images", train=60, test=30, size=32)
    run(tmp_path / "assumed", "--data", name, "--weights", weights)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "normalised" in line]
    assert line == (
        "images are normalised with mean 0.4914 0.4822 0.4465 and deviation 0.2470 0.2435 0.2616: "
        f"those of CIFAR-10, assumed, for {weights} does not say it (--mean and --std would)"
    )
    given = ["--mean", "0.5", "0.5", "0.5", "--std", "0.25", "0.25", "0.25"]
    run(tmp_path / "given", "--data", name, "--weights", weights, *given)
    assert "mean 0.5000 0.5000 0.5000 and deviation 0.2500 0.2500 0.2500: as given" in capsys.readouterr().out
    assumed, given = row(tmp_path / "assumed"), row(tmp_path / "given")
    assert assumed["mean"].tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=1e-4)
    assert (given["mean"].tolist(), given["std"].tolist()) == ([0.5] * 3, [0.25] * 3)
    assert assumed["loss"] != given["loss"]


def test_a_file_that_says_its_normalisation_is_not_overruled(tmp_path, capsys):
    weights = tmp_path / "w.pt"
    network = EvalNetwork(PDARTS, NetworkConfig(4, 3, 10, 8, "cifar", 1), auxiliary=False)
    for mean, std, arguments, message in (
        (
            [0.3],
            [0.4],
            ["--mean", "0.4", "--std", "0.4"],
            "images are normalised with mean 0.3000 and deviation 0.4000; leave them out",
        ),
        ([0.3] * 3, [0.4] * 3, [], "mean: 3 values, digits's images have 1 channels"),
        ("black", [0.4], [], "w.pt: could not convert"),
    ):
        torch.save({"state_dict": network.state_dict(), "mean": mean, "std": std}, weights)
        with pytest.raises(SystemExit) as caught:
            run(tmp_path / "results", "--weights", str(weights), *arguments)
        error = capsys.readouterr().err
        assert (caught.value.code, error.count("\n")) == (2, 1)
        assert message in error
        assert not (tmp_path / "results").exists()


def test_a_training_on_images_that_stream_says_that_it_takes_imagenet_s_constants(tmp_path, capsys):
    name = write_folders(tmp_path / "set", train=60, test=30, size=20)
    run(tmp_path, "--data", name, "--image-size", "16")
    said = "images are normalised with mean 0.4850 0.4560 0.4060 and deviation 0.2290 0.2240 0.2250: those of ImageNet"
    assert capsys.readouterr().out.splitlines().count(said) == 1
    assert row(tmp_path)["mean"].tolist() == [0.485, 0.456, 0.406]


def test_a_training_that_was_stopped_continues_at_the_next_epoch(tmp_path, capsys, monkeypatch):
    save, saved = evaluation_job.save_checkpoint, []

    def stop(state, storage, name):
        save(state, storage, name)
        saved.append(name)
        if len(saved) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(evaluation_job, "save_checkpoint", stop)
    with pytest.raises(SystemExit) as caught:
        run(tmp_path)
    assert caught.value.code == 130
    run(tmp_path)
    out = capsys.readouterr().out
    assert "epoch 1/2" not in out
    assert out.count("epoch 2/2") == 1
    assert row(tmp_path)["attempts"] == 2


def test_a_training_of_other_length_says_that_it_starts_anew(tmp_path, capsys):
    run(tmp_path)
    assert "starts anew" not in capsys.readouterr().out
    run(tmp_path, "--epochs", "3")
    assert "differs in epochs 2, now 3" in capsys.readouterr().out


def test_several_genotypes_and_seeds_end_in_one_table_with_each_distinct_one_once(tmp_path, capsys):
    main(["--genotype", "PDARTS_C10", str(PDARTS), "random:0", *SHORT, "--epochs", "1", "--seeds", "2", "--results", str(tmp_path)])
    out = capsys.readouterr().out
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("|")][2:]
    rows = read_table(tmp_path / "trainings", "evaluations")
    assert sorted(rows.seed) == [0, 0, 1, 1]
    errors = rows.groupby("genotype_id").error_percent.mean()
    gain = 100 * (errors[RANDOM.genotype_id] - errors[PDARTS.genotype_id]) / (100 - errors[RANDOM.genotype_id])
    assert [(line[0], line[1], line[-1]) for line in table] == [
        (f"PDARTS_C10; {PDARTS.genotype_id}", "2", f"{gain:+.2f}"),
        ("random:0", "2", "+0.00"),
    ]
    assert float(table[0][2].split(" ± ")[0]) == pytest.approx(errors[PDARTS.genotype_id], abs=0.01)


def broken(tmp_path):
    path = tmp_path / "weights.pt"
    path.write_bytes(b"not weights")
    return str(path)


def other_set(tmp_path):
    return write_image_set(tmp_path / "other", train=60, test=30)


def other_width(tmp_path):
    network = EvalNetwork(PDARTS, NetworkConfig(6, 3, 10, 8, "cifar", 1))
    torch.save({"state_dict": network.state_dict()}, tmp_path / "wide.pt")
    return str(tmp_path / "wide.pt")


def deep_and_wide(tmp_path):
    network = EvalNetwork(PDARTS, NetworkConfig(6, 5, 10, 8, "cifar", 1))
    torch.save({f"module.{name}": tensor for name, tensor in network.state_dict().items()}, tmp_path / "deep.pt")
    return str(tmp_path / "deep.pt")


def of_imagenet(tmp_path):
    torch.save(EvalNetwork(PDARTS, NetworkConfig(8, 3, 10, 32, "imagenet", 1)).state_dict(), tmp_path / "imagenet.pt")
    return str(tmp_path / "imagenet.pt")


def of_a_search(tmp_path):
    torch.save({"state_dict": Supernet(SearchSpace.full(), 3, 4, 10, in_channels=1).state_dict()}, tmp_path / "search.pt")
    return str(tmp_path / "search.pt")


def not_finite(tmp_path):
    network = EvalNetwork(PDARTS, NetworkConfig(4, 3, 10, 8, "cifar", 1))
    network.state_dict()["cells.1.preprocess0.bn.running_mean"][0] = float("nan")
    torch.save(network.state_dict(), tmp_path / "nan.pt")
    return str(tmp_path / "nan.pt")


def with_a_numpy_scalar(tmp_path, new_format=True):
    network = EvalNetwork(PDARTS, NetworkConfig(4, 3, 10, 8, "cifar", 1))
    saved = {"state_dict": network.state_dict(), "best_accuracy": np.float64(97.5)}
    torch.save(saved, tmp_path / "numpy.pt", _use_new_zipfile_serialization=new_format)
    return str(tmp_path / "numpy.pt")


def with_a_numpy_scalar_of_before_pytorch_1_6(tmp_path):
    return with_a_numpy_scalar(tmp_path, new_format=False)


@pytest.mark.parametrize(
    ("genotype", "arguments", "message"),
    [
        ("PDARTS_C11", [], "genotype: 'PDARTS_C11' is neither a file nor a published name, known are PDARTS_C10"),
        (str(PDARTS)[:-40], [], "cut off"),
        ("random:x", [], "genotype: 'random:x' is wrong, it must be random: and a whole number"),
        ("PDARTS_C10", ["--max-skips", "2"], "max_skips: 2 is for results folders and random genotypes, --genotype has none"),
        ("PDARTS_C10", ["--recipe", "cifra"], "recipe: 'cifra' is unknown, known are cifar"),
        ("PDARTS_C10", ["--data", "cifar11"], "data: unknown data set 'cifar11'"),
        ("PDARTS_C10", ["--precision", "fp8"], "precision: 'fp8' is wrong"),
        ("PDARTS_C10", ["--seeds", "0"], "seeds: 0 is wrong, it must be at least 1"),
        ("random:1", ["--max-skips", "9"], "max_skips: '9' is wrong, skip limits are between 0 and 8"),
        (str(PDARTS).replace("dil_conv_3x3", "dil_conv_9x9"), [], "unknown operation 'dil_conv_9x9', known are max_pool_3x3"),
        (str(PDARTS).replace("'dil_conv_5x5', 4", "'dil_conv_5x5', 5"), [], "state 5 does not exist yet, node 3 can read 0 to 4"),
        (str(PDARTS).replace("('dil_conv_5x5', 4)", ""), [], "7 edges: a cell has two for each node"),
        ("PDARTS_C10", ["--devices", "0"], "devices: 0 is wrong, it must be at least 1"),
        ("PDARTS_C10", ["--weights", "nowhere.pt"], "weights: nowhere.pt is not a file"),
        ("PDARTS_C10", ["--weights", broken], "weights.pt: "),
        (
            "PDARTS_C10",
            ["--weights", with_a_numpy_scalar],
            "could run any code: numpy._core.multiarray.scalar, numpy.dtype;",
        ),
        ("PDARTS_C10", ["--weights", with_a_numpy_scalar_of_before_pytorch_1_6], "multiarray.scalar; where they come from, load"),
        ("PDARTS_C10", ["--weights", not_finite], "cells.1.preprocess0.bn.running_mean: holds nan or an infinity, weights must be"),
        ("PDARTS_C10", ["--test-images", "1"], "test_images: 1 is wrong, it must be a whole number of at least 2"),
        ("PDARTS_C10", ["--weights", unlabelled, "--mean", "0.3"], "mean: given without std, give both"),
        ("PDARTS_C10", ["--weights", unlabelled, "--std", "0.3"], "std: given without mean, give both"),
        ("PDARTS_C10", ["--weights", unlabelled, "--mean", "0.3", "--std", "0"], "std: 0.0 is wrong, it must be more than 0"),
        ("PDARTS_C10", ["--weights", unlabelled, "--mean", "77", "--std", "0.3"], "mean: 77.0 is wrong, it must be in [0, 1]"),
        ("PDARTS_C10", ["--weights", unlabelled, "--mean", "0", "0", "--std", "1", "1"], "mean: 2 values, digits's images have 1"),
        ("PDARTS_C10", ["--mean", "0.3", "--std", "0.3"], "mean, std: are for --weights"),
        ("PDARTS_C10", ["--weights", unlabelled, "--data", other_set], "does not say what its images were normalised with"),
        (
            "PDARTS_C10",
            ["--weights", other_width],
            "shape (18, 1, 3, 3), this network needs (12, 1, 3, 3); it fits a network of --channels 6",
        ),
        ("PDARTS_C10", ["--weights", deep_and_wide], "; it fits a network of --cells 5 --channels 6"),
        ("PDARTS_C10", ["--weights", of_a_search], "; it is of a search network, a cell's weights are those of an evaluation"),
        ("PDARTS_C10", ["--weights", of_imagenet], "; it is of a network with the imagenet stem, give a --recipe that has it"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, capsys, genotype, arguments, message):
    arguments = [part(tmp_path) if callable(part) else part for part in arguments]
    with pytest.raises(SystemExit) as caught:
        run(tmp_path / "results", *arguments, genotype=genotype)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "results").exists()


def test_finite_weights_that_overflow_have_no_accuracy_but_a_failed_row(tmp_path, capsys):
    network = EvalNetwork(PDARTS, NetworkConfig(4, 3, 10, 8, "cifar", 1))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(1e30)
    torch.save(network.state_dict(), tmp_path / "huge.pt")
    with pytest.raises(SystemExit) as caught:
        run(tmp_path, "--weights", str(tmp_path / "huge.pt"))
    assert caught.value.code == 1
    printed = capsys.readouterr()
    message = "test: the loss of 30 of 30 images is not finite"
    assert printed.err == f"failed: {message} (the evaluations table has the whole message)\n"
    assert "error" not in printed.out.splitlines()[-1]
    found = row(tmp_path)
    assert found["status"] == "failed"
    assert pd.isna(found["accuracy"])
    assert found["failure"].startswith(f"FloatingPointError: {message}")


def test_a_damaged_image_is_refused_before_anything_is_written_or_left_out_and_counted(tmp_path, capsys):
    name = write_folders(tmp_path / "set")
    (tmp_path / "set" / "train" / "ant" / "004.png").write_bytes(b"not an image")
    copied = tmp_path / "set" / "val" / "ant" / "000.png"
    copied.write_bytes((tmp_path / "set" / "train" / "ant" / "000.png").read_bytes())
    arguments = ["--genotype", "PDARTS_C10", *SHORT, "--data", name, "--train-images", "12", "--test-images", "6"]
    arguments += ["--epochs", "1", "--batch-size", "4", "--results", str(tmp_path / "results")]
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    damaged = "not an image that can be read (12 bytes)"
    assert f"train/ant/004.png: {damaged}" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        main([*arguments, "--skip-bad-images"])
    printed = capsys.readouterr()
    assert printed.err.splitlines() == [
        f"warning: data: left out 1 images that cannot be used, the first is {tmp_path}/set/train/ant/004.png: {damaged}",
        f"warning: data: 1 of {name}'s test images are among its training images too",
    ]
    assert "1 images left out" in printed.out
    assert (row(tmp_path / "results")["left_out"], row(tmp_path / "results")["shared"]) == (1, 1)


def test_a_cpu_is_told_by_its_name_its_instructions_and_its_threads():
    name, instructions, threads = (
        evaluation_job.describe_device(torch.device("cpu")).removeprefix("cpu (").removesuffix(")").split(", ")
    )
    assert name.strip()
    assert (instructions, threads) == (torch.backends.cpu.get_cpu_capability(), f"{torch.get_num_threads()} threads")


def test_relative_data_are_named_by_their_whole_path_since_other_processes_start_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = Arguments(genotype=("PDARTS_C10",), data="folder:images")
    assert build_config(settings).data == f"folder:{tmp_path}/images"


def test_the_row_keeps_the_whole_configuration(tmp_path):
    run(tmp_path, "--validation-fraction", "0.2", "--seed", "3")
    found = row(tmp_path)
    config = EvalConfig(**json.loads(found["config"]))
    assert (config.seed, config.validation_fraction, config.recipe_id) == (3, 0.2, found["recipe_id"])
    assert not pd.isna(found["last_validation_accuracy"])


def test_the_command_runs_by_itself_and_its_help_without_torch(tmp_path):
    command = """
import sys
from pdarts_tune.evaluation.__main__ import main
try:
    main(["--help"])
finally:
    assert "torch" not in sys.modules
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    run = partial(subprocess.run, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run([sys.executable, "-c", command]).returncode == 0
    ended = run([sys.executable, "-m", "pdarts_tune.evaluation", "--genotype", "PDARTS_C11", "--data", "digits"])
    assert (ended.returncode, ended.stderr.split("'")[0]) == (2, "error: genotype: ")


def test_a_recipe_keeps_its_own_switches():
    """Switches that the command line leaves out are the recipe's."""
    bf16 = build_config(Arguments(("PDARTS_C10",), "digits", "cifar-bf16"))
    assert (bf16.precision, bf16.channels_last, bf16.compile, bf16.graph) == ("bf16", True, True, "auto")
    changed = build_config(Arguments(("PDARTS_C10",), "digits", tf32=True, graph="off"))
    assert changed == replace(RECIPES["cifar"], data="digits", tf32=True, graph="off")
