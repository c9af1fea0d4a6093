"""The best practices of NAS research (Lindauer & Hutter, 2020, arXiv 1909.02453), answered from the tables of studies.

Titles are those of the paper. Where no table has the answer, such as whether code was published, it is "not known".
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Literal

import pandas as pd

from common.section import span
from common.study_tables import differences, read_configs
from pdarts_tune.config.execution import Execution
from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.results.tables import final_genotypes

SOURCE = "Lindauer, Hutter: Best Practices for Scientific Research on Neural Architecture Search. JMLR 21(243), 2020."
ENOUGH_SEEDS = 3  # with fewer a standard deviation says nothing; the paper names ten as the ideal

Status = Literal["met", "partly", "not met", "not known"]
Finding = tuple[Status, str]  # with its reasons
# Settings of a search that say which images it sees, with their defaults.
_IMAGES = {"data": None, "train_images": None, "validation_fraction": None, "image_size": None, "downsample": 1}
_METHODS = {"random": "random sampling", "random_search": "random search"}


@dataclass(frozen=True)
class StudyFacts:
    """What the tables of one study say about how it was done, its results apart."""

    folder: Path
    trials: pd.DataFrame  # the table `trials`
    evaluations: pd.DataFrame  # of the table `evaluations`: all but the lists
    genotypes: pd.DataFrame  # of the table `genotypes`: trial_id, stage, max_skips, genotype_id

    @property
    def name(self) -> str:
        return self.folder.name

    @cached_property
    def searches(self) -> pd.DataFrame:
        """The completed ones."""
        return self.trials[self.trials["status"] == "completed"]

    @cached_property
    def trainings(self) -> pd.DataFrame:
        """Completed evaluations, once for each search, stage and limit that gave their cell; `last`: it is the search's own."""
        searches = self.searches[["trial_id", "variant", "seed", "method"]]
        cells = searches.merge(self.genotypes, on="trial_id")
        cells = cells.assign(last=cells.index.isin(final_genotypes(cells, self.searches).index))
        runs = self.evaluations[self.evaluations["status"] == "completed"]
        runs = runs[["genotype_id", "data", "recipe", "recipe_id", "seed"]].rename(columns={"seed": "evaluation_seed"})
        return cells.merge(runs, on="genotype_id")


@dataclass(frozen=True)
class Item:
    number: int
    group: str
    title: str
    status: Status
    answer: str


def fill_checklist(studies: Sequence[StudyFacts]) -> list[Item]:
    """All 14 items for the studies together: an item is met if every study meets it."""
    items = [(group, title, check) for group, checks in _CHECKS.items() for title, check in checks.items()]
    return [Item(number, group, title, *check(studies)) for number, (group, title, check) in enumerate(items, start=1)]


def _search_code(studies: Sequence[StudyFacts]) -> Finding:
    commits = pd.concat([study.trials["commit"] for study in studies]).astype("string")
    dirty = commits.str.endswith("+", na=False)
    named, changed = commits[_known(commits) & ~dirty], int(dirty.sum())
    if named.empty:
        return "not known", "No search names the commit of unchanged code."
    text = f"The code that searched is named by its commit ({_listed(named.unique())}) for {len(named)} of {len(commits)} searches"
    text += f"; {changed} ran code that was changed after its commit" if changed else ""
    return "partly", f"{text}. Whether it was published is not known."


def _benchmarks(studies: Sequence[StudyFacts]) -> Finding:
    differing, data = [], set()
    for study in studies:
        trials = study.trials[~study.trials["method"].isin(["random", "given"])]  # which look at no images
        data |= set(trials["data"])
        settings = {text: json.loads(text) for text in trials["config"].unique()}
        seen = {text: str([values.get(name, default) for name, default in _IMAGES.items()]) for text, values in settings.items()}
        images = trials["config"].map(seen)
        both = images.astype(str) + trials["split_seed"].astype(str)
        splits = both.groupby([trials["seed"], trials["variant"]]).agg(frozenset).groupby("seed").nunique()
        if images.nunique() > 1 or (splits > 1).any() or trials["left_out"].dropna().nunique() > 1:
            differing.append(study.name)
    if not data:
        return "not known", "No search looked at images."
    if differing:
        return "not met", f"Searches of one study saw different data sets, images or splits in {_listed(differing)}."
    names = _listed(sorted(data))
    return "met", f"All searches of a study ask for the same images, and those of a seed for the same split ({names})."


