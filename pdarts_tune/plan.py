"""What a study consists of, before anything runs: variants, trials, and the definition that a results folder remembers.

Apart from study.py so that planning, `--dry-run` and `--help` need neither torch nor Ray.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pdarts_tune.config import ConfigError, EvalConfig, SearchConfig, config_id, to_dict
from pdarts_tune.presets import PRESETS, Preset


@dataclass(frozen=True)
class Variant:
    """One arm of an ablation: a search configuration that differs visibly from the study's base."""

    name: str
    search: SearchConfig


@dataclass(frozen=True)
class Study:
    """A research question as data. `variants` makes the arms from a base configuration; the first is the one compared with."""

    name: str
    question: str
    variants: Callable[[SearchConfig], Sequence[Variant]]
    report: Path | None = None  # the analysis script that turns the tables into the answer


@dataclass(frozen=True)
class SearchTrial:
    """One search of the study: a variant with a seed."""

    trial_id: str
    variant: str
    config: SearchConfig


@dataclass(frozen=True)
class EvalTrial:
    """One training of a genotype from scratch."""

    trial_id: str
    genotype: str  # as text
    config: EvalConfig


@dataclass(frozen=True)
class Plan:
    """A study at a size: everything that decides what its results are.

    Raises:
        ConfigError: no variants, two of one name, or counts below 1.
    """

    study: Study
    variants: tuple[Variant, ...]
    evaluation: EvalConfig
    base: SearchConfig
    seeds: int
    evaluation_seeds: int

    def __post_init__(self) -> None:
        names = [variant.name for variant in self.variants]
        if not names or len(set(names)) != len(names):
            raise ConfigError(f"variants: {', '.join(names) or 'none'}; a study needs at least one, each name once")
        for field in ("seeds", "evaluation_seeds"):
            if getattr(self, field) < 1:
                raise ConfigError(f"{field}: {getattr(self, field)} is wrong, it must be at least 1")

    def searches(self) -> list[SearchTrial]:
        """Every search, seeds outermost, so that a study that is cut short still compares all its variants."""
        return [
            SearchTrial(f"{variant.name}-seed{seed}", variant.name, replace(variant.search, seed=seed))
            for seed in range(self.seeds)
            for variant in self.variants
        ]

    def evaluations(self, genotypes: Mapping[str, str]) -> list[EvalTrial]:
        """Every training from scratch: each distinct genotype (id to text) once for each evaluation seed."""
        return [
            EvalTrial(f"{genotype_id}-{self.evaluation.recipe_id}-seed{seed}", text, replace(self.evaluation, seed=seed))
            for seed in range(self.evaluation_seeds)
            for genotype_id, text in genotypes.items()
        ]

    def definition(self) -> dict[str, Any]:
        """What must not change under a results folder; seeds and variants may be added."""
        return {
            "study": self.study.name,
            "variants": {variant.name: to_dict(variant.search) for variant in self.variants},
            "evaluation": to_dict(self.evaluation),
        }


def make_plan(
    study: Study,
    preset: str,
    *,
    data: str | None = None,
    variants: str | None = None,
    seeds: int | None = None,
    evaluation_seeds: int | None = None,
) -> Plan:
    """The study at the size of a preset, with what the command line overrides.

    Raises:
        ConfigError: an unknown preset or variant, or a configuration that makes no sense.
    """
    size = _choose("preset", preset, PRESETS)
    if data is not None:
        size = Preset(replace(size.search, data=data), replace(size.evaluation, data=data), size.seeds, size.evaluation_seeds)
    arms = {variant.name: variant for variant in study.variants(size.search)}
    if variants is not None:
        arms = {name: _choose("variants", name, arms) for name in variants.split(",")}
    return Plan(
        study=study,
        variants=tuple(arms.values()),
        evaluation=size.evaluation,
        base=size.search,
        seeds=size.seeds if seeds is None else seeds,
        evaluation_seeds=size.evaluation_seeds if evaluation_seeds is None else evaluation_seeds,
    )


def _choose(what: str, name: str, known: Mapping[str, Any]) -> Any:
    if name not in known:
        raise ConfigError(f"{what}: {name!r} is unknown, known are {', '.join(known)}")
    return known[name]


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
    other = {f"stage {name}": [stage[name] for stage in to_dict(config)["stages"]] for name in ("warmup_epochs", "dropout_decay")}
    return stage_columns(config) | other | settings


def check_definition(plan: Plan, folder: Path) -> dict[str, Any]:
    """What `<folder>/study.json` shall hold: its own variants and the plan's.

    Raises:
        ConfigError: the folder was written by a study of another definition; the message shows the first difference.
    """
    ours = plan.definition()
    path = folder / "study.json"
    if not path.exists():
        return ours
    try:
        theirs = json.loads(path.read_text())
    except ValueError:
        raise ConfigError(f"{path}: not readable as JSON; move the results folder away or name another with --results") from None
    for key in ("study", "evaluation", "variants"):
        before, now = theirs.get(key), ours[key]
        if key == "variants":
            now = {name: value for name, value in now.items() if name in before}
            before = {name: before[name] for name in now}
        changed = _first_difference(before, now, key)
        if changed:
            raise ConfigError(
                f"{folder} was written by another definition of this study: {changed}; name another folder with --results"
            )
    return ours | {"variants": theirs["variants"] | ours["variants"]}


def _first_difference(before: Any, now: Any, where: str) -> str | None:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in before | now:
            found = _first_difference(before.get(key), now.get(key), f"{where}.{key}")
            if found:
                return found
        return None
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for index, (old, new) in enumerate(zip(before, now, strict=True)):
            found = _first_difference(old, new, f"{where}[{index}]")
            if found:
                return found
        return None
    return None if before == now else f"{where} was {before!r}, is {now!r}"


def describe(plan: Plan, folder: Path) -> str:
    """The text that `--dry-run` prints: every trial with its difference from the base."""
    searches = plan.searches()
    counts = (
        f"{len(plan.variants)} variants x {plan.seeds} seeds = {len(searches)} searches on {plan.base.data}; "
        f"then each distinct genotype (at most {len(searches)}) x {plan.evaluation_seeds} evaluation seeds "
        f"with recipe {plan.evaluation.recipe_id}"
    )
    base = (
        f"base: {', '.join(f'{name} {value}' for name, value in stage_columns(plan.base).items())}; "
        f"{plan.base.channels} channels, batch {plan.base.batch_size}, at most {plan.base.max_skips} skip-connects"
    )
    lines = [f"{plan.study.name}: {plan.study.question}", counts, base, f"results: {folder}", ""]
    width = max(len(trial.trial_id) for trial in searches)
    differences = {variant.name: difference(variant.search, plan.base) for variant in plan.variants}
    lines += [f"  {t.trial_id:{width}}  {config_id(t.config)}  {differences[t.variant]}" for t in searches]
    return "\n".join(lines)
