"""A plan in words: what each variant changes, and every trial of a study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pdarts_tune.config import SearchConfig, config_id, to_dict
from pdarts_tune.plan import Plan

_FURTHER = ("warmup_epochs", "dropout_decay", "dropout_restart")


def describe(plan: Plan, folder: Path | str) -> str:
    """The text that `--dry-run` prints: every trial with its difference from the base."""
    searches = plan.searches()
    product = f"{len(plan.variants)} variants x {plan.seeds} seeds"
    if len(searches) < len(plan.variants) * plan.seeds:
        product += " (a given genotype takes one)"
    counts = (
        f"{product} = {len(searches)} searches on {plan.base.data}; "
        f"then each distinct genotype (at most {plan.most_genotypes}) x {plan.evaluation_seeds} evaluation seeds "
        f"with recipe {' and '.join(f'{recipe.recipe_id} on {recipe.data}' for recipe in plan.recipes)}"
    )
    if plan.study.adaptive:
        counts = f"{plan.samples} schedules on {plan.base.data}, the base's first, each evaluated by {plan.evaluation.recipe_id}"
    base = (
        f"base: {', '.join(f'{name} {value}' for name, value in stage_columns(plan.base).items())}; "
        f"{plan.base.channels} channels, batch {plan.base.batch_size}, at most {plan.base.max_skips} skip-connects"
    )
    lines = [f"{plan.study.name}: {plan.study.question}", counts, base, f"results: {folder}", ""]
    width = max(len(trial.trial_id) for trial in searches)
    differences = {variant.name: difference(variant.search, plan.base) for variant in plan.variants}
    lines += [f"  {t.trial_id:{width}}  {config_id(t.config)}  {differences[t.variant]}" for t in searches]
    return "\n".join(lines)


def difference(config: Any, base: Any) -> str:
    """The fields in which two configurations differ, as `field: value (base value)`; stages are summed up by column."""
    parts = []
    for (name, value), (_, reference) in zip(_summary(config).items(), _summary(base).items(), strict=True):
        if value != reference:
            parts.append(f"{name} {value} (base: {reference})")
    return "; ".join(parts) or "the base"


def stage_columns(config: SearchConfig) -> dict[str, str]:
    """The stage plan as it is printed and stored: one text per swept field, a number per stage, joined by dashes."""

    def joined(field: str) -> str:
        return "-".join(str(getattr(stage, field)) for stage in config.stages)

    return {
        "depths": joined("cells"),
        "operations": joined("operations"),
        "skip_dropout": joined("skip_dropout"),
        "epochs": joined("epochs"),
    }


def _summary(config: SearchConfig) -> dict[str, Any]:
    settings = to_dict(config)
    del settings["stages"]
    other = {f"stage {name}": [stage[name] for stage in to_dict(config)["stages"]] for name in _FURTHER}
    execution: dict[str, Any] = settings.pop("execution")
    settings["method"] = _in_words(settings["method"])
    return stage_columns(config) | other | settings | execution


def _in_words(method: dict[str, Any]) -> str:
    """A method's name and settings; a genotype's text would fill three lines, and its source stands beside it."""
    settings = [f"{name} {value}" for name, value in method.items() if name not in ("name", "genotype") and value != ""]
    return f"{method['name']} ({', '.join(settings)})" if settings else str(method["name"])
