"""The best practices of NAS research (Lindauer & Hutter, 2020), answered from the tables of studies.

Titles are those of the paper: Lindauer, Hutter: Best Practices for Scientific Research on Neural Architecture Search. JMLR 21(243),
2020 (arXiv 1909.02453). What no table can know, such as whether code was published, is answered with "not known".
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pandas as pd

SOURCE = "Lindauer, Hutter: Best Practices for Scientific Research on Neural Architecture Search. JMLR 21(243), 2020."
ENOUGH_SEEDS = 3  # with fewer a standard deviation says nothing; the paper names ten as the ideal

Status = Literal["met", "partly", "not met", "not known"]


@dataclass(frozen=True)
class StudyFacts:
    """What the tables of one study say about how it was done, its results apart."""

    folder: Path
    trials: pd.DataFrame  # the table `trials`
    evaluations: pd.DataFrame  # of the table `evaluations`: all but the lists

    @property
    def name(self) -> str:
        return self.folder.name


@dataclass(frozen=True)
class Item:
    number: int
    group: str
    title: str
    status: Status
    answer: str


def fill_checklist(studies: Sequence[StudyFacts]) -> list[Item]:
    """All 14 items for the studies together: an item is met if every study meets it."""
    studies = [
        replace(study, trials=study.trials.assign(commit=study.trials["commit"].where(study.trials["commit"] != "unknown")))
        for study in studies
    ]
    trials = pd.concat([study.trials for study in studies], ignore_index=True)
    answers = [
        ("Releasing code", "Release Code for the Training Pipeline(s) You Use", _code(trials, "trained the networks")),
        ("Releasing code", "Release Code for Your NAS Method", _code(trials, "searched")),
        (
            "Releasing code",
            "Don’t Wait Until You’ve Cleaned up the Code; That Time May Never Come",
            ("not known", "No table knows when code was published."),
        ),
        ("Comparing methods", "Use the Same NAS Benchmarks, not Just the Same Datasets", _benchmarks(studies)),
        ("Comparing methods", "Run Ablation Studies", _ablations(studies)),
        ("Comparing methods", "Use the Same Evaluation Protocol for the Methods Being Compared", _protocol(studies)),
        ("Comparing methods", "Evaluate Performance as a Function of Compute Resources", _compute(trials)),
        ("Comparing methods", "Compare Against Random Sampling and Random Search", _random(trials)),
        ("Comparing methods", "Perform Multiple Runs with Different Seeds", _seeds(studies)),
        (
            "Comparing methods",
            "Use Tabular or Surrogate Benchmarks If Possible",
            ("not met", "Every figure here comes from a network that was trained; no benchmark was looked up."),
        ),
        ("Comparing methods", "Control Confounding Factors", _confounders(studies)),
        (
            "Reporting details",
            "Report the Use of Hyperparameter Optimization",
            ("partly", "Every trial's settings are in its table; how they were found, and at what cost, is not known."),
        ),
        ("Reporting details", "Report End-to-End Resources Required for the Entire NAS Method", _resources(studies)),
        ("Reporting details", "Report All the Details of Your Experimental Setup", _setup(trials)),
    ]
    return [Item(number, group, title, status, answer) for number, (group, title, (status, answer)) in enumerate(answers, start=1)]


def _code(trials: pd.DataFrame, what: str) -> tuple[Status, str]:
    commits = trials["commit"].dropna().unique()
    unnamed = int(trials["commit"].isna().sum())
    if len(commits) == 0:
        return "not known", f"No trial names the commit of the code that {what}."
    named = f"The code that {what} is named by its commit ({_listed(commits)})"
    named += f", except for {unnamed} of {len(trials)} trials" if unnamed else ""
    return "partly", f"{named}; whether it was published is not known."


def _benchmarks(studies: Sequence[StudyFacts]) -> tuple[Status, str]:
    mixed = [study.name for study in studies if study.trials["data"].nunique() > 1 or study.trials["split_seed"].nunique() > 1]
    if mixed:
        return "partly", f"Searches on several data sets or splits in {_listed(mixed)}; they are compared one by one."
    data = sorted({str(name) for study in studies for name in study.trials["data"]})
    return (
        "met",
        f"All variants of a study search on the same images and split ({_listed(data)}). Published figures stand apart from ours.",
    )


def _ablations(studies: Sequence[StudyFacts]) -> tuple[Status, str]:
    counts = {study.name: study.trials["variant"].nunique() for study in studies}
    told = "; ".join(f"{name}: {count} variants" for name, count in counts.items())
    if min(counts.values()) > 1:
        return "met", f"Each variant is one named difference from its study's base. {told}."
    return ("partly" if max(counts.values()) > 1 else "not met"), f"A study of one variant is no ablation. {told}."


def _protocol(studies: Sequence[StudyFacts]) -> tuple[Status, str]:
    if all(study.evaluations.empty for study in studies):
        return "not known", "No genotype has been evaluated yet."
    mixed = []
    for study in studies:
        recipes = study.evaluations.groupby(["data", "recipe"])["recipe_id"].nunique()
        if (recipes > 1).any():
            mixed.append(study.name)
    if mixed:
        return "not met", f"Genotypes were trained by several versions of one recipe in {_listed(mixed)}."
    return (
        "met",
        "One genotype a search, trained from scratch by one recipe; test images are read once, after the last epoch.",
    )


def _compute(trials: pd.DataFrame) -> tuple[Status, str]:
    if trials["seconds"].isna().all():
        return "not known", "No trial has a duration."
    return (
        "partly",
        "Every epoch has its duration, and many the derived cell's accuracy in inherited weights; only last cells are retrained.",
    )


def _random(trials: pd.DataFrame) -> tuple[Status, str]:
    methods = set(trials.loc[trials["status"] == "completed", "method"])
    have = {"random sampling": "random" in methods, "random search": "random_search" in methods}
    there = " and ".join(name for name, found in have.items() if found)
    absent = " and ".join(name for name, found in have.items() if not found)
    if not there:
        return "not met", "Neither random sampling nor random search was run to the end."
    return ("met", f"Both {there} were run.") if not absent else ("partly", f"There is {there}, but no {absent}.")


def _seeds(studies: Sequence[StudyFacts]) -> tuple[Status, str]:
    counts: dict[str, int] = {}
    for study in studies:
        searched = study.trials[study.trials["method"] != "given"]
        for variant, trials in searched.groupby("variant", sort=False):
            counts[f"{study.name}: {variant}"] = trials.loc[trials["status"] == "completed", "seed"].nunique()
    if not counts or max(counts.values()) == 0:
        return "not known", "No search is completed."
    least, most = min(counts.values()), max(counts.values())
    told = f"{least} to {most}" if least < most else f"{most}"
    text = f"{told} completed search seed{'s' if most > 1 else ''} a variant, listed in the table of searches"
    if least >= ENOUGH_SEEDS:
        return "met", text + "."
    few = [name for name, count in counts.items() if count < ENOUGH_SEEDS]
    return ("partly" if most > 1 else "not met"), f"{text}. Fewer than {ENOUGH_SEEDS}: {_listed(few)}."


def _confounders(studies: Sequence[StudyFacts]) -> tuple[Status, str]:
    differing, unknown = [], []
    for study in studies:
        for column, words in (("device", "devices"), ("versions", "library versions"), ("commit", "commits")):
            known = study.trials[column].dropna().unique()
            if len(known) > 1:
                differing.append(f"{len(known)} {words} in {study.name}")
            if study.trials[column].isna().any():
                unknown.append(f"{words} in {study.name}")
    if not differing and not unknown:
        return "met", "All searches of a study ran on one kind of device, with the same library versions, at one commit."
    parts = [f"different: {_listed(differing)}"] if differing else []
    parts += [f"not recorded for all: {_listed(unknown)}"] if unknown else []
    return "partly", f"{'; '.join(parts).capitalize()}."


def _resources(studies: Sequence[StudyFacts]) -> tuple[Status, str]:
    tables = [(study.trials, study.evaluations) for study in studies]
    search, training = (sum(float(pair[side]["seconds"].sum()) for pair in tables) / 3600 for side in (0, 1))
    unknown = sum(int(part[part["status"] == "completed"]["seconds"].isna().sum()) for pair in tables for part in pair)
    text = (
        f"{search:,.2f} hours of searching and {training:,.2f} hours of training from scratch, repeated attempts included. What "
        "was spent before the study, on tuning, is not known."
    )
    return ("partly", f"{text} {unknown} completed trials have no duration.") if unknown else ("met", text)


def _setup(trials: pd.DataFrame) -> tuple[Status, str]:
    lacks = [name for name in ("config", "versions", "device", "commit") if trials[name].isna().any()]
    libraries = sorted({name for text in trials["versions"].dropna().unique() for name in json.loads(text)})
    text = f"Per trial: the whole configuration, seeds, device, commit, and the versions of {_listed(libraries)}."
    return ("partly", f"{text} Not recorded for all: {_listed(lacks)}.") if lacks else ("met", text)


def _listed(values: Iterable[object], most: int = 6) -> str:
    texts = [str(value)[:60] for value in values]
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")
