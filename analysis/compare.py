"""Variants against a baseline, for any study: what differs between their settings, what it changes, what can be claimed of it.

python analysis/compare.py --results results/width
python analysis/compare.py --results results/width --baseline wide --measure error seconds --by channels
python analysis/compare.py --results results/width other/width     # two studies: the searches that both have, second minus first

Writes compare.md (compare_two.md), tables (CSV, LaTeX) and figures (PNG, SVG) to the study's folder `report`. A study without a
question of its own gets this page at its end. The scripts of the questions add what only they ask; see `common/question.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.comparisons import (
    COMPARISON_NOTES,
    anytime_table,
    compare_pairs,
    compare_variants,
    conclude,
    mean_intervals,
    pair_up,
    summarize,
)
from common.figures import CURVES, SEARCH_NOTES, draw_curves, draw_depth_gap, draw_search, draw_sweep, gap_frame
from common.question import RNG_SEED
from common.section import NOTHING, UNITS, Draw, Section, show, show_answer
from common.study_tables import (
    MEASURES,
    OF_EVALUATIONS,
    Configs,
    Read,
    StudyTables,
    by_setting,
    choose_settings,
    describe_study,
    differences,
    estimate_note,
    find_studies,
    keep_one_device,
    list_missing,
    list_settings,
    measure_trials,
    read_configs,
    read_study,
)
from pdarts_tune.config.command_line import parse
from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.pdarts.genotype import Genotype
from pdarts_tune.results.cell_figures import draw_genotype
from pdarts_tune.results.tables import final_genotype, final_genotypes, read_rows

LONG = ("method.genotype",)  # settings whose values no table has room for

NOTES = SEARCH_NOTES | {
    "variants": f"""\
