"""A study of RQ3 as synthetic.py makes studies, with cells that refinement changes, evaluated as derived and refined."""

import random
from dataclasses import replace

from pdarts_tune.config.methods import RandomSampling
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.pdarts.genotype import Genotype, random_genotype
from pdarts_tune.pdarts.progressive_depth import with_skip_dropout
from pdarts_tune.results.tables import read_rows, read_table
from synthetic import START, make_evaluations, make_study, write_rows
from synthetic_rows import genotype_row

BASE = SearchConfig()
VARIANTS = {
    "with": BASE,
    "without": replace(BASE, stages=with_skip_dropout(BASE.stages, (0.0, 0.0, 0.0))),
    "drawn": replace(BASE, method=RandomSampling(exactly=True)),
}


def make_limits_study(root, seeds, accuracy, folder="regularization", derived_skips=4):
    """A study of normal cells with so many skip-connects as derived (M = 8) and 2 refined; `accuracy` by variant and limit."""
    path = make_study(root, folder, VARIANTS, range(seeds), epochs=1, evaluation_seeds=())
    for trial in read_table(path, "trials").to_dict("records"):
        trial_id, variant = trial["trial_id"], trial["variant"]
        rows = read_rows(path, "genotypes", trial_id)
        last = max(row["stage"] for row in rows)
        rng = random.Random(trial_id)
        cells = {8: draw(rng, derived_skips)}
        cells[2] = cells[8] if derived_skips == 2 else draw(rng, 2)
        kept = [row for row in rows if row["stage"] < last]
        kept += [genotype_row(trial_id, last, limit, Genotype(cell.normal, cell.reduce), None) for limit, cell in cells.items()]
        write_rows(path, "genotypes", trial_id, kept)
        for row in kept[-2:]:
            mean = accuracy.get((variant, row["max_skips"]))
            if mean is not None:
                make_evaluations(path, row, "cifar10", START, (0,), 8000, mean)
    return path


def draw(rng, skips):
    """A cell of exactly so many skip-connects."""
    cell = random_genotype(rng, skips)
    while cell.normal.skips != skips:
        cell = random_genotype(rng, skips)
    return cell
