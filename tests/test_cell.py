"""One command shows what is known of a cell, without data."""

import re
from types import SimpleNamespace

import pytest
import torch

from pdarts_tune.cell import main, picture
from pdarts_tune.config.evaluation import find_recipe
from pdarts_tune.networks.cost import network_cost
from pdarts_tune.networks.evaluation_network import CIFAR, IMAGENET_MOBILE
from pdarts_tune.pdarts.published import PUBLISHED
from pdarts_tune.study.forecast import Forecaster

IMAGES = SimpleNamespace(num_classes=10, image_size=32, in_channels=3, train_images=0, test_images=0)


def shown(capsys, *arguments):
    main(list(arguments))
    out = capsys.readouterr().out
    lines = [re.split(r"  +", line.strip()) for line in out.splitlines()]
    return out, {line[0]: line[1:] for line in lines if len(line) > 1}


def test_cells_stand_side_by_side_with_their_shape_size_memory_and_the_papers_figures(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, rows = shown(capsys, "PDARTS_C10", "--compare", "AMOEBANET_A", "--figure", "cells")
    genotypes = [PUBLISHED[name].genotype for name in ("PDARTS_C10", "AMOEBANET_A")]
    assert rows["normal cell: depth, width, skips"] == [
        f"{cell.depth}, {cell.width:g}, {cell.skips}" for cell in (genotype.normal for genotype in genotypes)
    ]
    for setting, shape in (("CIFAR", CIFAR), ("ImageNet mobile", IMAGENET_MOBILE)):
        costs = [network_cost(genotype, shape) for genotype in genotypes]
        assert rows[f"{setting}: params, M"] == [f"{cost.params / 1e6:.2f}" for cost in costs]
        assert rows[f"{setting}: multiply-adds, M (conv + linear)"] == [f"{cost.macs / 1e6:.1f}" for cost in costs]
        assert rows[f"{setting}: multiply-adds, M (as papers count)"] == [f"{cost.madds / 1e6:.1f}" for cost in costs]
    assert rows["ImageNet mobile: multiply-adds, M (as papers count)"][0] == "557.4"
    assert rows["printed: params, M; on ImageNet; multiply-adds, M"] == ["3.4; 4.9; 557", "3.2; 5.1; 555"]
    needed = [
        Forecaster(torch.device("cuda"), 0.0).evaluation_bytes(genotype, find_recipe("cifar"), IMAGES) for genotype in genotypes
    ]
    assert rows["CIFAR: GPU memory, GB, to train with batches of 128 in CUDA graphs"] == [f"{count / 1e9:.2f}" for count in needed]
    assert {path.name for path in tmp_path.iterdir()} == {f"cells-{index}.{kind}" for index in (0, 1) for kind in ("png", "svg")}


def test_the_picture_has_each_operation_at_its_node_and_the_state_that_it_reads():
    normal = picture(PUBLISHED["PDARTS_C10"].genotype).split("\n\n")[0].splitlines()
    starts = [match.start() for match in re.finditer(r"\S+", normal[1])]
    ends = [*starts[2:], None]
    rows = {line[: starts[1]].strip(): [line[a:b].strip() for a, b in zip(starts[1:], ends, strict=True)] for line in normal[2:-1]}
    assert rows == {
        "c_{k-2}": ["skip_connect", "skip_connect", "", "sep_conv_3x3"],
        "c_{k-1}": ["dil_conv_3x3", "sep_conv_3x3", "sep_conv_3x3", ""],
        "node 1": ["", "", "sep_conv_3x3", ""],
        "node 2": ["", "", "", "dil_conv_5x5"],
    }
    assert "sep_conv_5x5 + sep_conv_3x3" in picture(PUBLISHED["NASNET_A"].genotype)  # one node reads one state twice


def test_bad_input_is_one_line(capsys):
    for words, match in (
        (["NO_SUCH"], "neither a file nor a published name"),
        (["PDARTS_C10", "--max-skips", "2"], "max_skips"),
        (["PDARTS_C10", "--figure", "absent/cells"], "figure: absent/cells cannot be written"),
        (["PDARTS_C10", "--estimator", "nb301:absent"], "cannot be read"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(words)
        out, err = capsys.readouterr()
        assert match in err
        assert (out, err.count("\n")) == ("", 1)