def _ablations(studies: Sequence[StudyFacts]) -> Finding:
    counts, apart = {}, []
    for study in studies:
        try:
            configs = read_configs(study.searches)
        except ConfigError as error:
            return "not known", f"A configuration of {study.name} cannot be read: {error}."
        counts[study.name] = len(configs)
        for name, config in configs.items():
            fewest = min((len(differences(config, other)) for variant, other in configs.items() if variant != name), default=1)
            if fewest != 1:
                apart.append(f"{name} of {study.name} ({fewest or 'no'} settings)")
    text = "; ".join(f"{name}: {n} variant{'s' if n != 1 else ''} with a completed search" for name, n in counts.items())
    if max(counts.values()) == 0:
        return "not known", "No search is completed."
    if apart and max(counts.values()) > 1:
        return "partly", f"{text}. Not one setting away from any other variant: {_listed(apart)}."
    if min(counts.values()) < 2:
        return "partly" if max(counts.values()) > 1 else "not met", f"A study of one variant is no ablation. {text}."
    return "met", f"Each variant is one setting away from another one of its study. {text}."


def _protocol(studies: Sequence[StudyFacts]) -> Finding:
    parts, faults, unequal = [], [], False
    for study in studies:
        runs = study.trainings
        if runs.empty:
            continue
        if (runs.groupby(["data", "recipe"])["recipe_id"].nunique() > 1).any():
            unequal = True
            faults.append(f"several versions of one recipe in {study.name}")
        settings = runs.assign(setting=runs["data"] + ", " + runs["recipe_id"])
        own = settings[settings["last"]]
        used = {str(variant): set(part) for variant, part in own.groupby("variant")["setting"]}
        fewer = [name for name, part in used.items() if part != set.union(*used.values())]
        if fewer:
            unequal |= not set.intersection(*used.values())
            faults.append(f"not in every setting in {study.name}: {_listed(fewer)}")
        absent = [name for name in study.searches["variant"].unique() if name not in used]
        if absent:
            faults.append(f"without an evaluation of their cells in {study.name}: {_listed(absent)}")
        seeds = own.groupby(["setting", "trial_id"])["evaluation_seed"].agg(frozenset)
        if seeds.groupby("setting").nunique().gt(1).any():
            faults.append(f"cells trained with different seeds in {study.name}")
        cells = runs.groupby("trial_id")["genotype_id"].nunique()
        counts = f"recipes {runs['recipe_id'].nunique()}, data sets {runs['data'].nunique()}, cells a search {span(cells)}"
        parts.append(f"{study.name}: {counts}, seeds a cell {span(seeds.map(len)) if len(seeds) else 'unknown'}")
    if not parts:
        return "not known", "No cell of a completed search has been evaluated yet."
    if faults:
        return "not met" if unequal else "partly", f"{'; '.join(parts)}. But {'; '.join(faults)}."
    return "met", f"Cells of all variants were trained from scratch in the same settings, with the same seeds. {'; '.join(parts)}."


def _compute(studies: Sequence[StudyFacts]) -> Finding:
    searches = pd.concat([study.searches for study in studies])
    timed = int(searches["seconds"].notna().sum())
    if not timed:
        return "not known", "No completed search has a duration."
    several = [study.name for study in studies if study.trainings.groupby("trial_id")["stage"].nunique().gt(1).any()]
    text = f"{timed} of {len(searches)} completed searches have a duration."
    if len(several) == len(studies) and timed == len(searches):
        return "met", f"{text} Cells of several stages of a search were trained from scratch."
    where = f"in {_listed(several)} alone" if several else "in no study"
    return "partly", f"{text} Cells of several stages of a search, and so of several budgets, were trained from scratch {where}."


