"""What a cell is worth without training it: the model of a benchmark, or a table of trained cells.

`nb301:FOLDER` is NAS-Bench-301 (Zela et al., ICLR 2022) as YAHPO Gym distributes it: `model.onnx` and `encoding.json`. The model
predicts the validation accuracy on CIFAR-10 of a network of 8 cells and 32 channels after up to 98 epochs; `nb301:FOLDER@50` asks
for 50. `table:FILE` looks cells up in a CSV or Parquet file. Either has a recipe of its own, and is never averaged with trainings.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd

from pdarts_tune.config.evaluation import ESTIMATORS
from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.pdarts.genotype import CellGenotype, Genotype
from pdarts_tune.pdarts.space import EDGES, PRIMITIVES
from pdarts_tune.results.schemas import SCHEMAS

MOST_EPOCHS = 98
_PREFIX = "NetworkSelectorDatasetInfo_COLON_darts_COLON_"
_NOT_CHOSEN = "#na#"
_CELLS = ("normal", "reduce")
# The model's inputs in their order: an operation for each edge, then the pair of states that each node but the first reads.
CATEGORIES = tuple(f"{_PREFIX}edge_{cell}_{edge}" for cell in _CELLS for edge in range(len(EDGES))) + tuple(
    f"{_PREFIX}inputs_node_{cell}_{state}" for cell in _CELLS for state in (3, 4, 5)
)


class Estimate(NamedTuple):
    accuracy: float  # fraction
    training_seconds: float | None = None  # that the benchmark predicts for its own training


def open_estimator(name: str) -> Estimator:
    """The estimator `nb301:FOLDER`, `nb301:FOLDER@EPOCH` or `table:FILE`. Raises ConfigError."""
    kind, _, place = name.partition(":")
    if not place or kind not in ESTIMATORS:
        raise ConfigError(f"estimator: {name!r} is wrong, it must be nb301:FOLDER, nb301:FOLDER@EPOCH or table:FILE")
    return Table(Path(place)) if kind == "table" else NasBench301(place)


def encode(genotype: Genotype, encoding: Mapping[str, Mapping[str, int]]) -> list[int]:
    """The 34 codes of a genotype that `outside_benchmark` has no objection to."""
    values = dict.fromkeys(CATEGORIES, _NOT_CHOSEN)
    for name, cell in zip(_CELLS, (genotype.normal, genotype.reduce), strict=True):
        for node in range(cell.num_nodes):
            pair = cell.edges[2 * node : 2 * node + 2]
            for operation, source in pair:
                values[f"{_PREFIX}edge_{name}_{EDGES.index((source, node))}"] = operation
            if node:  # the first node reads both inputs
                values[f"{_PREFIX}inputs_node_{name}_{2 + node}"] = "_".join(str(source) for source in sorted(s for _, s in pair))
    return [encoding[category][values[category]] for category in CATEGORIES]


def outside_benchmark(genotype: Genotype) -> str | None:
    """Why a genotype is not of NAS-Bench-301's search space; None: it is."""
    for name, cell in zip(("normal", "reduction"), (genotype.normal, genotype.reduce), strict=True):
        if cell.num_nodes != 4 or sorted(cell.concat) != [2, 3, 4, 5]:
            return f"its {name} cell has not four nodes that are all joined"
        for operation, _ in cell.edges:
            if operation not in PRIMITIVES:
                return f"its {name} cell has {operation}, the benchmark has {', '.join(PRIMITIVES[1:])}"
        for node in range(4):
            if cell.edges[2 * node][1] == cell.edges[2 * node + 1][1]:
                return f"node {node} of its {name} cell uses one edge twice"
    return None


class _Named:
    """An estimator's names in the tables: `recipe`, `recipe_id`, and `settings`, all that decides its figures."""

    recipe: str

    def __init__(self, data: str, epochs: int, *contents: bytes) -> None:
        digest = hashlib.sha256(b"\0".join([*contents, str(epochs).encode()])).hexdigest()
        self.recipe_id = f"{self.recipe}-{digest[:8]}"
        self.data = data
        self.settings = {"recipe": self.recipe, "data": data, "epochs": epochs, "digest": digest}

    def row(self, genotype: Genotype, estimate: Estimate) -> dict[str, Any]:
        """The row of `evaluations`. Nothing was trained, so it has no seconds, size or device."""
        now = datetime.now(UTC)
        return dict.fromkeys(SCHEMAS["evaluations"].names) | {
            "genotype_id": genotype.genotype_id,
            "trial_id": f"{genotype.genotype_id}-{self.recipe_id}",
            "data": self.data,
            "recipe": self.recipe,
            "recipe_id": self.recipe_id,
            "config": json.dumps(self.settings),
            "seed": 0,
            "split_seed": 0,
            "status": "completed",
            "epochs": self.settings["epochs"],
            "accuracy": estimate.accuracy,
            "error_percent": 100 * (1 - estimate.accuracy),
            "seconds": 0.0,
            "started": now,
            "finished": now,
            "attempts": 1,
        }


