"""What a study consists of, before anything runs: variants, trials, and the definition that a results folder remembers.

Planning, `--dry-run` and `--help` need neither torch nor Ray.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from pdarts_tune.config.command_line import change_settings
from pdarts_tune.config.evaluation import ESTIMATORS, EvalConfig
from pdarts_tune.config.execution import CellEvaluation, Execution, cell_evaluation
from pdarts_tune.config.methods import Given, RandomSampling, paired_variant
from pdarts_tune.config.presets import PRESETS, Preset
from pdarts_tune.config.search import DEFAULT_EXECUTION, SearchConfig, named_settings
from pdarts_tune.config.serialize import ConfigError, absolute_name, config_id, content_id, from_dict, short_name, to_dict
from pdarts_tune.pdarts.genotype import Genotype
from pdarts_tune.pdarts.progressive_depth import PDARTS_CIFAR10, PDARTS_CIFAR100
from pdarts_tune.results.manifest import stored_evaluations, stored_seeds

Kind = TypeVar("Kind")
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
    report: Path | None = None  # the analysis script that turns the tables into the answer; None: analysis/compare.py
    evaluations: Callable[[EvalConfig, Sequence[str]], Sequence[EvalConfig]] | None = None
    presets: Mapping[str, Preset] = field(default_factory=dict)  # the study's own sizes, beside PRESETS
    adaptive: bool = False  # results choose the next schedules (study/schedule_search.py), in place of variants times seeds


@dataclass(frozen=True)
class Arguments:
    """The command line of every study."""

    preset: str = "laptop"
    """How large: smoke, laptop, cifar-small, paper, or a size of the study's own."""
    results: str = "results"
    """Folder for tables, report and MLflow store, or s3://BUCKET/FOLDER or another file system's; a study in it is continued."""
    data: str | None = None
    """Data set: digits, cifar10, cifar100, imagenet, folder:PATH (train/ and val/) or parquet:PATH (train and test files). Several,
    separated by commas: searches are on the first, genotypes are evaluated on each."""
    set: tuple[str, ...] = ()
    """NAME=VALUE of any setting of the base search or of the evaluation: batch_size=64 stages.1.cells=8 evaluation.epochs=100."""
    variants: str | None = None
    """Run only these, separated by commas."""
    genotypes: str | None = None
    """Search nothing, evaluate these: published names, genotype files, random:SEED or folders of studies, separated by commas, each
    as SOURCE or NAME=SOURCE."""
    seeds: int | None = None
    """Searches per variant."""
    first_seed: int = 0
    """Of the searches, so that parts of a study can run in several places."""
    evaluation_seeds: int | None = None
    """Trainings from scratch per distinct genotype; with an estimator also 0."""
    estimator: str | None = None
    """Also estimate each distinct genotype: nb301:FOLDER (or nb301:FOLDER@EPOCH) by NAS-Bench-301, table:FILE by known cells."""
    estimate_every_epoch: bool = False
    """With --estimator, also the cells that each search would end with after each of its epochs."""
    samples: int | None = None
    """Schedules that schedule_search.py tries."""
    reuse: str | None = None
    """Folders of studies, separated by commas, whose finished searches and evaluations of the same configuration are taken over
    rather than run again, such as results/depth_gap: the base stands in most studies."""
    gpus_per_trial: float | None = None
    """GPUs for each trial where the cluster has any: 1/8, 1/4, 1/2 or a whole number; 0.5 puts two trials on one. Without it, as
    follows from predicted memory and from the number of trials that are ready."""
    mps: bool = False
    """On this machine: trials that share a GPU use it at the same time, by NVIDIA's multi-process service, rather than in turn."""
    max_trials: int | None = None
    """How many trials run at a time, at most. Without it, as many as there is room for, on the CPUs that this process may use or
    on the GPUs."""
    max_failures: int = 2
    """How often a trial that fails or loses its process is started again, from its last epoch."""
    execution: Annotated[Execution, tyro.conf.OmitArgPrefixes] = DEFAULT_EXECUTION
    memory_limit: int | None = None
    """Bytes that a stage of a search may take, by prediction; a search that needs more ends as out_of_memory."""
    image_size: int | None = None
    """Stream images, cropped to so many pixels: for sets of larger images, or of several sizes."""
    skip_bad_images: bool = False
    """Leave out, and count, images that cannot be read; one such image is else an error."""
    address: str | None = None
    """A running Ray cluster, e.g. auto or ray://head:10001; without it, this machine."""
    tracking_uri: str | None = None
    """MLflow store or server; without it, a sqlite file in the results folder."""
    keep_weights: bool = False
    """Keep the weights that each trial ends with, in weights/; genotypes and alphas are in the tables anyway."""
    dry_run: bool = False
    """Print the trials, what each changes, and the bytes, seconds and disk that the study will take; then stop."""
    probe_seconds: float = 120.0
    """How long a dry run may time steps on this device; stages that it does not get to are scaled from the others. 0: no times."""
    print_config: bool = False
    """Print the whole study as it is resolved, as JSON, then stop."""


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
        ConfigError: no variants, two of one name or alike, names that cannot be in file names, counts below 1, seeds that the
            study itself sets.
    """

    study: Study
    variants: tuple[Variant, ...]
    recipes: tuple[EvalConfig, ...]
    base: SearchConfig
    seeds: int
    evaluation_seeds: int
    samples: int = 1  # schedules of an adaptive study
    first_seed: int = 0
    changes: tuple[str, ...] = ()  # NAME=VALUE, of the preset's settings

    def __post_init__(self) -> None:
        names = [variant.name for variant in self.variants]
        if not names or len(set(names)) != len(names):
            raise ConfigError(f"variants: {', '.join(names) or 'none'}; a study needs at least one, each name once")
        _check_name("study", self.study.name)
        for variant in self.variants:
            _check_name("variant", variant.name)
            if not isinstance(variant.search, SearchConfig):
                raise ConfigError(f"variant {variant.name}: search is a {type(variant.search).__name__}, it must be a SearchConfig")
            _check_seed(f"variant {variant.name}", variant.search.seed, "--seeds and --first-seed")
            limits = variant.skip_limits
            if not isinstance(limits, tuple | list) or not all(isinstance(limit, int) and limit in range(9) for limit in limits):
                raise ConfigError(
                    f"skip_limits: {limits} of variant {variant.name} are wrong, they must be numbers between 0 and 8, as in (0, 2)"
                )
            self._check_pair(variant)
        for one, other in combinations(self.variants, 2):
            if one.search == other.search:
                raise ConfigError(
                    f"variants: {one.name} and {other.name} have the same settings, so they are one search; leave one of them out "
                    "(--variants chooses), or give one both skip_limits"
                )
        for recipe in self.recipes:
            _check_name("recipe", recipe.recipe)
            if recipe.recipe in ESTIMATORS:
                raise ConfigError(f"recipe: {recipe.recipe!r} is an estimator's name, take another one")
            _check_seed(f"recipe {recipe.recipe}", recipe.seed, "--evaluation-seeds")
        if not self.recipes or len({(recipe.recipe_id, recipe.data) for recipe in self.recipes}) != len(self.recipes):
            listed = ", ".join(f"{recipe.recipe} on {recipe.data}" for recipe in self.recipes)
            raise ConfigError(f"evaluations: {listed or 'none'}; a study needs at least one, each once")
        if self.study.adaptive and self.evaluation.validation_fraction == 0:
            raise ConfigError("validation_fraction: 0 is wrong, schedules are chosen by the validation error of their evaluations")
        for name, least in (("seeds", 1), ("evaluation_seeds", 0), ("samples", 1), ("first_seed", 0)):
            check_least(name, getattr(self, name), least)

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

    @property
    def note(self) -> str | None:
        """A setting that the paper has another value of for this data set."""
        if "cifar100" not in short_name(self.base.data).lower() or self.base.stages != PDARTS_CIFAR10:
            return None
        settings = (f"stages.{index}.skip_dropout={stage.skip_dropout}" for index, stage in enumerate(PDARTS_CIFAR100))
        return f"the dropout on skip-connects is the paper's for CIFAR-10, for CIFAR-100 it has --set {' '.join(settings)}"

    def cell_evaluations(self) -> set[CellEvaluation]:
        """How the cells of searches and evaluations may be computed."""
        searches = {cell_evaluation(variant.search.execution, variant.search.method) for variant in self.variants}
        return searches | {cell_evaluation(recipe.execution) for recipe in self.recipes}

    @cached_property
    def searches(self) -> tuple[SearchTrial, ...]:
        """Every search, seeds outermost, so that a study that is cut short still compares all its variants.

        A genotype that is given needs no second seed: there is nothing that could come out differently.
        """
        return tuple(
            SearchTrial(search_id(variant.name, seed), variant.name, replace(variant.search, seed=seed))
            for seed in range(self.first_seed, self.first_seed + self.seeds)
            for variant in self.variants
            if seed == self.first_seed or not isinstance(variant.search.method, Given)
        )

    def evaluations(self, genotypes: Mapping[str, str]) -> list[EvalTrial]:
        """Every training from scratch: each distinct genotype (id to text) once for each recipe and evaluation seed.

        An id names the recipe, and the data set where it is not that of the searches. A path is named by its content.
        """
        sets = {recipe.data: recipe.data if recipe.data.isalnum() else content_id(recipe.data)[:8] for recipe in self.recipes}
        sets = {data: "" if data == self.base.data else f"-{name}" for data, name in sets.items()}
        return [
            EvalTrial(f"{genotype_id}-{recipe.recipe_id}{sets[recipe.data]}-seed{seed}", text, replace(recipe, seed=seed))
            for seed in range(self.evaluation_seeds)
            for recipe in self.recipes
            for genotype_id, text in genotypes.items()
        ]

    @property
    def most_genotypes(self) -> int:
        """How many distinct genotypes there can be to evaluate."""
        limits = {variant.name: len(variant.limits) for variant in self.variants}
        return sum(limits[trial.variant] for trial in self.searches)


def _check_name(what: str, name: str) -> None:
    """Names of studies, variants and recipes become parts of file names."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", name):
        raise ConfigError(
            f"{what}: {name!r} is wrong, a name has letters, digits, _, - and ., at most 100, a letter or digit first"
        )


