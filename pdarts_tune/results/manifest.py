"""A study's manifest, `study.json`: its definition and its seeds. Only seeds and variants can be added to a results folder."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from pdarts_tune.config.evaluation import EvalConfig
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.config.serialize import ConfigError, from_dict, to_dict

DEFINITION = "study.json"  # in the study's folder
COMPLETED = "completed.json"  # in the study's folder once everything is done and nothing has failed; scripts can look for it
SHOWN = 8  # differences or seeds that a message names


def check_definition(ours: dict[str, Any], manifest: bytes | None, folder: str) -> dict[str, Any]:
    """The new content of the manifest: its variants and the plan's, with the seeds of each.

    Args:
        ours: the plan's definition (`study/plan.py`, `define`).
        manifest: the present content of the file; None if there is none.
        folder: where it is, for messages.

    Raises:
        ConfigError: the folder is of another definition, or its settings cannot be read. The message shows the differences.
    """
    if manifest is None:
        return ours
    try:
        theirs = json.loads(manifest)
    except ValueError:
        raise ConfigError(
            f"{folder}/{DEFINITION}: not readable as JSON; move the results folder away or name another with --results"
        ) from None
    try:
        changed = definition_difference(theirs, ours)
    except ConfigError as error:
        raise ConfigError(
            f"{folder}/{DEFINITION}: {error}; take a variant that never ran out of the file, or name another folder with --results"
        ) from None
    if changed:
        own = ours["variants"]
        alike = [name for name in own if not definition_difference(theirs, ours | {"variants": {name: own[name]}})]
        rest = f", or go on there with the variants that are as they were: --variants {','.join(alike)}" if alike else ""
        raise ConfigError(
            f"{folder} was written by another definition of this study: {changed}; name another folder with --results{rest}"
        )
    counts = theirs.get("seeds", {})
    seeds = counts | {name: max(count, counts.get(name, 0)) for name, count in ours["seeds"].items()} if ours["seeds"] else {}
    return ours | {"variants": theirs["variants"] | ours["variants"], "seeds": seeds}


def planned_seeds(definition: Mapping[str, Any]) -> dict[str, range]:
    """The search seeds of each variant by a study's definition; empty where an early release wrote it, without seeds."""
    return {variant: range(count) for variant, count in definition.get("seeds", {}).items()}


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
                f"{where}: its tables hold {variant} with seed {_listed(foreign)}, but by {DEFINITION} the study has {has}; "
                "take out what was copied into it, or run the study's command again with as many --seeds"
            )
    for variant, expected in planned.items():
        lacking = sorted(set(expected) - set(seeds.get(variant, ())))
        if completed and lacking:
            raise ConfigError(
                f"{where}: by {COMPLETED} the study is done with {len(expected)} seeds of {variant}, but its tables lack seed "
                f"{_listed(lacking)}; bring the files back, or run the study's command again"
            )


def _listed(seeds: list[int]) -> str:
    return ", ".join(map(str, seeds[:SHOWN])) + (f" and {len(seeds) - SHOWN} more" if len(seeds) > SHOWN else "")


def count_difference(definitions: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The counts of seeds of a study's parts, by folder, if they differ; None if not. A given genotype has one seed everywhere."""
    counts: dict[int, str] = {}
    for folder, definition in definitions.items():
        for variant, seeds in planned_seeds(definition).items():
            if definition["variants"][variant].get("method", {}).get("name") != "given":
                counts.setdefault(len(seeds), f"{len(seeds)} of {variant} in {folder}")
    return ", ".join(counts.values()) if len(counts) > 1 else None


def definition_difference(theirs: dict[str, Any], ours: dict[str, Any]) -> str | None:
    """The differences between two definitions, except for seeds and for variants of only one of them; None if there are none.

    A setting of the base changes in several variants alike. It is named once.
    """
    changes: dict[str, list[str]] = {}  # the variants of each change
    for key in ("study", "evaluation", "further_evaluations"):
        for where, change in _differences(_complete(key, theirs.get(key)), _complete(key, ours.get(key))):
            changes[f"{key}{where} {change}"] = []
    before, now = (_complete("variants", definition.get("variants", {})) for definition in (theirs, ours))
    for name in now:
        for where, change in _differences(before[name], now[name]) if name in before else ():
            changes.setdefault(f"{where.lstrip('.')} {change}", []).append(name)
    lines = [f"{change} ({', '.join(names)})" if names else change for change, names in changes.items()]
    more = f"; and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    return "; ".join(lines[:SHOWN]) + more or None


def _complete(key: str, before: Any) -> Any:
    """With the defaults of settings that are newer than the folder."""
    if key == "variants" and isinstance(before, dict):
        return {name: _read(SearchConfig, settings, f"{key}.{name}") for name, settings in before.items()}
    if key == "further_evaluations" and isinstance(before, list):
        return [_read(EvalConfig, settings, f"{key}[{index}]") for index, settings in enumerate(before)]
    return _read(EvalConfig, before, key) if key == "evaluation" and isinstance(before, dict) else before


def _read(kind: type[Any], settings: Any, where: str) -> dict[str, Any]:
    try:
        return to_dict(from_dict(kind, settings))
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _differences(before: Any, now: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """The place and the text of each difference, as deep as both sides have the same parts."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in before | now:
            yield from _differences(before.get(key), now.get(key), f"{where}.{key}")
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for index, (old, new) in enumerate(zip(before, now, strict=True)):
            yield from _differences(old, new, f"{where}[{index}]")
    elif before != now:
        yield where, f"was {before!r}, is {now!r}"
