"""Which schedule is best? Stages, depths, operations kept, dropout and M, for error, time and memory at once.

python studies/schedule_search.py                     # laptop: 16 schedules on digits, 11 minutes on 2 cores
python studies/schedule_search.py --preset paper      # 60 schedules at the paper's size, on a GPU cluster
python studies/schedule_search.py --samples 40        # more schedules in the same folder

The base's own schedule comes first. The answer is a Pareto front: the schedules that none other beats in everything.
"""

from pathlib import Path

from pdarts_tune import SearchConfig, Study, Variant, main


def variants(base: SearchConfig) -> list[Variant]:
    return [Variant("base", base)]


STUDY = Study(
    name="schedule_search",
    question="Which stages, depths, operations, dropout and skip limit give low error, short searches and little memory?",
    variants=variants,
    adaptive=True,
    report=Path(__file__).parents[1] / "analysis" / "schedule_search.py",
)

if __name__ == "__main__":
    main(STUDY)