def check_least(name: str, count: int, least: int) -> None:
    """Raises ConfigError for a count that is too small."""
    if count < least:
        raise ConfigError(f"{name}: {count} is wrong, it must be at least {least}")


def _check_seed(what: str, seed: int, options: str) -> None:
    if seed:
        raise ConfigError(f"{what}: seed {seed} would have no effect, the study sets seeds ({options})")


# Settings that --set must not name, with the options that set them.
_BY_OPTION = {"data": "--data", "seed": "--seeds and --first-seed"}
_BY_OPTION |= {"evaluation.data": "--data", "evaluation.seed": "--evaluation-seeds"}


def make_plan(study: Study, options: Arguments) -> Plan:
    """The study at the size of a preset, with what the command line overrides.

    Raises:
        ConfigError: an unknown preset or variant, a configuration that makes no sense, or a change without an effect.
    """
    size: Preset = _choose("preset", options.preset, {**PRESETS, **study.presets})
    if not isinstance(size, Preset):
        raise ConfigError(f"presets of {study.name}: {options.preset} is a {type(size).__name__}, it must be a Preset")
    sets = (size.search.data,) if options.data is None else tuple(map(absolute_name, options.data.split(",")))
    images = {name: getattr(options, name) for name in ("image_size", "skip_bad_images")}
    start = replace(size.search, data=sets[0], memory_limit=options.memory_limit, execution=options.execution, **images)
    settings = to_dict(start)
    settings["evaluation"] = to_dict(replace(size.evaluation, data=sets[0]))
    given = {}
    if options.genotypes:
        from pdarts_tune.evaluation.genotype_source import named_genotypes

        given = named_genotypes(options.genotypes)
    names = [item.partition("=")[0] for item in options.set]
    for name in names:
        if name in _BY_OPTION:
            raise ConfigError(f"set: {name} is set by {_BY_OPTION[name]}")
        if names.count(name) > 1:
            raise ConfigError(f"set: {name} is given {names.count(name)} times, it must be given once")

    def resolve(changes: Sequence[str]) -> tuple[SearchConfig, EvalConfig, Sequence[Variant], Sequence[EvalConfig]]:
        changed = change_settings(settings, changes)
        evaluation = from_dict(EvalConfig, changed.pop("evaluation"), "evaluation.")
        base = from_dict(SearchConfig, changed)
        if study.adaptive and evaluation.validation_fraction == 0:
            evaluation = replace(evaluation, validation_fraction=HELD_OUT)
        recipes: Sequence[EvalConfig] = [replace(evaluation, data=name) for name in sets]
        if study.evaluations is not None:
            recipes = _make(study, "evaluations", EvalConfig, evaluation, sets)
        recipes = [replace(own, **{name: value or getattr(own, name) for name, value in images.items()}) for own in recipes]
        every = given_variants(given, base) if given else _make(study, "variants", Variant, base)
        if options.variants is not None:
            named = {variant.name: variant for variant in every}
            every = [_choose("variants", name, named) for name in dict.fromkeys(options.variants.split(","))]
        return base, evaluation, every, recipes

    resolved = resolve(options.set)
    for item in options.set:
        try:
            without = resolve([other for other in options.set if other != item])
        except ConfigError:
            continue  # another change needs this one
        if without[:2] != resolved[:2] and without[2:] == resolved[2:]:
            where = "recipe" if item.startswith("evaluation.") else "variant"
            raise ConfigError(f"set: {item} would have no effect, {study.name} sets it in every {where}")
    base, _, chosen, recipes = resolved
    counts = {name: getattr(options, name) for name in ("seeds", "evaluation_seeds", "samples")}
    counts = {name: getattr(size, name) if count is None else count for name, count in counts.items()}
    return Plan(study, tuple(chosen), tuple(recipes), base, **counts, first_seed=options.first_seed, changes=tuple(options.set))


