"""What a results folder remembers of its study, so that nothing but seeds and variants can be added to it."""

from __future__ import annotations

import json
from typing import Any

from pdarts_tune.config import ConfigError, EvalConfig, SearchConfig, from_dict, to_dict
from pdarts_tune.plan import Plan

DEFINITION = "study.json"  # in the study's folder


def define(plan: Plan) -> dict[str, Any]:
    """What must not change under a results folder; seeds and variants may be added, and skip limits that are evaluated."""
    definition: dict[str, Any] = {
        "study": plan.study.name,
        "variants": {variant.name: to_dict(variant.search) for variant in plan.variants},
        "evaluation": to_dict(plan.evaluation),
        "seeds": {variant.name: sum(trial.variant == variant.name for trial in plan.searches()) for variant in plan.variants},
    }
    if len(plan.recipes) > 1:
        definition["further_evaluations"] = [to_dict(recipe) for recipe in plan.recipes[1:]]
    return definition


def check_definition(plan: Plan, found: bytes | None, folder: str) -> dict[str, Any]:
    """What the study's file `DEFINITION` shall hold: its own variants and the plan's, and the seeds that each of them has.

    Args:
        found: what the file holds now; None if it is not there.
        folder: where it is, for messages.

    Raises:
        ConfigError: the folder was written by a study of another definition; the message shows the first difference.
    """
    ours = define(plan)
    if found is None:
        return ours
    try:
        theirs = json.loads(found)
    except ValueError:
        raise ConfigError(
            f"{folder}/{DEFINITION}: not readable as JSON; move the results folder away or name another with --results"
        ) from None
    changed = definition_difference(theirs, ours)
    if changed:
        raise ConfigError(
            f"{folder} was written by another definition of this study: {changed}; name another folder with --results"
        )
    counts = theirs.get("seeds", {})
    seeds = counts | {name: max(count, counts.get(name, 0)) for name, count in ours["seeds"].items()}
    return ours | {"variants": theirs["variants"] | ours["variants"], "seeds": seeds}


def definition_difference(theirs: dict[str, Any], ours: dict[str, Any]) -> str | None:
    """The first difference between two definitions, but for seeds and for variants that only one of them has; None if none."""
    for key in ("study", "evaluation", "further_evaluations", "variants"):
        before, now = _complete(key, theirs.get(key)), _complete(key, ours.get(key))
        if key == "variants":
            now = {name: value for name, value in now.items() if name in before}
            before = {name: before[name] for name in now}
        changed = _first_difference(before, now, key)
        if changed:
            return changed
    return None


def _complete(key: str, before: Any) -> Any:
    """With the defaults of settings that joined after the folder was written, which its configurations lack."""
    if key == "variants" and isinstance(before, dict):
        return {name: to_dict(from_dict(SearchConfig, settings)) for name, settings in before.items()}
    return to_dict(from_dict(EvalConfig, before)) if key == "evaluation" and isinstance(before, dict) else before


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
