"""Variants against a baseline, for any study: what differs between their settings, what it changes, what can be claimed of it.

python analysis/compare.py --results results/width
python analysis/compare.py --results results/width --baseline wide --measure error seconds --by channels
python analysis/compare.py --results results/width other/width     # two studies: the searches that both have, second minus first

Writes compare.md (compare_two.md), tables (CSV, LaTeX) and figures (PNG, SVG) to the study's folder `report`. A study without a
question of its own gets this page at its end. The scripts of the questions add what only they ask; see `common/question.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common import study_tables
from common.comparisons import COMPARISON_NOTES, anytime_table, compare_pairs, conclude, mean_intervals, pair_up, summarize
from common.figures import CURVES, draw_curves, draw_depth_gap, draw_search, draw_sweep, gap_frame
from common.question import COMMON_NOTES, RNG_SEED
from common.section import NOTHING, UNITS, Draw, Section, errors_in_one_line, show, show_section
from common.study_tables import MEASURES, OF_EVALUATIONS, Configs, Read, StudyTables, by_setting, list_settings, measure_trials
from pdarts_tune.config.command_line import parse
from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.pdarts.genotype import Genotype
from pdarts_tune.results.cell_figures import draw_genotype

SHOWN_OF_CELLS = ("searches", "different_cells", "skips", "depth", "width")
LONG = ("method.genotype",)  # settings whose values no table has room for

NOTES = COMMON_NOTES | {
    "variants": f"""\