def _make(study: Study, what: str, kind: type[Kind], *arguments: Any) -> Sequence[Kind]:
    """What a function of the study makes. A wrong setting raises ConfigError; a mistake in the study's code keeps its traceback."""
    where, function, right = f"{what} of {study.name}", getattr(study, what), f"a list of {kind.__name__}"
    if not callable(function):
        raise ConfigError(f"{where}: a {type(function).__name__} is wrong, it must be a function that returns {right}")
    try:
        made = function(*arguments)
    except (ValueError, TypeError) as error:
        if isinstance(error, TypeError) and not str(error).startswith("Stage.__init__()"):
            raise
        raise ConfigError(f"{where}: {error}") from error
    if not isinstance(made, list | tuple):
        raise ConfigError(f"{where}: returns {'nothing' if made is None else f'a {type(made).__name__}'}, it must return {right}")
    if wrong := {type(item).__name__ for item in made if not isinstance(item, kind)}:
        raise ConfigError(f"{where}: returns a list with {' and '.join(sorted(wrong))}, it must return {right}")
    return made


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
    """The settings that must not change under a results folder. Seeds, variants, recipes and skip limits may be added."""
    definition: dict[str, Any] = {
        "study": plan.study.name,
        "variants": {variant.name: to_dict(variant.search) for variant in plan.variants},
        "evaluation": to_dict(plan.evaluation),
        "seeds": {},
    }
    if not plan.study.adaptive:  # trials of an adaptive study follow from results, not from variants and seeds
        for variant in plan.variants:
            seeds = {trial.config.seed for trial in plan.searches if trial.variant == variant.name}
            definition["seeds"][variant.name] = stored_seeds(seeds)
        evaluations = {variant.name: (sorted({*variant.limits}), plan.evaluation_seeds) for variant in plan.variants}
        definition |= stored_evaluations(evaluations, definition["variants"])
    if len(plan.recipes) > 1:
        definition["further_evaluations"] = [to_dict(recipe) for recipe in plan.recipes[1:]]
    return definition


