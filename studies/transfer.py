"""RQ4: do cells found on CIFAR transfer to ImageNet (mobile setting), and is their ranking the same under another recipe?

python studies/transfer.py                        # laptop: published cells and a random one on digits, 4 minutes on 2 cores
python studies/transfer.py --preset paper         # on CIFAR-10, CIFAR-100 and ImageNet, on a GPU cluster
python studies/transfer.py --genotypes c10=results/depth_gap,c100=results_c100/depth_gap,PDARTS_C10    # what you found

Nothing is searched. Every cell is trained by the same recipe on each data set, and once more by a second recipe. In the mobile
setting a cell of more than 600M multiply-adds is refused before anything is trained.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pdarts_tune import PUBLISHED, RECIPES, EvalConfig, RandomSampling, SearchConfig, Study, Variant, given_variants, main

CELLS = ("PDARTS_C10", "DARTS_V1", "DARTS_V2", "SNAS_MILD", "PC_DARTS_C10")


def variants(base: SearchConfig) -> list[Variant]:
    published = given_variants({name.lower(): (name, PUBLISHED[name].genotype) for name in CELLS}, base)
    return [*published, Variant("random", replace(base, method=RandomSampling()))]


def evaluations(base: EvalConfig, data: Sequence[str]) -> list[EvalConfig]:
    """A main and a second recipe for each data set; the second of small presets is the first without its regularisers."""
    if base.recipe != "cifar":
        plain = replace(base, recipe=f"{base.recipe}-plain", cutout=0, drop_path=0.0, auxiliary_weight=0.0)
        return [replace(recipe, data=name) for recipe in (base, plain) for name in data]
    sets = data if len(data) > 1 else (*data, "cifar100", "imagenet")
    mobile = {name: name == "imagenet" or name.startswith("folder:") for name in sets}
    names = [("imagenet-mobile", "imagenet-mobile-short") if mobile[name] else ("cifar", "cifar-short") for name in sets]
    return [replace(RECIPES[pair[arm]], data=name) for arm in (0, 1) for pair, name in zip(names, sets, strict=True)]


STUDY = Study(
    name="transfer",
    question="Do cells found on CIFAR transfer to ImageNet, and is their ranking stable under other recipes? (RQ4)",
    variants=variants,
    evaluations=evaluations,
    report=Path(__file__).parents[1] / "analysis" / "rq4_transfer.py",
)

if __name__ == "__main__":
    main(STUDY)
