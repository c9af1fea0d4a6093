"""Trained networks with the normalisation of their images, from the weights that studies and trainings keep."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from pdarts_tune.config.evaluation import EvalConfig
from pdarts_tune.config.execution import cell_evaluation
from pdarts_tune.config.serialize import ConfigError, from_dict
from pdarts_tune.networks.darts_weights import find_state_dict, load_darts_state_dict, network_size
from pdarts_tune.networks.evaluation_network import EvalNetwork, NetworkConfig
from pdarts_tune.pdarts.genotype import Genotype
from pdarts_tune.results.storage import Storage
from pdarts_tune.results.tables import final_genotypes, read_rows, read_table


class TrainedNetwork(nn.Module):
    """A trained network in evaluation mode, which takes images as they are in files.

    `config` is how it was trained, `class_names` are in the order of the logits (empty in files of earlier releases). A file of
    weights that does not say how images were normalised is of a network that takes them as they are.

    Raises:
        ValueError: the weights are not of the genotype, or of no evaluation network.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, saved: Mapping[str, Any], genotype: Genotype, config: EvalConfig) -> None:
        super().__init__()
        state = find_state_dict(saved)
        self.config, self.class_names = config, tuple(saved.get("class_names", ()))
        size = {"channels": config.channels, "cells": config.cells, "stem": config.stem, "num_classes": 1} | network_size(state)
        shape = NetworkConfig(**size, image_size=usual_side(config, size["stem"]))
        self.network = EvalNetwork(genotype, shape, auxiliary=False)
        self.network.evaluation = cell_evaluation(config.execution)
        load_darts_state_dict(self.network, state)
        for name, default in (("mean", 0.0), ("std", 1.0)):
            self.register_buffer(name, torch.tensor(saved.get(name, [default] * shape.in_channels)).view(1, -1, 1, 1))
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, channels, height, width), of bytes or of numbers in [0, 1], to logits (N, classes)."""
        if images.dtype == torch.uint8:
            images = images / 255
        return self.network((images - self.mean) / self.std)[0]


def usual_side(config: EvalConfig, stem: str) -> int:
    """The side of the images that a recipe trains, in pixels, where no data set says it: that of CIFAR's, or ImageNet's 224."""
    return config.image_size or (32 // config.downsample if stem == "cifar" else 224)


def load_trained(folder: Path | str, name: str) -> TrainedNetwork:
    """The network that a study, or `python -m pdarts_tune.evaluation`, trained and kept the weights of.

    Args:
        folder: of a study, or `trainings` of a results folder.
        name: a genotype_id, the trial_id of an evaluation, or that of a search, whose final genotype is taken at its own skip
            limit. Of several evaluation seeds the first is taken.

    Raises:
        ConfigError: no such genotype or trial, none whose weights are kept, or several by different recipes or on different data.
    """
    storage = Storage(folder)
    if "evaluations" not in storage.folders():
        raise ConfigError(f"{folder}: holds no table evaluations, give the folder of one study")
    rows = read_table(storage, "evaluations", ["trial_id", "genotype_id", "status", "recipe_id", "data", "seed"])
    found = rows[(rows["trial_id"] == name) | (rows["genotype_id"] == _final_genotype_id(storage, name))]
    if found.empty:
        raise ConfigError(f"{folder}: {name!r} is no evaluated genotype and no trial of it; see its tables evaluations and trials")
    kept = found[[f"{trial}.pt" in storage.stamps("weights") for trial in found["trial_id"]]].sort_values("seed")
    if kept.empty:
        raise ConfigError(f"{folder}: no weights of {name} are kept, which --keep-weights does while a study runs")
    if len(kept[["recipe_id", "data"]].drop_duplicates()) > 1:
        raise ConfigError(f"{folder}: {name} was trained in several ways, name one of {', '.join(kept['trial_id'])}")
    file = f"weights/{kept['trial_id'].iloc[0]}.pt"
    saved = torch.load(io.BytesIO(storage.read(file)), map_location="cpu", weights_only=True)
    origin = weights_origin(saved, storage, kept["trial_id"].iloc[0])
    if origin is None:
        raise ConfigError(f"{storage}/{file}: does not say its genotype, as files of earlier releases")
    return TrainedNetwork(saved, *origin)


def _final_genotype_id(storage: Storage, name: str) -> str:
    """That of a search; else the name itself."""
    if "trials" not in storage.folders():
        return name
    trials = read_table(storage, "trials", ["trial_id", "status", "max_skips"], only={"trial_id": [name]})
    genotypes = read_table(storage, "genotypes", ["trial_id", "stage", "max_skips", "genotype_id"], only={"trial_id": [name]})
    found: pd.DataFrame = final_genotypes(genotypes, trials)
    return str(found["genotype_id"].iloc[0]) if len(found) else name


def weights_origin(saved: Mapping[str, Any], study: Storage | None, trial_id: str) -> tuple[Genotype, EvalConfig] | None:
    """The genotype and the recipe of kept weights: as their file says, or, of earlier releases, as the study's tables do.

    Args:
        saved: the content of the file.
        study: the folder that holds `weights/<trial_id>.pt`; None: the file is not in one.
    """
    if isinstance(saved, Mapping) and "genotype" in saved and "config" in saved:
        return Genotype.parse(saved["genotype"]), from_dict(EvalConfig, saved["config"])
    if study is None or not {"evaluations", "genotypes"} <= set(study.folders()):
        return None
    rows = read_rows(study, "evaluations", trial_id, ("genotype_id", "config"))
    if not rows:
        return None
    texts = read_table(study, "genotypes", ["genotype"], only={"genotype_id": [rows[0]["genotype_id"]]})["genotype"]
    return (Genotype.parse(texts.iloc[0]), from_dict(EvalConfig, json.loads(rows[0]["config"]))) if len(texts) else None
