"""RQ3b: what do P-DARTS' own remedies against collapse do beside those of others?

python analysis/remedies.py --results results

Reads the tables of the study remedies. Configurations say which variant has which remedy in which space, so any study will do that
has a variant without any.
"""

from __future__ import annotations

import json

from common import comparisons
from common.comparisons import compare_pairs, conclude, pair_up, summarize
from common.figures import draw_curves, draw_search
from common.published_figures import PUBLISHED_SPACES, SPACE_NOTES
from common.question import Answer, Question
from common.study_tables import Configs, StudyTables, has_skip_dropout
from pdarts_tune.config.methods import trains_alphas
from pdarts_tune.config.search import SearchConfig
from rq3_regularization import count_collapses, count_skips

NOTES = {
    "variants": """\
Means over search seeds ± standard deviation. *remedies*: names of `config/remedies.py`; *dropout*: on skip-connects, P-DARTS' own.
*skips*: of the normal cell that was evaluated. *search, s*: what a remedy costs, on the study's device.""",
    "error_differences": f"""\
Test error of every variant minus that of the variant without any remedy in the same space, paired by seed: one family.

{comparisons.COMPARISON_NOTES}""",
    "skip_differences": "The same of the skip-connects of the normal cell, derived without a limit: a family of its own.",
    "collapse": """\
Searches whose normal cell, derived without a limit, was more than half skip-connects (5 of 8): at the end of the last stage, and at
any epoch. Intervals: Wilson, 95 %.""",
    "published": SPACE_NOTES,
}


def has_remedies(study: StudyTables) -> bool:
    return any(json.loads(text).get("remedies") for text in study.trials["config"].unique())


def fill(answer: Answer) -> None:
    study, configs, measures, rng = answer.study, answer.configs, answer.measures, answer.rng
    references = find_references(configs)
    for space in dict.fromkeys(name_space(configs[name]) for name in configs if name not in references):
        answer.missing.insert(0, f"space {space}: no variant without any remedy, so its variants are compared with nothing")
    table = summarize(measures, "error_percent", "skips", "search_seconds")
    shown = [configs[variant] for variant in table["variant"]]
    table.insert(1, "space", [name_space(config) for config in shown])
    table.insert(2, "remedies", ["+".join(remedy.name for remedy in config.remedies) for config in shown])
    table.insert(3, "dropout", [has_skip_dropout(config) for config in shown])
    completed = count_skips(study, measures[measures["status"] == "completed"])
    pairs = {name: reference for name, reference in references.items() if name != reference}
    errors, skips = (
        compare_pairs({name: pair_up(completed, column, name, reference) for name, reference in pairs.items()}, rng)
        for column in ("error_percent", "derived_skips")
    )
    answer.conclusion += conclude(errors, "no remedy", "evaluation error", "any remedy changes the evaluation error")
    hypothesis = "any remedy changes the number of skip-connects"
    answer.conclusion += conclude(skips, "no remedy", "skip-connects", hypothesis, unit="skip-connects")
    answer.tables |= {"variants": table, "error_differences": errors, "skip_differences": skips}
    answer.tables |= {"collapse": count_collapses(study), "published": PUBLISHED_SPACES}
    if study.epochs["hessian_eigenvalue"].isna().all():
        answer.missing.append("the Hessian's largest eigenvalue was not measured (eigenvalue_every is 0): no curves of it")
    answer.figures |= draw_curves(study, "skips", "eigenvalue", "learning_curves") | draw_search(study, next(iter(configs)))


def name_space(config: SearchConfig) -> str:
    return config.space if isinstance(config.space, str) else "own"


def find_references(configs: Configs) -> dict[str, str]:
    """For each variant that searches, the first one in its space that has no remedy and no dropout on skip-connects."""
    searches = {name: config for name, config in configs.items() if trains_alphas(config.method)}
    bare = [name for name, config in searches.items() if not config.remedies and not has_skip_dropout(config)]
    spaces = {configs[name].start: name for name in reversed(bare)}
    return {name: spaces[config.start] for name, config in searches.items() if config.start in spaces}


QUESTION = Question("rq3b", "remedies", __doc__, NOTES, has_remedies, fill)
build, main = QUESTION.build, QUESTION.main

if __name__ == "__main__":
    main()
