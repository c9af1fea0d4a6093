"""A study that takes seconds, for tests that kill it: searches of three epochs, an evaluation of one epoch, no report.

`python tests/survival_study.py --results PATH [--variants steady,nan,...]`
"""

from dataclasses import replace

from pdarts_tune import SearchConfig, Stage, Study, Variant, main

STAGES = (Stage(3, 8, 0.0, epochs=2, warmup_epochs=1), Stage(4, 3, 0.4, epochs=1, warmup_epochs=0))


def variants(base: SearchConfig) -> list[Variant]:
    small = replace(base, stages=STAGES)
    return [
        Variant("steady", small),
        Variant("nan", replace(small, learning_rate=1e30)),  # its loss overflows in the first epoch
    ]


STUDY = Study(
    name="survival",
    question="Does a study survive?",
    variants=variants,
    evaluations=lambda evaluation, sets: [replace(evaluation, data=name, epochs=1, cells=3) for name in sets],
)

if __name__ == "__main__":
    main(STUDY)
