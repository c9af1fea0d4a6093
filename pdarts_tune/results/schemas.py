"""The columns of the five Parquet tables: types, units and what each one means. Every file carries this description.

Other people's scripts rely on the columns. After a change here, raise SCHEMA_VERSION and give the reason in the README.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from pdarts_tune.pdarts.space import PRIMITIVES

SCHEMA_VERSION = 2
# results/tables.py reads files of version 1 too. Their seconds and peaks hold the diagnostics; the reader takes the seconds off.
STATUSES = ("completed", "failed", "out_of_memory", "running")

_TEXT, _INTEGER, _NUMBER = pa.string(), pa.int64(), pa.float64()
_TIME = pa.timestamp("ms", tz="UTC")
# Compact types only in the table of thousands of rows a trial. In memory narrow integers are a trap: NumPy wraps around silently
# (int8: 3 * 100 is 44), and categories do not join as text does. Parquet files are small either way.
_SMALL, _REPEATED = pa.int16(), pa.dictionary(pa.int32(), pa.string())
_FLAG = pa.bool_()
_NUMBERS, _FLAGS = pa.list_(pa.float64()), pa.list_(pa.bool_())


def _column(name: str, kind: Any, unit: str, description: str, *, optional: bool = False, choices: Sequence[str] = ()) -> Any:
    metadata = {"description": description, "unit": unit} | ({"choices": ",".join(choices)} if choices else {})
    return pa.field(name, kind, nullable=optional, metadata=metadata)


def _optional(name: str, kind: Any, unit: str, description: str) -> Any:
    return _column(name, kind, unit, description, optional=True)


def _later(name: str, kind: Any, unit: str, description: str, *, choices: Sequence[str] = ()) -> Any:
    """A column that is newer than the first results; older files are read with nulls there."""
    field = _column(name, kind, unit, description, optional=True, choices=choices)
    return field.with_metadata({**field.metadata, b"later": b"yes"})


def _operation_counts() -> list[Any]:
    """Of all operations except the skip-connect, whose columns are older."""
    cells = {"normal": "the normal cell derived now, before refinement", "reduce": "the reduction cell derived now"}
    names = [name for name in PRIMITIVES if name not in ("none", "skip_connect")]
    return [
        _column(f"{cell}_{name}_count", _INTEGER, "count", f"{name} in {what}") for cell, what in cells.items() for name in names
    ]


def _costs() -> list[Any]:
    """Both of the stage's search network, so that they compare."""
    resources = [
        ("params", _INTEGER, "count", "weights of the cells' operations", ""),
        ("macs", _INTEGER, "count", "multiply-accumulates of the cells' operations for one image", ""),
        ("latency_seconds", _NUMBER, "seconds", "sum of the measured latencies of the cells' operations", "; null without a table"),
    ]
    drawn = "in the search network, expected by its probabilities"
    derived = "in a network of its depth and width with the cells derived now"
    return [
        column
        for name, kind, unit, what, null in resources
        for column in (
            _later(f"expected_{name}", _NUMBER, unit, f"{what} {drawn}{null or '; null with independent weights'}"),
            _later(f"derived_{name}", kind, unit, f"{what} {derived}{null}"),
        )
    ]


_DERIVED_EPOCH = "at a stage's last epoch, the epoch whose alphas decide; earlier after an early stop. Null at other epochs"

_AGREEMENT = "cosine between the alphas' gradients of"

