"""RQ1: does growing the search depth close the gap between search and evaluation?

python studies/depth_gap.py                     # laptop preset: digits, 12 minutes at most on 2 cores
python studies/depth_gap.py --preset paper      # the paper's settings, on a GPU cluster
python studies/depth_gap.py --dry-run           # the trials and what each changes
"""

from dataclasses import replace
from pathlib import Path

from pdarts_tune.config import SearchConfig
from pdarts_tune.methods import RandomSampling
from pdarts_tune.stages import with_depths
from pdarts_tune.study import Study, Variant, main


def variants(base: SearchConfig) -> list[Variant]:
    depths = [stage.cells for stage in base.stages]

    def at(*cells: int) -> SearchConfig:
        return replace(base, stages=with_depths(base.stages, cells))

    return [
        Variant("progressive", base),
        Variant("shallow", at(*[min(depths)] * len(depths))),
        Variant("deep", at(*[max(depths)] * len(depths))),
        Variant("reversed", at(*reversed(depths))),
        Variant("random", replace(base, method=RandomSampling())),
    ]


STUDY = Study(
    name="depth_gap",
    question="Does growing the search depth close the gap between search and evaluation? (RQ1)",
    variants=variants,
    report=Path(__file__).parents[1] / "analysis" / "rq1_depth_gap.py",
)

if __name__ == "__main__":
    main(STUDY)