First the settings in which the variants differ. Means over the seeds that have the figure ± standard deviation over search seeds,
after averaging over evaluation seeds. *error*: test error of the cell, trained from scratch, after the last epoch. *search, %*:
validation accuracy of the search network that the cell was taken from. *gap*: search accuracy minus test accuracy, in points.
*skips*, *depth*: of the normal cell. *search, s* and *peak*: of the search, on the study's device. Figures of two recipes or data
sets stand in columns of their own. {NOTHING}: none, or not there yet.""",
    "accuracies": "A dot a seed, bars at the means, in grey the way from search to evaluation.",
    "cells": "Of each variant, the cell that its first completed search ended with, and how many different ones there are.",
}
OTHER_NOTE = "Paired by seed, tested as the evaluation error is; a family of its own."
SWEEP_NOTE = """\
Mean over seeds with its 95 % bootstrap interval (none with fewer than 3). Variants on one line differ in nothing else. The claims
are those of the differences above: a curve is not tested."""


def build(
    results: Path,
    *,
    read: Read = study_tables.read_study,
    recipe: str | None = None,
    data: str | None = None,
    baseline: str | None = None,
    measures: Sequence[str] = (),
    by: Sequence[str] = (),
    compared: bool = True,
) -> Section:
    """The comparison of one study's variants, on each of its data sets and by each of its recipes, or the chosen ones.

    Args:
        baseline: the variant that the others are compared with; None: the study's first.
        measures: of MEASURES; none: all.
        by: numeric settings, each for a curve; none: the one setting in which all variants differ, if it is a number.
        compared: False: variants, cells and searches alone, where a question's answer has the comparisons. In a second family they
            would have other p-values.

    Raises:
        ConfigError: the study cannot be read, or one of these is not there. The message lists the ones that are.
    """
    folder = one_study(results)
    study, other_devices = study_tables.keep_one_device(study_tables.choose_settings(read(folder), recipe, data))
    parts = {setting: measure_trials(part) for setting, part in by_setting(study).items()}
    configs, rng = study_tables.read_configs(study.trials), np.random.default_rng(RNG_SEED)
    baseline = _choose("baseline", baseline or next(iter(configs)), configs, f"a variant of {folder.name}")
    columns = choose_measures(measures)
    first, apart = next(iter(columns.values())), tell_apart(configs)
    tables = {"variants": apart.merge(summarize_settings(parts, list(columns.values())))}
    families = {name: compare_settings(parts, column, baseline, rng) for name, column in columns.items() if compared}
    families = {name: table for name, table in families.items() if table["n"].any() or name == "error"}
    tables |= {f"{name}_differences": table for name, table in families.items()}
    curves = {field: sweep(parts, configs, field, first, rng) for field in by or swept_alone(apart) if compared}
    for field, curve in curves.items():
        shown = curve.assign(**{field: curve[field].map("{:g}".format)})
        tables[f"by_{field}"] = shown if curve["line"].any() else shown.drop(columns="line")
    tables["cells"], pictures, captions = list_cells(study)
    tables |= {"searches": list_searches(parts)} | anytime_table(study)
    lines = {setting: study_tables.list_missing(part, parts[setting]) for setting, part in by_setting(study).items()}
    common = set.intersection(*map(set, lines.values()))  # the others are of evaluations in one setting
    missing = [line if line in common else f"{line} ({setting})" for setting, own in lines.items() for line in own]
    swept: dict[str, Draw] = {f"by_{field}": partial(draw_sweep, curve, field, first) for field, curve in curves.items()}
    words = f"its variants compared with {baseline}" if compared else "its variants, cells and searches"
    return Section(
        name="compare",
        title=f"{folder.name}: {words}{study_tables.estimate_note(study)}",
        tables=tables,
        figures=draw(study, parts, baseline) | swept | pictures if compared else pictures,
        conclusion=conclude_all(families, baseline) if compared else [],
        missing=[*dict.fromkeys(missing), *other_devices],
        notes=note_differences(families) | NOTES | captions | {f"by_{field}": SWEEP_NOTE for field in curves},
        about=study_tables.describe_study(study),
    )


def one_study(results: Path) -> Path:
    """The folder of the one study that `results` is or holds. ConfigError if it holds several."""
    folders = study_tables.find_studies(results)
    if len(folders) > 1:
        names = ", ".join(folder.name for folder in folders)
        raise ConfigError(f"{results}: holds {len(folders)} studies, {names}; name one, such as --results {folders[0]}")
    return folders[0]


def _choose(option: str, name: str, known: Mapping[str, Any] | Sequence[str], what: str) -> str:
    if name not in known:
        raise ConfigError(f"{option}: {name!r} is not {what}; there are: {', '.join(known) or 'none'}")
    return name


def choose_measures(names: Sequence[str]) -> dict[str, str]:
    """The columns of the measures of these names; of no name, of all."""
    return {name: MEASURES[_choose("measure", name, MEASURES, "a measure")][0] for name in names or MEASURES}


def note_differences(families: Iterable[str]) -> dict[str, str]:
    return {f"{name}_differences": OTHER_NOTE for name in families}


def tell_apart(configs: Configs) -> pd.DataFrame:
    """One row a variant: its name, and as text each setting that differs between variants."""
    settings = pd.DataFrame({variant: list_settings(config) for variant, config in configs.items()}, dtype=object).T
    texts = settings.drop(columns=[name for name in LONG if name in settings]).map(_show_setting)
    of_methods = texts.columns.str.startswith("method.")  # a method's own setting differs if methods that have it differ in it
    differing = texts.loc[:, np.where(of_methods, texts.nunique() > 1, texts.nunique(dropna=False) > 1)]
    return differing.rename_axis("variant").reset_index()


def _show_setting(value: object) -> str | None:
    if value is None or value != value:  # nan: another method's setting
        return None
    return "-".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def summarize_settings(parts: Mapping[str, pd.DataFrame], columns: Sequence[str]) -> pd.DataFrame:
    """`summarize`; of several settings, what evaluations decide has a column for each."""
    first = next(iter(parts.values()))
    if len(parts) == 1:
        return summarize(first, *columns).dropna(axis="columns", how="all")
    own = [column for column in columns if column in OF_EVALUATIONS]
    tables = [summarize(first)[["variant", "seeds"]]]
    tables += [summarize(part, *own).drop(columns=["variant", "seeds"]).add_prefix(f"{key}: ") for key, part in parts.items()]
    tables.append(summarize(first, *(column for column in columns if column not in own)).iloc[:, 3:])
    return pd.concat(tables, axis="columns").dropna(axis="columns", how="all")


def compare_settings(parts: Mapping[str, pd.DataFrame], column: str, baseline: str, rng: np.random.Generator) -> pd.DataFrame:
    """Every other variant minus the baseline in one measure: one family, over all settings where evaluations decide the measure.

    Only completed searches count.
    """
    completed = {key: measures[measures["status"] == "completed"] for key, measures in settings_of(parts, column).items()}
    variants = [name for name in next(iter(completed.values()))["variant"].unique() if name != baseline]
    places = {name if len(completed) == 1 else f"{name} ({key})": (key, name) for name in variants for key in completed}
    return compare_pairs({label: pair_up(completed[key], column, name, baseline) for label, (key, name) in places.items()}, rng)


def settings_of(parts: Mapping[str, pd.DataFrame], column: str) -> dict[str, pd.DataFrame]:
    """Where a measure stands: in every setting if evaluations decide it, else in the first, as in all others."""
    return dict(parts if column in OF_EVALUATIONS else itertools.islice(parts.items(), 1))


def conclude_all(families: Mapping[str, pd.DataFrame], baseline: str, among: str = "variants") -> list[str]:
    """What the first measure's comparisons show, and in one further sentence the claims in the others; `among` what is compared."""
    if not families:
        return [f"Nothing can be compared with {baseline}: no two searches of one seed have these figures."]
    sentences: list[str] = []
    claims: list[str] = []
    for name, table in families.items():
        column, words = MEASURES[name]
        if not sentences:
            hypothesis = f"what differs between the {among} changes {words}"
            sentences += conclude(table, baseline, words, hypothesis, unit=unit_of(column))
            continue
        shown = [f"{row['variant']} {show(row['difference'], 2, True)}" for row in table.to_dict("records") if row["claimed"]]
        claims += [f"{words} ({unit_of(column)}): {', '.join(shown)}"] if shown else []
    return sentences + ([f"Shown in other measures, each a family of its own: {'; '.join(claims)}."] if claims else [])