_TRIAL_ID = _column("trial_id", _TEXT, "text", "the trial; also the name of the file")
_STAGE = _column("stage", _INTEGER, "index from 1", "stage of the search, or candidate of a random search; 0: drawn, no search")
_EPOCH = _column("epoch", _INTEGER, "index from 0", "epoch in the stage, counted as the schedules' formulas count")
_PEAK = "most memory in use, diagnostics apart: a GPU's tensors, or on a CPU the whole process; null where not measured"
_PEAK_BYTES = _optional("peak_bytes", _INTEGER, "bytes", _PEAK)
_RUN = [
    _optional("device", _TEXT, "text", "the device, as its driver names it"),
    _column("started", _TIME, "UTC", "start of the first attempt"),
    _optional("finished", _TIME, "UTC", "end; null while it runs"),
    _column("attempts", _INTEGER, "count", "number of starts, 1 if nothing went wrong"),
    _optional("seconds", _NUMBER, "seconds", "time of training and validation alone, all attempts"),
    _PEAK_BYTES,
]
_CELLS = "how cells were computed: `kernels` (C), or `plain` (a module an operation)"
_GENOTYPE_ID = _column("genotype_id", _TEXT, "text", "names the genotype by its content")
_PARAMS = _column("params", _INTEGER, "count", "weights of the evaluation network, without the auxiliary head")
_MACS = _column("macs", _INTEGER, "count", "multiply-accumulates of convolutions and linear layers for one image")
_TF32 = _later("tf32", _FLAG, "flag", "whether products and convolutions on CUDA round to TensorFloat-32")
_GRAPH = _later("graph", _FLAG, "flag", "whether training steps ran as CUDA graphs; null in earlier rows, and without training")
_SEEDS = [
    _column("seed", _INTEGER, "number", "initial weights and alphas, batch order, augmentation, dropout masks"),
    _column("split_seed", _INTEGER, "number", "which images train, and which validate"),
]
_LEFT_OUT = _later("left_out", _INTEGER, "images", "images that could not be used and were left out; null if not known")
_IMAGES = [
    _later("train_images", _INTEGER, "images", "training images used, those held out included; null if not known"),
    _later("mean", _NUMBERS, "fraction", "per channel, subtracted from images scaled to [0, 1]; null if not known"),
    _later("std", _NUMBERS, "fraction", "per channel, images are then divided by it; null if not known"),
]
_STATUS = _column("status", _TEXT, "text", "state of the trial", choices=STATUSES)