First the settings in which the variants differ. Means over the seeds that have the figure ± standard deviation over search seeds,
after averaging over evaluation seeds. *error*: test error of the cell, trained from scratch, after the last epoch. *search, %*:
validation accuracy of the search network that the cell was taken from. *gap*: search accuracy minus test accuracy, in points.
*skips*, *depth*: of the normal cell. *search, s* and *peak*: of the search, on the study's device. Figures of two recipes or data
sets stand in columns of their own. {NOTHING}: none, or not there yet.""",
    "error_differences": COMPARISON_NOTES,
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
    read: Read = read_study,
    recipe: str | None = None,
    data: str | None = None,
    baseline: str | None = None,
    measures: Sequence[str] = (),
    by: Sequence[str] = (),
) -> Section:
    """The comparison of one study's variants, on each of its data sets and by each of its recipes, or the chosen ones.

    Args:
        baseline: the variant that the others are compared with; None: the study's first.
        measures: of MEASURES; none: all.
        by: numeric settings, each for a curve; none: the one setting in which all variants differ, if it is a number.

    Raises:
        ConfigError: the study cannot be read, or one of these is not there. The message lists the ones that are.
    """
    folder = one_study(results)
    study, other_devices = keep_one_device(choose_settings(read(folder), recipe, data))
    parts = {setting: measure_trials(part) for setting, part in by_setting(study).items()}
    configs, rng = read_configs(study.trials), np.random.default_rng(RNG_SEED)
    baseline = _choose("baseline", baseline or next(iter(configs)), configs, f"a variant of {folder.name}")
    columns = {name: MEASURES[_choose("measure", name, MEASURES, "a measure")] for name in measures or MEASURES}
    apart = tell_apart(configs)
    tables = {"variants": apart.merge(summarize_settings(parts, [column for column, _ in columns.values()]))}
    families = {}
    for name, (column, _) in columns.items():
        table = compare_settings(parts, column, baseline, rng)
        if table["n"].any() or name == "error":
            families[name] = table
            tables[f"{name}_differences"] = table
    curves = {field: sweep(parts, configs, field, next(iter(columns.values()))[0], rng) for field in by or swept_alone(apart)}
    for field, curve in curves.items():
        shown = curve.assign(**{field: curve[field].map("{:g}".format)})
        tables[f"by_{field}"] = shown if curve["line"].any() else shown.drop(columns="line")
    tables["cells"], pictures, captions = list_cells(study)
    tables["searches"] = list_searches(parts)
    tables |= anytime_table(study)
    lines = {setting: list_missing(part, parts[setting]) for setting, part in by_setting(study).items()}
    common = set.intersection(*map(set, lines.values()))  # the others are of evaluations in one setting
    missing = [line if line in common else f"{line} ({setting})" for setting, own in lines.items() for line in own]
    notes = NOTES | captions | {f"by_{field}": SWEEP_NOTE for field in curves}
    notes |= {f"{name}_differences": OTHER_NOTE for name in families if name != "error"}
    first = next(iter(columns.values()))[0]
    swept = {f"by_{field}": partial(draw_sweep, curve, field, first) for field, curve in curves.items()}
    return Section(
        name="compare",
        title=f"{folder.name}: its variants compared with {baseline}{estimate_note(study)}",
        tables=tables,
        figures=draw(study, parts, baseline) | swept | pictures,
        conclusion=conclude_all(families, baseline),
        missing=(*dict.fromkeys(missing), *other_devices),
        notes=notes,
        about=describe_study(study),
    )


def one_study(results: Path) -> Path:
    """The folder of the one study that `results` is or holds. ConfigError if it holds several."""
    folders = find_studies(results)
    if len(folders) > 1:
        names = ", ".join(folder.name for folder in folders)
        raise ConfigError(f"{results}: holds {len(folders)} studies, {names}; name one, such as --results {folders[0]}")
    return folders[0]


def _choose(option: str, name: str, known: Mapping[str, Any] | Sequence[str], what: str) -> str:
    if name not in known:
        raise ConfigError(f"{option}: {name!r} is not {what}; there are: {', '.join(known) or 'none'}")
    return name


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
    own, rest = ([column for column in columns if (column in OF_EVALUATIONS) == decided] for decided in (True, False))
    table = summarize(first, *rest)
    sides = [summarize(measures, *own).drop(columns=["variant", "seeds"]).add_prefix(f"{key}: ") for key, measures in parts.items()]
    joined = pd.concat([table[["variant", "seeds"]], *sides, table.drop(columns=["variant", "seeds", "evaluated"])], axis="columns")
    return joined.dropna(axis="columns", how="all")


def compare_settings(parts: Mapping[str, pd.DataFrame], column: str, baseline: str, rng: np.random.Generator) -> pd.DataFrame:
    """Every other variant minus the baseline in one measure: one family, over all settings where evaluations decide the measure.

    Only completed searches count.
    """
    completed = {setting: measures[measures["status"] == "completed"] for setting, measures in parts.items()}
    if column not in OF_EVALUATIONS or len(parts) == 1:
        return compare_variants(next(iter(completed.values())), column, baseline, rng)
    variants = [name for name in next(iter(parts.values()))["variant"].unique() if name != baseline]
    places = list(itertools.product(variants, completed))
    pairs = {f"{name} ({setting})": pair_up(completed[setting], column, name, baseline) for name, setting in places}
    return compare_pairs(pairs, rng)


def conclude_all(families: Mapping[str, pd.DataFrame], baseline: str, among: str = "variants") -> tuple[str, ...]:
    """What the first measure's comparisons show, and in one further sentence the claims in the others; `among` what is compared."""
    sentences: tuple[str, ...] = ()
    claims = []
    for name, table in families.items():
        column, words = MEASURES[name]
        unit = unit_of(column)
        if not sentences:
            sentences = conclude(table, baseline, words, f"what differs between the {among} changes {words}", unit=unit)
            continue
        shown = [f"{row['variant']} {show(row['difference'], 2, True)}" for row in table.to_dict("records") if row["claimed"]]
        claims += [f"{words} ({unit}): {', '.join(shown)}"] if shown else []
    if not families:
        return (f"Nothing can be compared with {baseline}: no two searches of one seed have these figures.",)
    return (*sentences, f"Shown in other measures, each a family of its own: {'; '.join(claims)}.") if claims else sentences


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
    for setting, measures in parts.items() if column in OF_EVALUATIONS else itertools.islice(parts.items(), 1):
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
    last = final_genotypes(study.cells, study.trials)
    completed = study.trials[study.trials["status"] == "completed"].sort_values(["seed", "split_seed"])
    for variant, trials in completed.groupby("variant", sort=False):
        first = {str(name): value for name, value in trials.iloc[0].items()}
        genotype = final_genotype(first, read_rows(study.folder, "genotypes", first["trial_id"]))
        if genotype is None:
            continue
        different = int(last.loc[last["trial_id"].isin(trials["trial_id"]), "genotype_id"].nunique())
        row = {"variant": variant, "trial": first["trial_id"], "searches": len(trials), "different_cells": different}
        row |= {name: genotype[name] for name in ("skips", "depth", "width")} | {"params_millions": genotype["params"] / 1e6}
        rows.append(row | {"genotype": genotype["genotype"]})
        name = f"cell_{len(rows)}"
        pictures[name] = partial(draw_genotype, Genotype.parse(genotype["genotype"]), f"{variant}: {first['trial_id']}")
        captions[name] = f"Both cells of the first completed search of {variant}."
    return pd.DataFrame(rows), pictures, captions


