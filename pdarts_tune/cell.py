"""Everything that is known of a cell without images, in seconds: its picture, size, memory, and estimates of what it is worth.

python -m pdarts_tune.cell PDARTS_C10
python -m pdarts_tune.cell PDARTS_C10 --compare DARTS_V2 random:0 --estimator nb301:FOLDER table:FILE
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from pdarts_tune.config.command_line import parse
from pdarts_tune.config.serialize import ConfigError

if TYPE_CHECKING:
    from pdarts_tune.pdarts.genotype import CellGenotype, Genotype

SETTINGS = {"CIFAR": "cifar", "ImageNet mobile": "imagenet-mobile-256"}  # with the recipe whose training's memory is shown


@dataclass(frozen=True)
class Arguments:
    """A cell, and what to show beside it."""

    genotype: Annotated[str, tyro.conf.Positional]
    """A published name (PDARTS_C10), a text, a file, random:SEED or a study's results folder."""
    compare: tuple[str, ...] = ()
    """Further ones, side by side."""
    max_skips: str | None = None
    """Skip limits of the cells from results folders and of random genotypes: 2, 0,2 or 0..8."""
    estimator: tuple[str, ...] = ()
    """nb301:FOLDER, nb301:FOLDER@EPOCH, table:FILE, or a model and a table, which then ranks the estimate."""
    figure: Path | None = None
    """Also draw the cells as graphs, in FIGURE.png and FIGURE.svg (of several genotypes FIGURE-0, FIGURE-1, ...)."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Exits with 0 or 2 (bad input)."""
    settings = parse(Arguments, arguments, prog="python -m pdarts_tune.cell", description=__doc__ or "")
    from pdarts_tune.evaluation.compare import find_all
    from pdarts_tune.evaluation.estimates import describe_estimates

    try:
        genotypes, _ = find_all((settings.genotype, *settings.compare), settings.max_skips)
        estimates = describe_estimates(genotypes, settings.estimator)
        if settings.figure is not None:
            _draw(genotypes, settings.figure)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    for label, genotype in genotypes.items():
        print(f"{label}  {genotype}\n\n{picture(genotype)}\n")
    print(side_by_side({label: measure(genotype) | estimates[label] for label, genotype in genotypes.items()}))


def _draw(genotypes: dict[str, Genotype], path: Path) -> None:
    from pdarts_tune.results.cell_figures import draw_genotype, save_figure

    for index, (label, genotype) in enumerate(genotypes.items()):
        place = path if len(genotypes) == 1 else path.with_name(f"{path.name}-{index}")
        try:
            save_figure(draw_genotype(genotype, label), place)
        except OSError as error:
            raise ConfigError(f"figure: {place} cannot be written ({error.strerror})") from None


def picture(genotype: Genotype) -> str:
    """Both cells as text: a column a node, a row a state that it reads."""
    from tabulate import tabulate

    def draw(name: str, cell: CellGenotype) -> str:
        states = ["c_{k-2}", "c_{k-1}", *(f"node {node}" for node in range(cell.num_nodes))]
        rows = [[state, *[""] * cell.num_nodes] for state in states]
        for index, (operation, source) in enumerate(cell.edges):
            before = rows[source][1 + index // 2]
            rows[source][1 + index // 2] = f"{before} + {operation}" if before else operation
        joined = ", ".join(states[state] for state in cell.concat)
        read = [row for row in rows if any(row[1:])]
        return f"{tabulate(read, [f'{name} cell', *states[2:]], 'simple')}\nc_k joins {joined}"

    return "\n\n".join(draw(name, cell) for name, cell in (("normal", genotype.normal), ("reduction", genotype.reduce)))


def measure(genotype: Genotype) -> dict[str, str]:
    """Shape, size and memory, as texts by their headings."""
    import torch

    from pdarts_tune.config.evaluation import find_recipe
    from pdarts_tune.networks.cost import network_cost, predict_evaluation_bytes
    from pdarts_tune.networks.evaluation_network import CIFAR, IMAGENET_MOBILE
    from pdarts_tune.pdarts.published import PUBLISHED

    texts = {}
    for name, cell in (("normal", genotype.normal), ("reduction", genotype.reduce)):
        texts[f"{name} cell: depth, width, skips"] = f"{cell.depth}, {cell.width:g}, {cell.skips}"
    for (setting, recipe), shape in zip(SETTINGS.items(), (CIFAR, IMAGENET_MOBILE), strict=True):
        config, cost = find_recipe(recipe), network_cost(genotype, shape)
        needed = predict_evaluation_bytes(genotype, shape, config, torch.device("cuda"))
        texts |= {
            f"{setting}: params, M": f"{cost.params / 1e6:.2f}",
            f"{setting}: multiply-adds, M (conv + linear)": f"{cost.macs / 1e6:.1f}",
            f"{setting}: multiply-adds, M (as papers count)": f"{cost.madds / 1e6:.1f}",
            f"{setting}: GPU memory, GB, to train with batches of {config.batch_size} in CUDA graphs": f"{needed / 1e9:.2f}",
        }
    paper = next((paper for paper in PUBLISHED.values() if paper.genotype == genotype), None)
    printed = (paper.params_millions, paper.imagenet_params_millions, paper.imagenet_madds_millions) if paper else ()
    listed = "; ".join("–" if figure is None else f"{figure:g}" for figure in printed)
    return texts | {"printed: params, M; on ImageNet; multiply-adds, M": listed}


def side_by_side(columns: dict[str, dict[str, str]]) -> str:
    """A table with a column a genotype and a row a figure."""
    from tabulate import tabulate

    names = dict.fromkeys(name for texts in columns.values() for name in texts)
    rows = [[name, *(texts.get(name) or "–" for texts in columns.values())] for name in names]
    return tabulate(rows, ["", *columns], "simple", disable_numparse=True, colalign=("left", *["right"] * len(columns)))


if __name__ == "__main__":
    main()