def unit_of(column: str) -> str:
    """In which differences of a measure are: percentages differ by points."""
    unit = column.rsplit("_", 1)[-1]
    return "points" if unit == "percent" else UNITS.get(unit, "")


def swept_alone(apart: pd.DataFrame) -> list[str]:
    """The numeric setting in which all variants differ, if there is no other and at least three."""
    fields = list(apart.columns.drop("variant"))
    values = pd.to_numeric(apart[fields[0]], errors="coerce") if len(fields) == 1 else pd.Series()
    return fields if values.notna().all() and len(values) > 2 else []


def sweep(parts: Mapping[str, pd.DataFrame], configs: Configs, field: str, column: str, rng: np.random.Generator) -> pd.DataFrame:
    """A measure against a numeric setting, with its interval: one row a variant, on lines that differ in other settings.

    Raises:
        ConfigError: the setting does not differ, is no number, or no two variants differ in nothing else.
    """
    apart = tell_apart(configs).set_index("variant")
    _choose("by", field, [*map(str, apart)], "a setting that differs between the variants")
    values = pd.to_numeric(apart[field].astype(str), errors="coerce")
    if values.isna().any():
        raise ConfigError(f"by: {field} is not a number in every variant: {', '.join(apart[field].fillna('none').unique())}")
    rest = apart.drop(columns=field)
    lines = rest.apply(lambda row: ", ".join(f"{name} {value}" for name, value in row.items() if value is not None), axis="columns")
    lines = lines[lines.groupby(lines).transform("size") > 1] if len(rest.columns) else pd.Series("", index=apart.index)
    if lines.empty:
        raise ConfigError(f"by: no two variants differ in {field} and in nothing else")
    rows = []
    for setting, measures in settings_of(parts, column).items():
        table = mean_intervals(measures[measures["status"] == "completed"], column, rng)
        table = table[table["variant"].isin(lines.index)]
        names = [", ".join(filter(None, (lines[name], setting if len(parts) > 1 else ""))) for name in table["variant"]]
        rows.append(table.assign(line=names, **{field: table["variant"].map(values)}).rename(columns={"mean": column}))
    points = pd.concat(rows).sort_values(["line", field], kind="stable", ignore_index=True)
    return points[["line", field, "variant", "n", column, "ci_low", "ci_high"]]


def list_cells(study: StudyTables) -> tuple[pd.DataFrame, dict[str, Draw], dict[str, str]]:
    """Of each variant the cell that its first completed search ended with: a table, pictures, and what they show."""
    rows: list[dict[str, Any]] = []
    pictures: dict[str, Draw] = {}
    captions = {}
    for number, cell in enumerate(study_tables.first_cells(study), start=1):
        variant, trial = cell["variant"], cell["trial_id"]
        rows.append({"variant": variant, "trial": trial, **{name: cell[name] for name in SHOWN_OF_CELLS}})
        rows[-1] |= {"params_millions": cell["params"] / 1e6, "genotype": cell["genotype"]}
        pictures[f"cell_{number}"] = partial(draw_genotype, Genotype.parse(cell["genotype"]), f"{variant}: {trial}")
        captions[f"cell_{number}"] = f"Both cells of the first completed search of {variant}."
    return pd.DataFrame(rows), pictures, captions


