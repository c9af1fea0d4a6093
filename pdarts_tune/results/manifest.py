"""A study's manifest, `study.json`: its definition and its seeds.

Seeds, variants, recipes and skip limits can be added to a results folder.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from textwrap import shorten
from typing import Any

from pdarts_tune.config.evaluation import EvalConfig
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.config.serialize import ConfigError, from_dict, to_dict

DEFINITION = "study.json"  # in the study's folder
COMPLETED = "completed.json"  # in the study's folder once everything is done and nothing has failed; scripts can look for it
DIFFERENCES, NAMED = 2, 8  # how many differences and names a message has


def check_definition(ours: dict[str, Any], manifest: bytes | None, folder: str) -> dict[str, Any]:
    """The new content of the manifest: its variants, recipes and seeds, and the plan's.

    Args:
        ours: the plan's definition (`study/plan.py`, `define`).
        manifest: the present content of the file; None if there is none.
        folder: where it is, for messages.

    Raises:
        ConfigError: the folder is of another definition, or its settings cannot be read. The message shows the differences.
    """
    if manifest is None:
        return ours
    file = f"{folder}/{DEFINITION}"
    try:
        theirs = json.loads(manifest)
    except ValueError:
        raise ConfigError(f"{file}: not readable as JSON; move the results folder away or name another with --results") from None
    try:
        changed = definition_difference(theirs, ours)
    except ConfigError as error:
        raise ConfigError(
            f"{file}: {error}; take a variant that never ran out of the file, or name another folder with --results"
        ) from None
    if changed:
        own = ours["variants"]
        alike = [name for name in own if not definition_difference(theirs, ours | {"variants": {name: own[name]}})]
        rest = f", or go on there with the variants that are as they were: --variants {','.join(alike)}" if alike else ""
        raise ConfigError(f"{file} is of another definition of this study: {changed}; name another folder with --results{rest}")
    before, seeds = planned_seeds(theirs), planned_seeds(ours)
    merged = {name: stored_seeds({*before.get(name, ()), *seeds.get(name, ())}) for name in before | seeds} if seeds else {}
    recipes = _recipes(theirs) | _recipes(ours)
    further = {"further_evaluations": list(recipes.values())} if recipes else {}
    variants = theirs["variants"] | ours["variants"]
    evaluations = dict(planned_evaluations(theirs))
    for name, own in planned_evaluations(ours).items():
        limits, count = evaluations.get(name, own)
        evaluations[name] = sorted({*limits, *own[0]}), max(count, own[1])
    return ours | {"variants": variants, "seeds": merged, **stored_evaluations(evaluations, variants)} | further


def stored_seeds(seeds: Collection[int]) -> int | list[int]:
    """Search seeds as the manifest has them: their number if they are 0, 1, 2 and so on, else the seeds."""
    return len(seeds) if set(seeds) == set(range(len(seeds))) else sorted(seeds)


def planned_seeds(definition: Mapping[str, Any]) -> dict[str, Collection[int]]:
    """The search seeds of each variant by a study's definition; empty where an early release wrote it, without seeds."""
    seeds = definition.get("seeds", {})
    return {variant: range(stored) if isinstance(stored, int) else stored for variant, stored in seeds.items()}


def planned_evaluations(definition: Mapping[str, Any]) -> dict[str, tuple[list[int], int]]:
    """Of each variant: the skip limits of the cells to evaluate, and the number of evaluation seeds."""
    stored = definition.get("evaluations", {})
    default = {name: ([settings["max_skips"]], 1) for name, settings in definition["variants"].items()}
    return default | {name: (own["max_skips"], own["seeds"]) for name, own in stored.items()}


def stored_evaluations(planned: Mapping[str, tuple[list[int], int]], variants: Mapping[str, Any]) -> dict[str, Any]:
    """The same as the manifest has it: only where it is not one seed at the variant's own limit."""
    default = planned_evaluations({"variants": variants})
    other = {name: own for name, own in planned.items() if own != default[name]}
    stored = {name: {"max_skips": limits, "seeds": count} for name, (limits, count) in other.items()}
    return {"evaluations": stored} if stored else {}


