"""What a results folder remembers of its study, so that nothing but seeds and variants can be added to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pdarts_tune.config import ConfigError, EvalConfig, SearchConfig, from_dict, to_dict
from pdarts_tune.plan import Plan


def define(plan: Plan) -> dict[str, Any]:
    """What must not change under a results folder; seeds and variants may be added, and skip limits that are evaluated."""
    definition: dict[str, Any] = {
        "study": plan.study.name,
        "variants": {variant.name: to_dict(variant.search) for variant in plan.variants},
        "evaluation": to_dict(plan.evaluation),
    }
    if len(plan.recipes) > 1:
        definition["further_evaluations"] = [to_dict(recipe) for recipe in plan.recipes[1:]]
    return definition


def check_definition(plan: Plan, folder: Path) -> dict[str, Any]:
    """What `<folder>/study.json` shall hold: its own variants and the plan's.

    Raises:
        ConfigError: the folder was written by a study of another definition; the message shows the first difference.
    """
    ours = define(plan)
    path = folder / "study.json"
    if not path.exists():
        return ours
    try:
        theirs = json.loads(path.read_text())
    except ValueError:
        raise ConfigError(f"{path}: not readable as JSON; move the results folder away or name another with --results") from None
    for key in ("study", "evaluation", "further_evaluations", "variants"):
        before, now = _complete(key, theirs.get(key)), ours.get(key)
        if key == "variants":
            now = {name: value for name, value in ours[key].items() if name in before}
            before = {name: before[name] for name in now}
        changed = _first_difference(before, now, key)
        if changed:
            raise ConfigError(
                f"{folder} was written by another definition of this study: {changed}; name another folder with --results"
            )
    return ours | {"variants": theirs["variants"] | ours["variants"]}


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