class NasBench301(_Named):
    """The model in a folder.

    Raises:
        ConfigError: onnxruntime is not installed; an epoch outside 1 to 98; no such files, or of another model.
    """

    recipe = "nb301"

    def __init__(self, place: str) -> None:
        self._place = place
        path, at, epoch = place.rpartition("@")
        folder = Path(path if at and epoch.lstrip("-").isdecimal() else place)
        self.epoch = int(epoch) if at and epoch.lstrip("-").isdecimal() else MOST_EPOCHS
        if not 1 <= self.epoch <= MOST_EPOCHS:
            raise ConfigError(f"estimator: epoch {self.epoch} is wrong, NAS-Bench-301 has epochs 1 to {MOST_EPOCHS}")
        contents = [_read(folder / name) for name in ("model.onnx", "encoding.json")]
        self._session = _open_model(folder / "model.onnx", contents[0])
        self._encoding = _check_encoding(folder / "encoding.json", contents[1])
        super().__init__("cifar10", self.epoch, *contents)

    def __reduce__(self) -> tuple[type[NasBench301], tuple[str]]:
        """Ray Tune saves the study's state, and onnxruntime's session cannot be saved: a copy opens the files again."""
        return NasBench301, (self._place,)

    why_not = staticmethod(outside_benchmark)

    def estimate(self, genotypes: Sequence[Genotype]) -> list[Estimate]:
        """Of genotypes that all have one."""
        if not genotypes:
            return []
        codes = np.array([encode(genotype, self._encoding) for genotype in genotypes], dtype=np.int32)
        epochs = np.full((len(codes), 1), self.epoch, dtype=np.float32)
        names = [item.name for item in self._session.get_inputs()]
        (figures,) = self._session.run(None, dict(zip(names, (codes, epochs), strict=True)))
        if figures.shape != (len(codes), 2) or not np.isfinite(figures).all() or not (abs(figures[:, 0] - 50) <= 50).all():
            raise ConfigError("estimator: model.onnx is not NAS-Bench-301's, it gives other figures than a percentage and seconds")
        return [Estimate(float(accuracy) / 100, float(seconds)) for accuracy, seconds in figures]


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"estimator: {file}: cannot be read ({error.strerror})") from None


def _open_model(file: Path, content: bytes) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise ConfigError("estimator: nb301 needs onnxruntime, which pip install pdarts-tune[estimates] brings") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common base
        raise ConfigError(f"estimator: {file}: cannot be read as ONNX ({str(error).splitlines()[0]})") from None
    inputs = [(item.type, item.shape[1] if len(item.shape) == 2 else None) for item in session.get_inputs()]
    wanted = [("tensor(int32)", len(CATEGORIES)), ("tensor(float)", 1)]
    if inputs != wanted or len(session.get_outputs()) != 1:
        listed = ", ".join(f"{item.type} {item.shape}" for item in session.get_inputs())
        raise ConfigError(
            f"estimator: {file}: is another model, NAS-Bench-301's has inputs tensor(int32) (n, 34) and tensor(float) (n, 1) and "
            f"one output, this one's inputs are {listed or 'none'}"
        )
    return session


def _check_encoding(file: Path, content: bytes) -> Mapping[str, Mapping[str, int]]:
    try:
        encoding = json.loads(content)
    except ValueError as error:
        raise ConfigError(f"estimator: {file}: is not JSON ({error})") from None
    for category in CATEGORIES:
        state = int(category[-1])
        pairs = [f"{one}_{other}" for one, other in combinations(range(state), 2)]
        codes = encoding.get(category) if isinstance(encoding, dict) else None
        needed = [_NOT_CHOSEN, *(PRIMITIVES[1:] if "edge" in category else pairs)]
        if not isinstance(codes, dict) or not all(type(codes.get(value)) is int for value in needed):
            raise ConfigError(f"estimator: {file}: has no codes of {category}, it is not the encoding.json of NAS-Bench-301")
    return cast("Mapping[str, Mapping[str, int]]", encoding)


class Table(_Named):
    """Known cells: a file with a column `genotype` (or `normal` and `reduce`), and one `accuracy`, in percent or as a fraction.

    Where there is no column `accuracy`, the only one whose name ends so is taken. Of a cell with several rows the mean is known.

    Raises:
        ConfigError: the file cannot be read, lacks the columns, or a row is no cell or no accuracy.
    """

    recipe = "table"

    def __init__(self, file: Path) -> None:
        self.file = file
        content = _read(file)
        self.accuracies = _read_cells(file)
        super().__init__("unknown", 0, content)

    def why_not(self, genotype: Genotype) -> str | None:
        return None if sort_edges(genotype) in self.accuracies else f"{self.file} has no row of it"

    def estimate(self, genotypes: Sequence[Genotype]) -> list[Estimate]:
        return [Estimate(self.accuracies[sort_edges(genotype)]) for genotype in genotypes]


