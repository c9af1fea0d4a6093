"""RQ3: do dropout on skip-connects and a limit on their number stabilise the search and improve what it finds?

python studies/regularization.py                  # laptop: digits, 16 minutes on 2 cores
python studies/regularization.py --preset paper   # the paper's settings, on a GPU cluster

Refinement changes what is derived from a search and not the search, so every M is had from the same searches: `dropout` is
evaluated at M = 0 to 4 and 8, `no_dropout` at 2 and 8. Those two variants at M = 2 (refined) and M = 8 (as derived) are the
2 x 2 of dropout and refinement.
"""

from dataclasses import replace
from pathlib import Path

from pdarts_tune import RandomSampling, SearchConfig, Study, Variant, main, with_skip_dropout


def variants(base: SearchConfig) -> list[Variant]:
    def rates(*initial: float) -> SearchConfig:
        return replace(base, stages=with_skip_dropout(base.stages, initial))

    no_jump = replace(base, stages=tuple(replace(stage, dropout_restart=False) for stage in base.stages))
    return [
        Variant("dropout", base, skip_limits=(0, 1, 2, 3, 4, 8)),  # initial rates 0, 0.4, 0.7
        Variant("no_dropout", rates(0.0, 0.0, 0.0), skip_limits=(2, 8)),
        Variant("rates_10_40_70", rates(0.1, 0.4, 0.7)),  # the authors' command line
        Variant("rates_10_20_30", rates(0.1, 0.2, 0.3)),  # the paper's on CIFAR-100
        Variant("no_jump", no_jump),  # the rate does not go back up when the alphas start to train
        Variant("dropout_on_reduce", replace(base, dropout_on_reduce=True)),  # stride-2 skip-connects too
        # As many skip-connects as the cell of `dropout` with the same seed, all else drawn: what they are worth without a search.
        Variant("random_same_skips", replace(base, method=RandomSampling(skips_of="dropout"))),
    ]


STUDY = Study(
    name="regularization",
    question="Do skip-connect dropout and a limit on skip-connects stabilise the search and improve what it finds? (RQ3)",
    variants=variants,
    report=Path(__file__).parents[1] / "analysis" / "rq3_regularization.py",
)

if __name__ == "__main__":
    main(STUDY)
