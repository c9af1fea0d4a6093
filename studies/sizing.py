"""How small may a training be that still tells cells apart?

python studies/sizing.py --preset cifar-small --evaluation-seeds 2     # 36 trainings, 34 minutes on 2 cores

Nothing is searched. PDARTS_C10 and random cells are trained twice each: by the preset's recipe, and by one of a quarter of its
images and epochs together. The report says how far cells differ, how far two trainings of one cell do, and whether the sizes order
cells alike. A recipe is worth its time if cells differ more than trainings do.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pdarts_tune import PUBLISHED, EvalConfig, RandomSampling, SearchConfig, Study, Variant, given_variants, main


def variants(base: SearchConfig) -> list[Variant]:
    published = given_variants({"pdarts_c10": ("PDARTS_C10", PUBLISHED["PDARTS_C10"].genotype)}, base)
    return [*published, Variant("random", replace(base, method=RandomSampling()))]


def evaluations(base: EvalConfig, data: Sequence[str]) -> list[EvalConfig]:
    """The preset's recipe and one that takes about a quarter of its steps: half of the images where the recipe counts them."""
    half = base.train_images and base.train_images // 2
    quarter = replace(
        base, recipe=f"{base.recipe}-quarter", train_images=half, epochs=max(1, base.epochs // (2 if half else 4)), warmup_epochs=0
    )
    return [replace(recipe, data=name) for recipe in (base, quarter) for name in data]


STUDY = Study(
    name="sizing",
    question="How small may a training be that still tells cells apart?",
    variants=variants,
    evaluations=evaluations,
    report=Path(__file__).parents[1] / "analysis" / "sizing.py",
)

if __name__ == "__main__":
    main(STUDY)