def describe(plan: Plan, folder: Path | str, done: Collection[str] = (), evaluations: Collection[str] = ()) -> str:
    """The text that `--dry-run` prints: every trial with its difference from the base.

    Args:
        done: the ids of the trials that are marked as done.
        evaluations: the ids of those that follow from the searches so far.
    """
    product = f"{len(plan.variants)} variants x {plan.seeds} seeds"
    if len(plan.searches) < len(plan.variants) * plan.seeds:
        product += " (a given genotype takes one)"
    counts = (
        f"{product} = {len(plan.searches)} searches on {plan.base.data}; "
        f"then each distinct genotype (at most {plan.most_genotypes}) x {plan.evaluation_seeds} evaluation seeds "
        f"with recipe {' and '.join(f'{recipe.recipe_id} on {recipe.data}' for recipe in plan.recipes)}"
    )
    if plan.study.adaptive:
        counts = f"{plan.samples} schedules on {plan.base.data}, the base's first, each evaluated by {plan.evaluation.recipe_id}"
    base = (
        f"base: {', '.join(f'{name} {value}' for name, value in stage_columns(plan.base).items())}; "
        f"{plan.base.channels} channels, batch {plan.base.batch_size}, at most {plan.base.max_skips} skip-connects"
    )
    lines = [f"{plan.study.name}: {plan.study.question}", counts, base]
    if plan.base.memory_limit is not None:
        lines.append(f"memory limit: {plan.base.memory_limit:,} bytes; a search of which a stage needs more ends as out_of_memory")
    shared = shared_differences(plan)
    if shared:
        lines.append(f"the study's own base, which the differences below are from: {'; '.join(shared)}")
    if plan.changes:
        lines.append(f"set: {' '.join(plan.changes)}")
    if plan.note:
        lines.append(f"note: {plan.note}")
    lines += [f"results: {folder}", ""]
    width = max(len(trial.trial_id) for trial in plan.searches)
    changes = {
        variant.name: "; ".join(part for part in differences(variant.search, plan.base) if part not in shared) or "the base"
        for variant in plan.variants
    }
    mark = "{:6}" if done else "{:.0}"
    for trial in plan.searches:
        state = mark.format("done" if trial.trial_id in done else "")
        lines.append(f"  {state}{trial.trial_id:{width}}  {config_id(trial.config)}  {changes[trial.variant]}")
    if evaluations:
        lines += ["", "evaluations of the cells so far:"]
        lines += [f"  {mark.format('done' if name in done else '')}{name}" for name in evaluations]
    return "\n".join(lines)


