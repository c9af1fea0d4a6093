"""The search methods that P-DARTS is compared with, on the same data with the same seeds.

python studies/baselines.py                     # laptop preset: digits
python studies/baselines.py --preset paper      # every method at its authors' own settings, on a GPU cluster
python studies/baselines.py --variants pdarts,darts_first,random
python studies/baselines.py --dry-run           # the trials and what each changes

In the smaller presets every method has the base's width, batch and data, and random search as many candidates as the time of
P-DARTS' search allows (`methods.equal_candidates`). At the authors' settings it has their 24 candidates.
"""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from pdarts_tune import (
    PRESETS,
    PUBLISHED_SEARCHES,
    Execution,
    Method,
    PartialChannels,
    RandomSampling,
    RandomSearch,
    SearchConfig,
    SecondOrder,
    Snas,
    Stage,
    Study,
    Variant,
    equal_candidates,
    main,
)


def variants(base: SearchConfig) -> list[Variant]:
    paper = PRESETS["paper"].search
    if min(PRESETS.values(), key=lambda preset: len(_changed(base, preset.search))).search != paper:
        return miniatures(base)
    # What the command line changed in the preset's base it changes in every method's search, but for stages: those are P-DARTS'.
    changed = _changed(base, paper)
    stages = changed.pop("stages", paper.stages)
    return [
        Variant(
            name,
            replace(
                search,
                **changed | {"execution": _execution(base, search.method)},
                stages=stages if search.stages == paper.stages else search.stages,
            ),
        )
        for name, search in PUBLISHED_SEARCHES.items()
    ]


def _changed(base: SearchConfig, preset: SearchConfig) -> dict[str, Any]:
    """The settings that differ from a preset's. The paper's differ from those of the other presets in six and more."""
    return {f.name: getattr(base, f.name) for f in fields(base) if getattr(base, f.name) != getattr(preset, f.name)}


def _execution(base: SearchConfig, method: Method) -> Execution:
    """The base's, but for PC-DARTS, which has no fast cells that could recompute anything."""
    return replace(base.execution, recompute=False) if isinstance(method, PartialChannels) else base.execution


def miniatures(base: SearchConfig) -> list[Variant]:
    """Every method at the base's width, batch and data, and at about the number of steps that P-DARTS takes.

    PC-DARTS has K = 2, since a quarter of four channels is too little to search with.

    A stage of DARTS has two thirds of P-DARTS' epochs, as in the papers, less so many as P-DARTS trains weights alone. SNAS steps
    weights and alphas together, so it has as many epochs as P-DARTS. PC-DARTS freezes alphas for 30 % of its epochs.

    Diagnostics are taken at every epoch and the Hessian's eigenvalue at every second one, which small searches can afford and which
    is what this study is looked at for: they change nothing in the search.
    """
    random = replace(base, method=RandomSampling())
    candidate = replace(base, max_skips=8)
    base = replace(base, diagnostics_every=1, eigenvalue_every=2)
    cells = base.stages[len(base.stages) // 2].cells
    epochs = sum(stage.epochs for stage in base.stages)
    short = max(2, round(epochs * 2 / 3))
    one = replace(base, max_skips=8, stages=(Stage(cells, 8, epochs=short, warmup_epochs=0),))
    snas = replace(one, stages=(Stage(cells, 8, epochs=epochs, warmup_epochs=0),))
    halves = PartialChannels(2)
    partial = replace(
        one,
        stages=(Stage(cells, 8, epochs=short, warmup_epochs=round(0.3 * short)),),
        method=halves,
        execution=_execution(base, halves),
    )
    each = max(1, epochs // 6)
    short_training = Stage(cells, 8, epochs=each, warmup_epochs=each)
    candidates = replace(candidate, stages=(short_training,), method=RandomSearch(equal_candidates(short_training, base.stages)))
    return [
        Variant("pdarts", base),
        Variant("darts_first", one),
        Variant("darts_second", replace(one, method=SecondOrder())),
        Variant("snas_mild", replace(snas, method=Snas(penalty="mild"))),
        Variant("snas_moderate", replace(snas, method=Snas(penalty="moderate"))),
        Variant("snas_aggressive", replace(snas, method=Snas(penalty="aggressive"))),
        Variant("pc_darts", partial),
        Variant("random_search", candidates),
        Variant("random", random),
    ]


STUDY = Study(
    name="baselines",
    question="Does P-DARTS find better cells than the methods it builds on?",
    variants=variants,
    report=Path(__file__).parents[1] / "analysis" / "baselines.py",
)

if __name__ == "__main__":
    main(STUDY)
