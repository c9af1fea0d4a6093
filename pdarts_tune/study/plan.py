"""What a study consists of, before anything runs: variants, trials, and the definition that a results folder remembers.

Planning, `--dry-run` and `--help` need neither torch nor Ray.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pdarts_tune.config.evaluation import EvalConfig
from pdarts_tune.config.execution import CellEvaluation, Execution, cell_evaluation
from pdarts_tune.config.methods import Given, RandomSampling, paired_variant
from pdarts_tune.config.presets import PRESETS, Preset
from pdarts_tune.config.search import DEFAULT_EXECUTION, SearchConfig
from pdarts_tune.config.serialize import ConfigError, absolute_name, config_id, content_id, to_dict
from pdarts_tune.pdarts.genotype import Genotype

Made = TypeVar("Made")
HELD_OUT = 0.1  # of the training images, where an adaptive study's recipe holds none out to choose by


@dataclass(frozen=True)
class Variant:
    """One variant of an ablation: a search configuration that differs visibly from the study's base.

    `skip_limits` are the limits M at which the genotypes of its searches are evaluated; empty: the configuration's own. The limit
    changes the derived genotype and not the search, so a sweep over it takes no further searches.
    """

    name: str
    search: SearchConfig
    skip_limits: tuple[int, ...] = ()

    @property
    def limits(self) -> tuple[int, ...]:
        return self.skip_limits or (self.search.max_skips,)


@dataclass(frozen=True)
class Study:
    """A research question as data. `variants` makes the variants of a base configuration; the others are compared with the first.

    `evaluations` makes the recipes that every genotype is trained by, from the preset's recipe and the names of the data sets (one
    or more); without it, the preset's recipe on each of them.
    """

    name: str
    question: str
    variants: Callable[[SearchConfig], Sequence[Variant]]
    report: Path | None = None  # the analysis script that turns the tables into the answer
    evaluations: Callable[[EvalConfig, Sequence[str]], Sequence[EvalConfig]] | None = None
    adaptive: bool = False  # results choose the next schedules (study/schedule_search.py), in place of variants times seeds


@dataclass(frozen=True)
class SearchTrial:
    """One search of the study: a variant with a seed."""

    trial_id: str
    variant: str
    config: SearchConfig


def search_id(variant: str, seed: int) -> str:
    """The trial id of a variant's search with a seed."""
    return f"{variant}-seed{seed}"


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
        ConfigError: no variants, two of one name, counts below 1, or a setting that no process could read back.
    """

    study: Study
    variants: tuple[Variant, ...]
    recipes: tuple[EvalConfig, ...]
    base: SearchConfig
    seeds: int
    evaluation_seeds: int
    samples: int = 1  # schedules of an adaptive study

    def __post_init__(self) -> None:
        names = [variant.name for variant in self.variants]
        if not names or len(set(names)) != len(names):
            raise ConfigError(f"variants: {', '.join(names) or 'none'}; a study needs at least one, each name once")
        for variant in self.variants:
            if not all(limit in range(9) for limit in variant.limits):
                raise ConfigError(
                    f"skip_limits: {variant.limits} of variant {variant.name} are wrong, they must be between 0 and 8"
                )
            self._check_pair(variant)
        if not self.recipes or len({(recipe.recipe_id, recipe.data) for recipe in self.recipes}) != len(self.recipes):
            listed = ", ".join(f"{recipe.recipe} on {recipe.data}" for recipe in self.recipes)
            raise ConfigError(f"evaluations: {listed or 'none'}; a study needs at least one, each once")
        if self.study.adaptive and self.evaluation.validation_fraction == 0:
            raise ConfigError("validation_fraction: 0 is wrong, schedules are chosen by the validation error of their evaluations")
        for field in ("seeds", "evaluation_seeds", "samples"):
            if getattr(self, field) < 1:
                raise ConfigError(f"{field}: {getattr(self, field)} is wrong, it must be at least 1")

    def _check_pair(self, variant: Variant) -> None:
        name = paired_variant(variant.search.method)
        if name is None:
            return
        pair = next((other.search for other in self.variants if other.name == name), None)
        if pair is None or isinstance(pair.method, Given | RandomSampling) or pair.max_skips != variant.search.max_skips:
            raise ConfigError(
                f"skips_of: variant {variant.name} draws as many skip-connects as the searches of {name!r} find, which must be "
                f"one of the study's variants, run along with it, that searches under its max_skips ({variant.search.max_skips})"
            )

    @property
    def evaluation(self) -> EvalConfig:
        """The first of the recipes, by which variants are compared."""
        return self.recipes[0]

    def cell_evaluations(self) -> set[CellEvaluation]:
        """How the cells of searches and evaluations may be computed."""
        searches = {cell_evaluation(variant.search.execution, variant.search.method) for variant in self.variants}
        return searches | {recipe.cells_by for recipe in self.recipes}

    def searches(self) -> list[SearchTrial]:
        """Every search, seeds outermost, so that a study that is cut short still compares all its variants.

        A genotype that is given needs no second seed: there is nothing that could come out differently.
        """
        return list(self._searches)

    @cached_property
    def _searches(self) -> tuple[SearchTrial, ...]:
        return tuple(
            SearchTrial(search_id(variant.name, seed), variant.name, replace(variant.search, seed=seed))
            for seed in range(self.seeds)
            for variant in self.variants
            if seed == 0 or not isinstance(variant.search.method, Given)
        )

    def evaluations(self, genotypes: Mapping[str, str]) -> list[EvalTrial]:
        """Every training from scratch: each distinct genotype (id to text) once for each recipe and evaluation seed."""
        labels = [(recipe, self._recipe_label(recipe)) for recipe in self.recipes]
        return [
            EvalTrial(f"{genotype_id}-{label}-seed{seed}", text, replace(recipe, seed=seed))
            for seed in range(self.evaluation_seeds)
            for recipe, label in labels
            for genotype_id, text in genotypes.items()
        ]

    @property
    def most_genotypes(self) -> int:
        """How many distinct genotypes there can be to evaluate."""
        limits = {variant.name: len(variant.limits) for variant in self.variants}
        return sum(limits[trial.variant] for trial in self.searches())

    def _recipe_label(self, recipe: EvalConfig) -> str:
        """Recipe, and data set where it is not that of the searches; a path is named by its content."""
        if recipe.data == self.base.data:
            return recipe.recipe_id
        return f"{recipe.recipe_id}-{recipe.data if recipe.data.isalnum() else content_id(recipe.data)[:8]}"


def make_plan(
    study: Study,
    preset: str,
    *,
    data: str | None = None,
    variants: str | None = None,
    seeds: int | None = None,
    evaluation_seeds: int | None = None,
    samples: int | None = None,
    memory_limit: int | None = None,
    image_size: int | None = None,
    skip_bad_images: bool = False,
    execution: Execution = DEFAULT_EXECUTION,
    genotypes: Mapping[str, tuple[str, Genotype]] | None = None,
) -> Plan:
    """The study at the size of a preset, with what the command line overrides.

    Args:
        data: data sets, separated by commas. Searches are on the first; every genotype is evaluated on each of them.
        image_size: stream images, cropped to so many pixels, in the searches and the evaluations.
        skip_bad_images: in the searches and the evaluations leave out, and count, images that cannot be used.
        genotypes: by variant name, with where they are from: evaluate these in place of the study's variants.

    Raises:
        ConfigError: an unknown preset or variant, or a configuration that makes no sense.
    """
    size: Preset = _choose("preset", preset, PRESETS)
    sets = (size.search.data,) if data is None else tuple(map(absolute_name, data.split(",")))
    base = replace(
        size.search,
        data=sets[0],
        memory_limit=memory_limit,
        image_size=image_size,
        skip_bad_images=skip_bad_images,
        execution=execution,
    )
    evaluation = replace(size.evaluation, data=sets[0])
    if study.adaptive and evaluation.validation_fraction == 0:
        evaluation = replace(evaluation, validation_fraction=HELD_OUT)
    make_recipes = study.evaluations
    if make_recipes:
        recipes = _make(f"evaluations of {study.name}", lambda: make_recipes(evaluation, sets))
    else:
        recipes = [replace(evaluation, data=name) for name in sets]
    recipes = [replace(recipe, skip_bad_images=skip_bad_images, image_size=image_size or recipe.image_size) for recipe in recipes]
    every = {variant.name: variant for variant in (given_variants(genotypes, base) if genotypes else own_variants(study, base))}
    chosen = every if variants is None else {name: _choose("variants", name, every) for name in variants.split(",")}
    return Plan(
        study=study,
        variants=tuple(chosen.values()),
        recipes=tuple(recipes),
        base=base,
        seeds=size.seeds if seeds is None else seeds,
        evaluation_seeds=size.evaluation_seeds if evaluation_seeds is None else evaluation_seeds,
        samples=size.samples if samples is None else samples,
    )


def own_variants(study: Study, base: SearchConfig) -> Sequence[Variant]:
    """The study's variants of a base configuration.

    Raises:
        ConfigError: a method, a stage or a configuration has a setting that is out of range, of a wrong type or unknown.
    """
    return _make(f"variants of {study.name}", lambda: study.variants(base))


def _make(what: str, make: Callable[[], Made]) -> Made:
    """What a study makes of settings. A wrong setting raises ConfigError; a mistake in the study's code keeps its traceback."""
    try:
        return make()
    except ValueError as error:
        raise ConfigError(f"{what}: {error}") from error
    except TypeError as error:
        if not str(error).startswith("Stage.__init__()"):
            raise
        raise ConfigError(f"{what}: {error}") from error