_COLUMNS: dict[str, list[Any]] = {
    "trials": [
        _column("study", _TEXT, "text", "the study"),
        _column("variant", _TEXT, "text", "the variant: one visible difference from the study's base configuration"),
        _TRIAL_ID,
        *_SEEDS,
        _STATUS,
        _optional("error", _TEXT, "text", "message of the error that ended it; null if there was none"),
        _column("method", _TEXT, "text", "how the genotype is found, a name in config/methods.py; random: drawn, without a search"),
        _column("data", _TEXT, "text", "the data set"),
        _column("depths", _TEXT, "cells", "depth of each stage's search network, such as 5-11-17"),
        _column("operations", _TEXT, "count", "candidate operations per edge in each stage, such as 8-5-3"),
        _column("skip_dropout", _TEXT, "rate", "initial dropout on skip-connects in each stage, such as 0.0-0.4-0.7"),
        _column("epochs", _TEXT, "epochs", "epochs of each stage, such as 25-25-25"),
        _column("max_skips", _INTEGER, "count", "skip-connects allowed in the normal cell"),
        _column("channels", _INTEGER, "count", "initial channels of the search network"),
        _column("batch_size", _INTEGER, "images", "images a batch"),
        _later("cell_evaluation", _TEXT, "text", f"{_CELLS}; `fast` in earlier rows", choices=("kernels", "plain", "fast")),
        _later("recompute", _FLAG, "flag", "whether cells keep their inputs alone for backward and compute the rest again"),
        _later("precision", _TEXT, "text", "fp32, or bf16: mixed precision", choices=("fp32", "bf16")),
        _TF32,
        _later("compile", _FLAG, "flag", "whether cells are compiled"),
        _later("channels_last", _FLAG, "flag", "whether images are in channels-last memory from the stem on"),
        _later("deterministic", _FLAG, "flag", "whether only deterministic algorithms are allowed"),
        _GRAPH,
        _later("space", _TEXT, "text", "what the first stage starts from: a name of pdarts/space.py, or own: config has its edges"),
        _later("remedies", _TEXT, "text", "remedies against collapse, names of config/remedies.py joined by +; empty: none"),
        _column("config", _TEXT, "JSON", "the whole configuration"),
        _column("config_id", _TEXT, "text", "names the configuration by its content"),
        _optional("commit", _TEXT, "text", "commit of the code; `unknown` outside its repository"),
        _column("versions", _TEXT, "JSON", "versions of Python and of the libraries"),
        *_RUN,
        _LEFT_OUT,
        *_IMAGES,
        _later("diagnostic_seconds", _NUMBER, "seconds", "time of diagnostics, apart from seconds: the sum of its epochs'"),
    ],
    "epochs": [
        _TRIAL_ID,
        _STAGE,
        _EPOCH,
        _column("phase", _TEXT, "text", "what trains: weights alone, or weights and alphas", choices=("weights", "both")),
        _column("train_loss", _NUMBER, "nats", "cross-entropy on the images that train weights, while training"),
        _column("train_accuracy", _NUMBER, "fraction", "accuracy on the images that train weights, while training"),
        _column("validation_loss", _NUMBER, "nats", "cross-entropy on the validation images (SNAS: a sample a batch)"),
        _column("validation_accuracy", _NUMBER, "fraction", "accuracy of the search network on the validation images"),
        _column("learning_rate", _NUMBER, "rate", "learning rate of the weights"),
        _column("skip_dropout", _NUMBER, "rate", "dropout on skip-connects"),
        _column("seconds", _NUMBER, "seconds", "time of the epoch's training and validation alone"),
        _column("diagnostic_seconds", _NUMBER, "seconds", "time of inherited accuracy, agreement and eigenvalue, beside seconds"),
        _column("images_per_second", _NUMBER, "images/second", "images that trained weights, over the training time"),
        _PEAK_BYTES,
        _column("normal_skip_count", _INTEGER, "count", "skip-connects of the normal cell derived now, before refinement"),
        _column("reduce_skip_count", _INTEGER, "count", "skip-connects of the reduction cell derived now"),
        _column("normal_skip_mass", _NUMBER, "probability", "mean probability of skip_connect over the normal cell's edges"),
        _column("reduce_skip_mass", _NUMBER, "probability", "mean probability of skip_connect over the reduction cell's edges"),
        *_operation_counts(),
        _column("collapsed", _FLAG, "flag", "whether skip-connects are over half of the normal cell derived now, unrefined"),
        _column("alpha_entropy", _NUMBER, "nats", "mean entropy of probabilities (or shares of weights) over both cells' edges"),
        _optional("alpha_margin", _NUMBER, "probability", "best less second probability, mean over edges; null without a choice"),
        _optional("inherited_accuracy", _NUMBER, "fraction", "validation accuracy of the cell derived now, in these weights"),
        _optional("normal_agreement", _NUMBER, "cosine", f"mean {_AGREEMENT} all pairs of normal cells; null if one cell"),
        _optional("normal_first_last", _NUMBER, "cosine", f"{_AGREEMENT} the first and the last normal cell; null if one"),
        _optional("reduce_agreement", _NUMBER, "cosine", f"{_AGREEMENT} the two reduction cells"),
        _optional("hessian_eigenvalue", _NUMBER, "nats", "largest eigenvalue of the validation loss's Hessian by the alphas"),
        _optional("derived_epoch", _INTEGER, "index from 0", _DERIVED_EPOCH),
        _column("finished", _TIME, "UTC", "end of the epoch"),
        _later("diagnostic_peak_bytes", _INTEGER, "bytes", "peak_bytes of the diagnostics; null where there were none"),
        *_costs(),
    ],
    "alphas": [
        _TRIAL_ID.with_type(_REPEATED),
        _STAGE.with_type(_SMALL),
        _EPOCH.with_type(_SMALL),
        _column("cell", _REPEATED, "text", "the cell type", choices=("normal", "reduce")),
        _column("edge", _SMALL, "index from 0", "edge, in the order of pdarts/space.py, EDGES"),
        _column("source", _SMALL, "index from 0", "state that the edge reads: 0 and 1 are the inputs, 2 to 5 the nodes"),
        _column("node", _SMALL, "index from 0", "node that the edge leads to"),
        _column("operation", _REPEATED, "text", "candidate operation"),
        _column("alpha", _NUMBER, "logit", "architecture parameter"),
        _column("probability", _NUMBER, "probability", "softmax(alpha) over the edge's candidates; if independent: sigmoid(alpha)"),
        _optional("edge_weight", _NUMBER, "weight", "the edge's weight in its node; null where edges have none"),
    ],
    "genotypes": [
        _TRIAL_ID,
        _STAGE,
        _column("max_skips", _INTEGER, "count", "skip-connects allowed in the normal cell"),
        _GENOTYPE_ID,
        _column("genotype", _TEXT, "text", "the genotype as DARTS-family code prints it"),
        _column("skips", _INTEGER, "count", "skip-connects of the normal cell"),
        _column("depth", _INTEGER, "edges", "longest path of the normal cell"),
        _column("width", _NUMBER, "nodes", "width of the normal cell"),
        _PARAMS,
        _MACS,
        _optional("inherited_accuracy", _NUMBER, "fraction", "validation accuracy of the cell in the search network's weights"),
    ],
    "evaluations": [
        _GENOTYPE_ID,
        _column("trial_id", _TEXT, "text", "this evaluation, not the search that found the genotype; also the name of the file"),
        _column("data", _TEXT, "text", "the data set"),
        _column("recipe", _TEXT, "text", "name of the training recipe"),
        _column("recipe_id", _TEXT, "text", "names the recipe by its content, without data set and seeds"),
        _column("config", _TEXT, "JSON", "the whole configuration"),
        *_SEEDS,
        _STATUS,
        _optional("failure", _TEXT, "text", "message of the error that ended it; null if there was none"),
        _column("epochs", _INTEGER, "epochs", "epochs to train"),
        _optional("accuracy", _NUMBER, "fraction", "of the last epoch's network on the test images: what is reported"),
        _optional("top5_accuracy", _NUMBER, "fraction", "the right class among the five most probable ones"),
        _optional("error_percent", _NUMBER, "percent", "100 (1 - accuracy)"),
        _optional("loss", _NUMBER, "nats", "cross-entropy of the last epoch's network on the test images"),
        _optional("last_validation_accuracy", _NUMBER, "fraction", "after the last epoch"),
        _optional("best_validation_accuracy", _NUMBER, "fraction", "of the best epoch; never reported as the result"),
        _optional("best_epoch", _INTEGER, "index from 0", "epoch with the best validation accuracy"),
        _optional("train_accuracies", _NUMBERS, "fraction", "training accuracy, epoch by epoch"),
        _optional("validation_accuracies", _NUMBERS, "fraction", "epoch by epoch; null without a validation part"),
        _optional("correct", _FLAGS, "flag", "whether each test image is classified rightly, in the set's order"),
        _PARAMS.with_nullable(True),  # null where the evaluation never got as far
        _MACS.with_nullable(True),
        *_RUN,
        _LEFT_OUT,
        _later("shared", _INTEGER, "images", "test images that are among the training images too; null if not known"),
        *_IMAGES,
        _later("cell_evaluation", _TEXT, "text", _CELLS, choices=("kernels", "plain")),
        _TF32,
        _GRAPH,
    ],
}

SCHEMAS: Mapping[str, Any] = {
    table: pa.schema(columns, metadata={"table": table, "schema_version": str(SCHEMA_VERSION)})
    for table, columns in _COLUMNS.items()
}

PRIMARY_KEYS: Mapping[str, tuple[str, ...]] = {
    "trials": ("trial_id",),
    "epochs": ("trial_id", "stage", "epoch"),
    "alphas": ("trial_id", "stage", "epoch", "cell", "edge", "operation"),
    "genotypes": ("trial_id", "stage", "max_skips"),
    "evaluations": ("trial_id",),
}
