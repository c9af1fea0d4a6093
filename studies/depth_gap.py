"""RQ1: does growing the search depth close the gap between search and evaluation?

python studies/depth_gap.py --variants progressive,shallow,random --seeds 8    # make study: digits, 4 to 6 minutes on 2 cores
python studies/depth_gap.py                       # all variants: also budget and dropping held apart from depth, 25 minutes
python studies/depth_gap.py --preset paper        # the paper's settings, on a GPU cluster
python studies/depth_gap.py --dry-run             # the trials, what each changes, what they will take

`*_equal_budget` trains for as long as `progressive` does, `*_all_operations` drops nothing: between them depth can be told apart
from the time that it takes and from the operations that go when it grows.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pdarts_tune import RandomSampling, SearchConfig, Stages, Study, Variant, main, with_budget, with_depths, with_operations


def variants(base: SearchConfig) -> list[Variant]:
    depths = [stage.cells for stage in base.stages]
    shallowest, middle, deepest = min(depths), sorted(depths)[len(depths) // 2], max(depths)

    def at(cells: Sequence[int]) -> Stages:
        return with_depths(base.stages, cells)

    def flat(cells: int) -> Stages:
        return at([cells] * len(depths))

    def whole(stages: Stages) -> Stages:
        return with_operations(stages, [stages[0].operations] * len(stages))

    plans = {
        "progressive": base.stages,
        "shallow": flat(shallowest),
        "middle": flat(middle),
        "deep": flat(deepest),
        "reversed": at(depths[::-1]),
        "shuffled": at(depths[1:] + depths[:1]),  # no stage in its place: the reversed plan keeps the middle one
        "shallow_equal_budget": with_budget(flat(shallowest), base.stages),
        "middle_equal_budget": with_budget(flat(middle), base.stages),
        "deep_equal_budget": with_budget(flat(deepest), base.stages),
        "progressive_all_operations": whole(base.stages),
        "shallow_all_operations": whole(flat(shallowest)),
        "deep_all_operations": whole(flat(deepest)),
    }
    every = list(plans.values())  # in a small preset an equal budget can be the same plan, which is one variant
    arms = [
        Variant(name, replace(base, stages=stages)) for name, stages in plans.items() if name == list(plans)[every.index(stages)]
    ]
    return [*arms, Variant("random", replace(base, method=RandomSampling()))]


STUDY = Study(
    name="depth_gap",
    question="Does growing the search depth close the gap between search and evaluation? (RQ1)",
    variants=variants,
    report=Path(__file__).parents[1] / "analysis" / "rq1_depth_gap.py",
)

if __name__ == "__main__":
    main(STUDY)