def list_searches(parts: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """One row a search."""
    first = next(iter(parts.values()))
    splits = ["split_seed"] if first["split_seed"].nunique() > 1 else []
    table = first[["variant", "seed", *splits, "status"]].copy()
    for column in (*(column for column, _ in MEASURES.values()), "inherited_percent"):
        for setting, measures in parts.items() if column in OF_EVALUATIONS and len(parts) > 1 else [("", first)]:
            table[f"{setting}: {column}" if setting else column] = measures[column].astype(float)
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
    results: Sequence[Path],
    *,
    read: Read = read_study,
    recipe: str | None = None,
    data: str | None = None,
    measures: Sequence[str] = (),
) -> Section:
    """Two studies beside each other: in what they differ, and the searches that both have, the second minus the first.

    Evaluations are compared by the recipes and on the data sets that both have, seconds and peak memory on the same device.

    Raises:
        ConfigError: there are not two, one cannot be read, or they share no variant or no seed of one.
    """
    if len(results) != 2:
        raise ConfigError(f"results: {len(results)} folders are given, and two studies can be compared")
    sides = [choose_settings(read(one_study(path)), recipe, data) for path in results]
    names = [study.folder.name for study in sides]
    if names[0] == names[1]:
        names = [str(study.folder) for study in sides]
    columns = {name: MEASURES[_choose("measure", name, MEASURES, "a measure")] for name in measures or MEASURES}
    one, other = (read_configs(study.trials) for study in sides)
    shared = match(one, other)
    listed = " and ".join(f"{', '.join(configs)} ({name})" for name, configs in zip(names, (one, other), strict=True))
    if not shared:
        raise ConfigError(
            f"results: {names[0]} and {names[1]} have nothing in common, neither a variant's name nor its settings: {listed}"
        )
    keys = [study.evaluations["recipe_id"].astype(str) + " on " + study.evaluations["data"].astype(str) for study in sides]
    common, missing = set(keys[0]) & set(keys[1]), []
    if not common:
        lists = "; ".join(f"{name}: {', '.join(key.unique()) or 'none'}" for name, key in zip(names, keys, strict=True))
        missing.append(f"no recipe and data set of evaluations in common, so evaluations are not compared ({lists})")
    kept = [
        replace(study, evaluations=study.evaluations.assign(setting=key)[key.isin(common)])
        for study, key in zip(sides, keys, strict=True)
    ]
    kept, devices = map(list, zip(*(keep_one_device(study) for study in kept), strict=True))
    missing += [line for lines in devices for line in lines]
    costs = ("search_seconds", "peak_mebibytes")
    if len({device for study in kept for device in study.trials["device"].unique()}) > 1:
        missing.append("seconds and peak memory are of different devices, so they are not compared")
        columns = {name: value for name, value in columns.items() if value[0] not in costs}
    both = [{setting: measure_trials(part) for setting, part in by_setting(study).items()} for study in kept]
    pairs = {setting: pair_trials(both[0][setting], both[1][setting], shared, columns) for setting in both[0] if setting in both[1]}
    if not any(len(table) for table in pairs.values()):
        raise ConfigError(f"results: {names[0]} and {names[1]} have variants in common ({', '.join(shared)}), but no seed of one")
    rng, families = np.random.default_rng(RNG_SEED), {}
    for name, (column, _) in columns.items():
        chosen = dict(pairs if column in OF_EVALUATIONS else itertools.islice(pairs.items(), 1))
        sidewise = {}
        for (setting, table), variant in itertools.product(chosen.items(), shared):
            rows = table[table["variant"] == variant][[f"{column}_second", f"{column}_first"]].dropna()
            sidewise[variant if len(chosen) == 1 else f"{variant} ({setting})"] = rows.to_numpy(dtype=float)
        table = compare_pairs(sidewise, rng)
        if table["n"].any():
            families[name] = table
    apart = differ_between(sides, (one, other), shared, names)
    tables = {f"{name}_differences": table for name, table in families.items()}
    tables |= {"pairs": pd.concat([table.assign(setting=setting) for setting, table in pairs.items()], ignore_index=True)}
    return Section(
        name="compare_two",
        title=f"{names[1]} compared with {names[0]}, in the searches that both have",
        tables={"settings": apart} | tables,
        figures={},
        conclusion=conclude_all(families, names[0], "studies"),
        missing=tuple(missing),
        notes={f"{name}_differences": OTHER_NOTE for name in families} | TWO_NOTES,
        about=" ".join(describe_study(study) for study in sides),
    )