def _random(studies: Sequence[StudyFacts]) -> Finding:
    parts, counts = [], []
    for study in studies:
        methods = set(study.trainings.loc[study.trainings["last"], "method"])
        there = [words for method, words in _METHODS.items() if method in methods]
        absent = [f"no {words}" for method, words in _METHODS.items() if method not in methods]
        counts.append(len(there))
        parts.append(f"{study.name}: " + ", but ".join(filter(None, (" and ".join(there), " and ".join(absent)))))
    status: Status = "met" if min(counts) == len(_METHODS) else "partly" if max(counts) else "not met"
    return status, f"Completed and evaluated in {'; in '.join(parts)}."


def _seeds(studies: Sequence[StudyFacts]) -> Finding:
    counts: dict[str, int] = {}
    evaluated = any(len(study.trainings) for study in studies)
    for study in studies:
        searched = study.trials[study.trials["method"] != "given"]
        runs = study.trainings
        usable = set(runs.loc[runs["last"], "trial_id"]) if evaluated else set(study.searches["trial_id"])
        for variant, trials in searched.groupby("variant", sort=False):
            completed = trials[(trials["status"] == "completed") & trials["trial_id"].isin(usable)]
            counts[f"{study.name}: {variant}"] = completed["seed"].nunique()
    what = "completed and evaluated" if evaluated else "completed, none of them evaluated"
    if not counts or max(counts.values()) == 0:
        return "not known", "No search is completed" + (" and evaluated." if evaluated else ".")
    text = f"Search seeds a variant, {what}: {span(counts.values())}."
    few = [name for name, count in counts.items() if count < ENOUGH_SEEDS]
    if evaluated and not few:
        return "met", text
    text += f" Fewer than {ENOUGH_SEEDS}: {_listed(few)}." if evaluated else ""
    return "partly" if max(counts.values()) > 1 else "not met", text


def _looked_up(studies: Sequence[StudyFacts]) -> Finding:
    runs = pd.concat([study.evaluations[study.evaluations["status"] == "completed"] for study in studies])
    unknown = int((runs["seconds"].isna() | runs["device"].isna()).sum())
    if runs.empty:
        return "not known", "No evaluation is completed."
    if unknown:
        return "not known", f"{unknown} of {len(runs)} completed evaluations do not say on which device, or how long, they trained."
    return "not met", f"All {len(runs)} completed evaluations have a device and a duration: their networks were trained."


def _confounders(studies: Sequence[StudyFacts]) -> Finding:
    differing, unknown = [], []
    words = {"device": "devices", "versions": "library versions", "commit": "commits"}
    execution = [setting.name for setting in fields(Execution)]
    for study in studies:
        columns = {column: study.trials[column] for column in [*words, *execution]}
        columns["cell_evaluation"] = columns["cell_evaluation"][study.trials["seconds"] > 0]  # a search computes the cells
        columns["graph"] = columns["graph"].eq(True)  # earlier rows are of code without graphs
        for column, values in columns.items():
            different = values[_known(values)].nunique()
            if different > 1:
                differing.append(f"{different} {words.get(column, f'values of {column}')} in {study.name}")
            if not _known(values).all():
                unknown.append(f"{words.get(column, column)} in {study.name}")
        plain = study.trials["config"].map(lambda text: str(sorted((k, v) for k, v in json.loads(text).items() if "seed" not in k)))
        mixed = plain.groupby(study.trials["variant"], sort=False).nunique()
        differing += [f"{count} configurations of {variant} in {study.name}" for variant, count in mixed.items() if count > 1]
        devices = study.evaluations["device"]
        if devices.dropna().nunique() > 1:
            differing.append(f"{devices.dropna().nunique()} devices of evaluations in {study.name}")
        if devices.isna().any():
            unknown.append(f"devices of evaluations in {study.name}")
    if any(len(study.evaluations) for study in studies):
        unknown.append("library versions and commits of evaluations")
    if not differing and not unknown:
        return "met", "All searches of a study ran on one kind of device, with the same library versions, at one commit."
    parts = [f"different: {_listed(differing)}"] if differing else ["no difference is known"]
    parts += [f"not recorded for all: {_listed(unknown)}"] if unknown else []
    text = "; ".join(parts)
    return "partly", f"{text[:1].upper()}{text[1:]}."