def shared_differences(plan: Plan) -> list[str]:
    """What all variants of the study, also those that are not run, change in the preset's base alike."""
    if any(isinstance(variant.search.method, Given) for variant in plan.variants):
        return []
    first, *others = (differences(variant.search, plan.base) for variant in _make(plan.study, "variants", Variant, plan.base))
    return [part for part in first if all(part in other for other in others)]


def differences(config: SearchConfig, base: SearchConfig) -> list[str]:
    """The fields in which two configurations differ, each as `field value (base: value)`; stages are joined by column."""
    pairs = zip(_summary(config).items(), _summary(base).values(), strict=True)
    return [f"{name} {value} (base: {reference})" for (name, value), reference in pairs if value != reference]


def stage_columns(config: SearchConfig) -> dict[str, str]:
    """The stage plan as it is printed and stored: one text per swept field, a number per stage, joined by dashes."""
    fields = {"depths": "cells", "operations": "operations", "skip_dropout": "skip_dropout", "epochs": "epochs"}
    return {name: "-".join(str(getattr(stage, field)) for stage in config.stages) for name, field in fields.items()}


def _summary(config: SearchConfig) -> dict[str, Any]:
    settings = to_dict(config)
    named = named_settings(settings)
    further = {f"stage {name}": named[f"stages.{name}"] for name in ("warmup_epochs", "dropout_decay", "dropout_restart")}
    method, remedies = _in_words(settings["method"]), " + ".join(map(_in_words, settings["remedies"])) or "none"
    other = {name: value for name, value in named.items() if "." not in name}
    penalty, table = settings["penalty"], settings["penalty"]["latencies"]
    saves = f"{penalty['weight']:g} x {penalty['resource']}" if penalty["weight"] else "none"
    if table is not None:
        saves += f", latencies {content_id(table)} of {table['device']}"
    other |= {"remedies": remedies, "penalty": saves}
    return stage_columns(config) | further | {"method": method} | other | settings["execution"]


def _in_words(method: dict[str, Any]) -> str:
    """The name and settings of a method or a remedy, without a genotype, whose text is long and whose source is here too."""
    settings = [f"{name} {value}" for name, value in method.items() if name not in ("name", "genotype") and value != ""]
    return f"{method['name']} ({', '.join(settings)})" if settings else str(method["name"])