def match(one: Configs, other: Configs) -> dict[str, str]:
    """The variants of one study with those of another: by name, and those that are left by all their settings."""
    shared = {name: name for name in one if name in other}
    for name, config in one.items():
        same = [there for there in other if there not in shared.values() and list_settings(other[there]) == list_settings(config)]
        if name not in shared and same:
            shared[name] = same[0]
    return shared


def pair_trials(one: pd.DataFrame, other: pd.DataFrame, shared: Mapping[str, str], columns: Mapping[str, Any]) -> pd.DataFrame:
    """One row a search that both have, with each measure of both."""
    known, keys = [column for column, _ in columns.values()], ["variant", "seed", "split_seed"]
    back = {there: name for name, there in shared.items()}
    sides = [
        table.loc[table["status"] == "completed", keys + known] for table in (one, other.assign(variant=other["variant"].map(back)))
    ]
    return sides[0].merge(sides[1], on=keys, suffixes=("_first", "_second"))


def differ_between(
    sides: Sequence[StudyTables], configs: Sequence[Configs], shared: Mapping[str, str], names: Sequence[str]
) -> pd.DataFrame:
    """One row a difference: of the studies, and of the variants that they share; one that all of these have stands once."""
    rows: list[tuple[str | None, ...]] = []
    for words, name, column in (
        ("recipe", "evaluations", "recipe_id"),
        ("device", "trials", "device"),
        ("commit", "trials", "commit"),
    ):
        texts = [", ".join(map(str, getattr(study, name)[column].dropna().unique())) or "none" for study in sides]
        rows += [("the study", words, *texts)] if texts[0] != texts[1] else []
    for name, there in shared.items():
        one, other = list_settings(configs[0][name]), list_settings(configs[1][there])
        own = sorted(differences(configs[0][name], configs[1][there]) - set(LONG))
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

    def answer() -> tuple[Section, Path]:
        if len(settings.results) == 1:
            section = build(settings.results[0], baseline=settings.baseline, by=settings.by, **choice)
        elif settings.baseline or settings.by:
            raise ConfigError("results: of two studies the first is the baseline; leave out --baseline and --by")
        else:
            section = build_two(settings.results, **choice)
        return section, settings.out or one_study(settings.results[0]) / "report"

    show_answer(answer)


if __name__ == "__main__":
    main()