def check_seeds(definition: Mapping[str, Any], seeds: Mapping[str, Collection[int]], *, completed: bool, where: str) -> None:
    """Refuses tables with other searches than their study's: means would be over a wrong count of seeds.

    Args:
        seeds: the seeds of the searches in the tables, by variant.
        completed: whether the study is done; one that is under way may lack some.
        where: the study's folder, for messages.

    Raises:
        ConfigError: a search is not of the study, or is lacking although the study is done. The message names them.
    """
    planned = planned_seeds(definition)
    if not planned:
        return
    for variant in seeds:
        foreign = sorted(set(seeds[variant]) - set(planned.get(variant, ())))
        if foreign:
            has = f"{len(planned[variant])} seeds of it" if variant in planned else f"no such variant, only {', '.join(planned)}"
            raise ConfigError(
                f"{where}: its tables hold {variant} with seed {listed(foreign)}, but by {DEFINITION} the study has {has}; "
                "take out what was copied into it, or run the study's command again with as many --seeds"
            )
    for variant, expected in planned.items():
        lacking = sorted(set(expected) - set(seeds.get(variant, ())))
        if completed and lacking:
            raise ConfigError(
                f"{where}: by {COMPLETED} the study is done with {len(expected)} seeds of {variant}, but its tables lack seed "
                f"{listed(lacking)}; bring the files back, or run the study's command again"
            )


def listed(names: Sequence[object]) -> str:
    return ", ".join(map(str, names[:NAMED])) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def count_difference(definitions: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The numbers of seeds of a study's variants over its parts, if they differ; None if not. A given genotype has one everywhere.

    Args:
        definitions: of the parts, by folder. A part has some of the variants, or some of their seeds.
    """
    seeds: dict[str, set[int]] = {}
    folders: dict[str, list[str]] = {}
    for folder, definition in definitions.items():
        for variant, own in planned_seeds(definition).items():
            if definition["variants"][variant].get("method", {}).get("name") != "given":
                seeds.setdefault(variant, set()).update(own)
                folders.setdefault(variant, []).append(folder)
    counts = {len(own): f"{len(own)} of {variant} in {' and '.join(folders[variant])}" for variant, own in seeds.items()}
    return ", ".join(counts.values()) if len(counts) > 1 else None


def definition_difference(theirs: dict[str, Any], ours: dict[str, Any]) -> str | None:
    """The differences between two definitions, except for seeds and for what only one of them has; None if there are none.

    A setting of the base changes in several variants alike. It is named once.
    """
    changes: dict[str, list[str]] = {}  # the variants or recipes of each change
    before = _parts(theirs)
    for (key, name), now in _parts(ours).items():
        for where, change in _differences(before.get((key, name), now), now):
            text = f"{where.lstrip('.')} {change}" if name else f"{key}{where} {change}"
            changes.setdefault(text, []).extend([name] if name else [])
    lines = [f"{change} ({', '.join(names)})" if names else change for change, names in changes.items()]
    more = f"; and {len(lines) - DIFFERENCES} more" if len(lines) > DIFFERENCES else ""
    return "; ".join(lines[:DIFFERENCES]) + more or None


def _parts(definition: Mapping[str, Any]) -> dict[tuple[str, str], Any]:
    """Study, evaluation, variants and further recipes by key and name, with the defaults of settings newer than the folder."""
    parts: dict[tuple[str, str], Any] = {("study", ""): definition.get("study")}
    for key, kind, own in (
        ("evaluation", EvalConfig, {"": definition.get("evaluation")}),
        ("variants", SearchConfig, definition.get("variants", {})),
        ("further_evaluations", EvalConfig, _recipes(definition)),
    ):
        for name, settings in own.items():
            where = f"{key}{'.' * bool(name)}{name}: "
            parts[key, name] = to_dict(from_dict(kind, settings, where)) if isinstance(settings, dict) else settings
    return parts


def _recipes(definition: Mapping[str, Any]) -> dict[str, Any]:
    """The recipes after the first, by name and data set."""
    recipes: dict[str, Any] = {}
    for recipe in definition.get("further_evaluations", []):
        name = f"{recipe['recipe']} on {recipe['data']}"
        while name in recipes:  # two of one name
            name = f"another {name}"
        recipes[name] = recipe
    return recipes


def _differences(before: Any, now: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """The place and the text of each difference, as deep as both sides have the same parts."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in before | now:
            yield from _differences(before.get(key), now.get(key), f"{where}.{key}")
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for index, (old, new) in enumerate(zip(before, now, strict=True)):
            yield from _differences(old, new, f"{where}[{index}]")
    elif before != now:
        yield where, f"was {shorten(repr(before), 60)}, is {shorten(repr(now), 60)}"