def list_searches(parts: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """One row a search."""
    first = next(iter(parts.values()))
    splits = ["split_seed"] if first["split_seed"].nunique() > 1 else []
    table = first[["variant", "seed", *splits, "status"]].copy()
    for column in (*(column for column, _ in MEASURES.values()), "inherited_percent"):
        places = settings_of(parts, column)
        for setting, measures in places.items():
            table[f"{setting}: {column}" if len(places) > 1 else column] = measures[column].astype(float)
    return table.assign(genotype=first["genotype_id"])


def draw(study: StudyTables, parts: Mapping[str, pd.DataFrame], baseline: str) -> dict[str, Draw]:
    frames = {f"accuracies{f'_{n}' if n > 1 else ''}": gap_frame(measures) for n, measures in enumerate(parts.values(), start=1)}
    figures = {name: partial(draw_depth_gap, frame) for name, frame in frames.items() if len(frame)}
    searched = draw_search(study, baseline)
    searched.pop("cells", None)  # shown with those of the other variants
    return figures | draw_curves(study, *CURVES) | searched


TWO_NOTES = {
    "settings": "What differs between the variants that the two studies share, and between the studies themselves.",
    "error_differences": f"The second study minus the first, paired by seed.\n\n{COMPARISON_NOTES}",
    "pairs": "The searches that both studies have: the same variant, by its name or by all its settings, with the same seeds.",
}


def build_two(
    results: Sequence[Path], *, recipe: str | None = None, data: str | None = None, measures: Sequence[str] = ()
) -> Section:
    """Two studies beside each other: in what they differ, and the searches that both have, the second minus the first.

    Evaluations are compared by the recipes and on the data sets that both have, seconds and peak memory on the same device.

    Raises:
        ConfigError: there are not two, one cannot be read, or they share no variant or no seed of one.
    """
    if len(results) != 2:
        raise ConfigError(f"results: {len(results)} folders are given, and two studies can be compared")
    sides = [study_tables.choose_settings(study_tables.read_study(one_study(path)), recipe, data) for path in results]
    names = [study.folder.name for study in sides]
    if names[0] == names[1]:
        names = [str(study.folder) for study in sides]
    columns = choose_measures(measures)
    configs = [study_tables.read_configs(study.trials) for study in sides]
    shared = match(*configs)
    if not shared:
        listed = " and ".join(f"{', '.join(own)} ({name})" for name, own in zip(names, configs, strict=True))
        raise ConfigError(
            f"results: {names[0]} and {names[1]} have nothing in common, neither a variant's name nor its settings: {listed}"
        )
    keys = [study.evaluations["recipe_id"].astype(str) + " on " + study.evaluations["data"].astype(str) for study in sides]
    common, missing = set(keys[0]) & set(keys[1]), []
    if not common:
        lists = "; ".join(f"{name}: {study_tables.listed(key) or 'none'}" for name, key in zip(names, keys, strict=True))
        missing.append(f"no recipe and data set of evaluations in common, so evaluations are not compared ({lists})")
    parts = []
    for study, key in zip(sides, keys, strict=True):
        same = replace(study, evaluations=study.evaluations.assign(setting=key)[key.isin(common)])
        same, lines = study_tables.keep_one_device(same)
        parts.append({setting: measure_trials(part) for setting, part in by_setting(same).items()})
        missing += lines
    if pd.concat([study.trials["device"] for study in sides]).nunique() > 1:
        missing.append("seconds and peak memory are of different devices, so they are not compared")
        columns = {name: column for name, column in columns.items() if name not in ("seconds", "peak")}
    first, second = parts
    pairs = {key: pair_trials(first[key], second[key], shared, columns.values()) for key in first if key in second}
    if not any(len(table) for table in pairs.values()):
        raise ConfigError(f"results: {names[0]} and {names[1]} have variants in common ({', '.join(shared)}), but no seed of one")
    rng, families = np.random.default_rng(RNG_SEED), {}
    for name, column in columns.items():
        chosen, values = settings_of(pairs, column), {}
        for (setting, table), variant in itertools.product(chosen.items(), shared):
            rows = table.loc[table["variant"] == variant, [f"{column}_second", f"{column}_first"]].dropna()
            values[variant if len(chosen) == 1 else f"{variant} ({setting})"] = rows.to_numpy(dtype=float)
        families[name] = compare_pairs(values, rng)
    families = {name: table for name, table in families.items() if table["n"].any()}
    tables = {"settings": differ_between(sides, configs, shared, names)}
    tables |= {f"{name}_differences": table for name, table in families.items()}
    tables["pairs"] = pd.concat([table.assign(setting=setting) for setting, table in pairs.items()], ignore_index=True)
    return Section(
        name="compare_two",
        title=f"{names[1]} compared with {names[0]}, in the searches that both have",
        tables=tables,
        conclusion=conclude_all(families, names[0], "studies"),
        missing=missing,
        notes=note_differences(families) | TWO_NOTES,
        about=" ".join(map(study_tables.describe_study, sides)),
    )


def match(one: Configs, other: Configs) -> dict[str, str]:
    """The variants of one study with those of another: by name, and those that are left by all their settings."""
    shared = {name: name for name in one if name in other}
    for name, config in one.items():
        same = [there for there in other if there not in shared.values() and list_settings(other[there]) == list_settings(config)]
        if name not in shared and same:
            shared[name] = same[0]
    return shared


def pair_trials(one: pd.DataFrame, other: pd.DataFrame, shared: Mapping[str, str], columns: Iterable[str]) -> pd.DataFrame:
    """One row a search that both have, with each measure of both."""
    keys, back = ["variant", "seed", "split_seed"], {there: name for name, there in shared.items()}
    tables = one, other.assign(variant=other["variant"].map(back))
    first, second = (table.loc[table["status"] == "completed", [*keys, *columns]] for table in tables)
    return first.merge(second, on=keys, suffixes=("_first", "_second"))


def differ_between(
    sides: Sequence[StudyTables], configs: Sequence[Configs], shared: Mapping[str, str], names: Sequence[str]
) -> pd.DataFrame:
    """One row a difference: of the studies, and of the variants that they share; one that all of these have stands once."""
    rows: list[tuple[str | None, ...]] = []
    for words, columns in {
        "recipe": [study.evaluations["recipe_id"] for study in sides],
        "device": [study.trials["device"] for study in sides],
        "commit": [study.trials["commit"] for study in sides],
    }.items():
        texts = [study_tables.listed(column) or "none" for column in columns]
        rows += [("the study", words, *texts)] if texts[0] != texts[1] else []
    for name, there in shared.items():
        one, other = list_settings(configs[0][name]), list_settings(configs[1][there])
        own = sorted(study_tables.differences(configs[0][name], configs[1][there]) - set(LONG))
        rows += [(name, field, _show_setting(one.get(field)), _show_setting(other.get(field))) for field in own]
    table = pd.DataFrame(rows, columns=["of", "setting", *names])
    alike = table.groupby(["setting", *names], dropna=False)["of"].transform("size") == len(shared)
    return table.assign(of=table["of"].mask(alike & (len(shared) > 1), "every shared variant")).drop_duplicates(ignore_index=True)


@dataclass(frozen=True)
class Arguments:
    results: tuple[Path, ...] = (Path("results"),)
    """The folder of a study, or of two to be compared; or a results folder that holds one study alone."""
    baseline: str | None = None
    """The variant that the others are compared with; the study's first if not given."""
    measure: tuple[str, ...] = ()
    """What is compared: error, gap, search, skips, depth, params, seconds, peak; all if not given. The first is drawn."""
    by: tuple[str, ...] = ()
    """Numeric settings, such as batch_size: a curve of the measure against each."""
    recipe: str | None = None
    """Evaluations by this recipe alone, given by its name or id."""
    data: str | None = None
    """Evaluations on this data set alone."""
    out: Path | None = None
    """Where the files go; the (first) study's own folder `report` if not given."""


def main(arguments: Sequence[str] | None = None) -> None:
    settings = parse(Arguments, arguments, description=__doc__ or "")
    choice: dict[str, Any] = {"recipe": settings.recipe, "data": settings.data, "measures": settings.measure}
    with errors_in_one_line():
        if len(settings.results) == 1:
            section = build(settings.results[0], baseline=settings.baseline, by=settings.by, **choice)
        elif settings.baseline or settings.by:
            raise ConfigError("results: of two studies the first is the baseline; leave out --baseline and --by")
        else:
            section = build_two(settings.results, **choice)
        show_section(section, settings.out or one_study(settings.results[0]) / "report")


if __name__ == "__main__":
    main()