def _resources(studies: Sequence[StudyFacts]) -> Finding:
    parts, unknown = [], 0
    for table, words in (("trials", "searching"), ("evaluations", "training from scratch")):
        rows = pd.concat([getattr(study, table) for study in studies], ignore_index=True)
        rows = rows[rows["status"] != "running"]
        unknown += int(rows["seconds"].isna().sum())
        if "diagnostic_seconds" in rows:
            rows = rows.assign(seconds=rows["seconds"] + rows["diagnostic_seconds"].astype(float).fillna(0))
        # A row that one study took over from another has its times, and was paid for once.
        once = rows.dropna(subset="seconds").drop_duplicates(["started", "finished", "device", "seconds", "seed"])
        hours = once.fillna({"device": "an unknown device"}).groupby("device", sort=False)["seconds"].sum() / 3600
        on = ", ".join(f"{value:,.2f} h on {device}" for device, value in hours.items()) or "no hours"
        parts.append(f"{words}: {on}")
    text = f"{'; '.join(parts)}; repeated attempts and diagnostics included, and rows that studies share counted once."
    text += f" {unknown} rows that ended have no duration." if unknown else ""
    return "partly", f"{text[:1].upper()}{text[1:]} What was spent before the study, on tuning, is not known."


def _setup(studies: Sequence[StudyFacts]) -> Finding:
    trials = pd.concat([study.trials for study in studies], ignore_index=True)
    lacks = [name for name in ("config", "versions", "device", "commit") if not _known(trials[name]).all()]
    libraries = sorted({name for text in trials["versions"].dropna().unique() for name in json.loads(text)})
    text = f"Per search: the whole configuration, seeds, device, commit, and the versions of {_listed(libraries)}."
    text += f" Not recorded for all: {_listed(lacks)}." if lacks else ""
    if any(len(study.evaluations) for study in studies):
        return "partly", f"{text} Per evaluation: the whole configuration, seeds and device, but neither commit nor versions."
    return ("partly" if lacks else "met"), text


def _known(values: pd.Series) -> pd.Series:
    return values.notna() & (values != "unknown")


def _listed(values: Iterable[object], most: int = 6) -> str:
    texts = [str(value)[:60] for value in values]
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")


def _always(status: Status, answer: str) -> Callable[[Sequence[StudyFacts]], Finding]:
    return lambda _: (status, answer)


_CHECKS: Mapping[str, Mapping[str, Callable[[Sequence[StudyFacts]], Finding]]] = {
    "Releasing code": {
        "Release Code for the Training Pipeline(s) You Use": _always(
            "not known", "The table of evaluations names no commit: which code trained the cells from scratch, no table says."
        ),
        "Release Code for Your NAS Method": _search_code,
        "Don’t Wait Until You’ve Cleaned up the Code; That Time May Never Come": _always(
            "not known", "No table knows when code was published."
        ),
    },
    "Comparing methods": {
        "Use the Same NAS Benchmarks, not Just the Same Datasets": _benchmarks,
        "Run Ablation Studies": _ablations,
        "Use the Same Evaluation Protocol for the Methods Being Compared": _protocol,
        "Evaluate Performance as a Function of Compute Resources": _compute,
        "Compare Against Random Sampling and Random Search": _random,
        "Perform Multiple Runs with Different Seeds": _seeds,
        "Use Tabular or Surrogate Benchmarks If Possible": _looked_up,
        "Control Confounding Factors": _confounders,
    },
    "Reporting details": {
        "Report the Use of Hyperparameter Optimization": _always(
            "not known", "Every trial's settings are in its table; how they were found, and at what cost, no table says."
        ),
        "Report End-to-End Resources Required for the Entire NAS Method": _resources,
        "Report All the Details of Your Experimental Setup": _setup,
    },
}