def given_variants(genotypes: Mapping[str, tuple[str, Genotype]], base: SearchConfig) -> list[Variant]:
    """Variants that search nothing: given genotypes with their sources, by the variant's name."""
    return [
        Variant(name, replace(base, method=Given(str(genotype), source), max_skips=genotype.normal.skips))
        for name, (source, genotype) in genotypes.items()
    ]


def _choose(what: str, name: str, choices: Mapping[str, Any]) -> Any:
    if name not in choices:
        raise ConfigError(f"{what}: {name!r} is unknown, known are {', '.join(choices)}")
    return choices[name]


def define(plan: Plan) -> dict[str, Any]:
    """The settings that must not change under a results folder. Seeds, variants and skip limits may be added."""
    definition: dict[str, Any] = {
        "study": plan.study.name,
        "variants": {variant.name: to_dict(variant.search) for variant in plan.variants},
        "evaluation": to_dict(plan.evaluation),
        "seeds": {},
    }
    if not plan.study.adaptive:  # trials of an adaptive study follow from results, not from variants and seeds
        searches = Counter(trial.variant for trial in plan.searches())
        definition["seeds"] = {variant.name: searches[variant.name] for variant in plan.variants}
    if len(plan.recipes) > 1:
        definition["further_evaluations"] = [to_dict(recipe) for recipe in plan.recipes[1:]]
    return definition


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
    """The fields in which two configurations differ, as `field value (base: value)`; stages are joined by column."""
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
    """A method's name and settings. A genotype is left out: its text is three lines long, and its source is here too."""
    settings = [f"{name} {value}" for name, value in method.items() if name not in ("name", "genotype") and value != ""]
    return f"{method['name']} ({', '.join(settings)})" if settings else str(method["name"])
