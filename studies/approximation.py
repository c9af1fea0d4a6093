"""RQ2: does search space approximation keep quality while it cuts memory and time?

python studies/approximation.py                   # laptop: digits, 12 minutes on 2 cores
python studies/approximation.py --preset paper    # the paper's settings, on a GPU cluster
python studies/approximation.py --memory-limit 16000000000    # which arms fit into 16 GB? Out of memory is a result

`nothing_dropped` has the base's batch and takes more memory, `nothing_dropped_same_memory` the base's memory and a smaller batch.
It has so many fewer epochs that it takes about as many steps as the base, as near as whole epochs allow; the report has the ratio.
Dropping counts as no worse if it costs less than 0.3 points of test error (the margin of `analysis/rq2_approximation.py`).
"""

from dataclasses import replace
from pathlib import Path

from pdarts_tune import RandomSampling, SearchConfig, Study, Variant, main, peak_work, with_epochs, with_operations


def variants(base: SearchConfig) -> list[Variant]:
    def keep(*operations: int) -> SearchConfig:
        return replace(base, stages=with_operations(base.stages, operations))

    nothing = keep(8, 8, 8)
    fitting = max(1, int(base.batch_size * peak_work(base.stages) / peak_work(nothing.stages)))
    same_steps = with_epochs(nothing.stages, fitting / base.batch_size)
    same_memory = replace(nothing, batch_size=fitting, stages=same_steps)
    return [
        Variant("lowest_dropped", base),  # 8, 5, 3 operations, the least probable ones dropped
        Variant("random_dropped", replace(base, dropping="random")),
        Variant("nothing_dropped", nothing),
        Variant("nothing_dropped_same_memory", same_memory),
        Variant("keep_8_3_2", keep(8, 3, 2)),
        Variant("keep_5_5_3", keep(5, 5, 3)),  # the first stage starts from five operations an edge, drawn at random
        Variant("random", replace(base, method=RandomSampling())),
    ]


STUDY = Study(
    name="approximation",
    question="Does search space approximation keep quality while it cuts memory and time? (RQ2)",
    variants=variants,
    report=Path(__file__).parents[1] / "analysis" / "rq2_approximation.py",
)

if __name__ == "__main__":
    main(STUDY)
