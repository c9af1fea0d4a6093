"""RQ3b: what do P-DARTS' own remedies against collapse do beside those that others propose?

python studies/remedies.py                    # laptop: digits
python studies/remedies.py --preset paper     # the paper's stages, each remedy at its published setting, on a GPU cluster

The base is P-DARTS' stages without dropout and without a limit of skip-connects. Each variant adds one remedy. S2 and S3 are the
spaces in which DARTS is known to collapse. Schedules are linear over each stage's epochs.
"""

from dataclasses import replace
from pathlib import Path

from pdarts_tune import (
    AuxiliarySkip,
    BetaDecay,
    DropPath,
    FrozenOperations,
    IndependentWeights,
    PerturbedAlphas,
    Remedy,
    SearchConfig,
    StopAtSkips,
    Study,
    Variant,
    main,
    with_operations,
    with_skip_dropout,
)

ALONE: dict[str, Remedy] = {
    "auxiliary_skip": AuxiliarySkip(),
    "beta_decay": BetaDecay(),
    "perturbed_random": PerturbedAlphas(),
    "perturbed_adversarial": PerturbedAlphas("adversarial"),
    "frozen_operations": FrozenOperations(),
    "stop_at_skips": StopAtSkips(),
    "drop_path": DropPath(),
}


def variants(base: SearchConfig) -> list[Variant]:
    base = replace(base, eigenvalue_every=2)
    none = replace(base, stages=with_skip_dropout(base.stages, (0.0,) * len(base.stages)), max_skips=8)
    alone = {name: replace(none, remedies=(remedy,)) for name, remedy in ALONE.items()}

    def within(space: str, operations: int, config: SearchConfig) -> SearchConfig:
        return replace(config, space=space, stages=with_operations(config.stages, (operations,) * len(config.stages)))

    return [
        Variant("none", none),
        Variant("pdarts", base),  # dropout and the limit of skip-connects
        *(Variant(name, config) for name, config in alone.items()),
        # FairDARTS' alphas train at 3e-3, five times P-DARTS' rate.
        Variant(
            "independent_weights",
            replace(none, remedies=(IndependentWeights(),), alpha_learning_rate=round(5 * base.alpha_learning_rate, 6)),
        ),
        Variant("weight_decay", replace(none, weight_decay=81e-4)),  # the other lever of RobustDARTS: 27 times the usual 3e-4
        *(
            Variant(f"{name}_{space}", within(space, operations, config))
            for space, operations in (("S2", 2), ("S3", 3))
            for name, config in (
                ("none", none),
                ("pdarts", base),
                *((name, alone[name]) for name in ("auxiliary_skip", "beta_decay")),
            )
        ),
    ]


STUDY = Study(
    name="remedies",
    question="What do P-DARTS' remedies against collapse to skip-connects do beside those of others? (RQ3b)",
    variants=variants,
    report=Path(__file__).parents[1] / "analysis" / "remedies.py",
)

if __name__ == "__main__":
    main(STUDY)