def sort_edges(genotype: Genotype) -> Genotype:
    """The genotype with each node's two edges in one order. Nodes add their edges, so it is the same network."""

    def sort(cell: CellGenotype) -> CellGenotype:
        nodes = (sorted(cell.edges[index : index + 2], key=lambda edge: edge[::-1]) for index in range(0, len(cell.edges), 2))
        return CellGenotype(tuple(edge for node in nodes for edge in node), cell.concat)

    return Genotype(sort(genotype.normal), sort(genotype.reduce))


def _read_cells(file: Path) -> dict[Genotype, float]:
    try:
        rows = pd.read_parquet(file) if file.suffix == ".parquet" else pd.read_csv(file)
    except Exception as error:  # the readers' exceptions have no common base
        raise ConfigError(f"estimator: {file}: cannot be read as a table ({str(error).splitlines()[0]})") from None
    named = ["accuracy"] if "accuracy" in rows else [name for name in rows if str(name).endswith("accuracy")]
    if not {"genotype"} <= set(rows) and not set(_CELLS) <= set(rows):
        raise ConfigError(f"estimator: {file}: has no column genotype (nor normal and reduce), it has {_listed(rows)}")
    if len(named) != 1:
        raise ConfigError(f"estimator: {file}: has no column accuracy, nor one alone whose name ends so, it has {_listed(rows)}")
    accuracies = pd.to_numeric(rows[named[0]], errors="coerce")
    bad = ~accuracies.between(0, 100)
    if rows.empty or bad.any():
        reason = f"row {int(bad.argmax()) + 1} has no accuracy between 0 and 100" if len(rows) else "has no rows"
        raise ConfigError(f"estimator: {file}: {reason}")
    texts = rows["genotype"] if "genotype" in rows else "Genotype(normal=" + rows["normal"] + ", reduce=" + rows["reduce"] + ")"
    known: dict[Genotype, list[float]] = {}
    for number, (text, accuracy) in enumerate(zip(texts, accuracies / (1 if accuracies.max() <= 1 else 100), strict=True), start=1):
        try:
            known.setdefault(sort_edges(Genotype.parse(str(text))), []).append(float(accuracy))
        except ValueError as error:
            raise ConfigError(f"estimator: {file}: row {number}: {error}") from None
    return {genotype: sum(values) / len(values) for genotype, values in known.items()}


def _listed(rows: pd.DataFrame) -> str:
    return ", ".join(map(str, rows.columns[:12])) or "none"


Estimator = NasBench301 | Table


def describe_estimates(genotypes: Mapping[str, Genotype], names: Sequence[str]) -> dict[str, dict[str, str]]:
    """By the genotypes' labels, the figures of each estimator as texts by their headings.

    The percentile is that among the cells of a table, where one is given: of the estimate among those cells' estimates by the same
    model, and of the table's accuracy among the table's.

    Raises:
        ConfigError: as `open_estimator`; a genotype is outside the benchmark, or a lone table does not have it.
    """
    from scipy.stats import percentileofscore

    estimators = [open_estimator(name) for name in names]
    tables = [estimator for estimator in estimators if isinstance(estimator, Table)]
    if len(tables) > 1 or len(estimators) > 2:
        raise ConfigError("estimator: takes one nb301 and one table")
    columns: dict[str, dict[str, str]] = {label: {} for label in genotypes}
    for estimator in sorted(estimators, key=lambda estimator: estimator.recipe):
        known = [genotype for genotype in (tables[0].accuracies if tables else ()) if estimator.why_not(genotype) is None]
        among = [estimate.accuracy for estimate in estimator.estimate(known)]
        for label, genotype in genotypes.items():
            reason, own = estimator.why_not(genotype), {"accuracy, %": "–"}
            if reason is None:
                ((accuracy, seconds),) = estimator.estimate([genotype])
                own = {"accuracy, %": f"{100 * accuracy:.2f}"}
            elif not isinstance(estimator, Table) or len(estimators) == 1:
                raise ConfigError(f"genotype: {label} has no estimate, {reason}")
            if among:
                rank = "–" if reason else f"{percentileofscore(among, accuracy, kind='mean'):.0f}"
                own[f"percentile of {len(among)} cells"] = rank
            if reason is None and seconds is not None:
                own["its training, hours"] = f"{seconds / 3600:.2f}"
            columns[label] |= {f"{estimator.recipe_id}: {heading}": text for heading, text in own.items()}
    return columns
