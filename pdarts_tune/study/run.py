"""What is left of a study and what can run now, from its plan and its tables; and the run of it.

Studies share variants: P-DARTS itself is the base of RQ1, RQ2 and RQ3. With `--reuse` a search is taken over where its whole
configuration is the same, seeds included, and an evaluation where genotype and configuration are. Rows are copied as they are, with
commit, device and times of where they ran, under this study's names. A published copy names data in files by their folder alone
(`parquet:cifar10`): the same name is taken for the same data.
"""

from __future__ import annotations

import heapq
import json
import math
import statistics
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from itertools import count, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pdarts_tune.config.evaluation import ESTIMATORS, EvalConfig
from pdarts_tune.config.methods import paired_variant
from pdarts_tune.config.serialize import ConfigError, config_id, from_dict, short_name, to_dict
from pdarts_tune.pdarts.genotype import Genotype
from pdarts_tune.results.manifest import planned_evaluations, planned_seeds
from pdarts_tune.results.storage import Storage
from pdarts_tune.results.tables import ALL_ROWS, chosen_epoch, epoch_genotypes, final_genotype, read_rows, read_study, write_rows
from pdarts_tune.study.plan import Arguments, EvalTrial, Plan, SearchTrial, search_id
from pdarts_tune.study.shares import multi_process_service

if TYPE_CHECKING:
    from pdarts_tune.evaluation.estimates import Estimator

Trial = SearchTrial | EvalTrial
Row = Mapping[str, Any]

_TRIALS = ("trial_id", "status", "error", "max_skips", "method")
_EVALUATIONS = ("trial_id", "status", "failure", "genotype_id", "data", "recipe_id", "seed", "error_percent", "left_out", "shared")
_GENOTYPES = ("trial_id", "stage", "max_skips", "genotype_id", "genotype")
_EPOCHS = ("trial_id", "stage", "epoch", "derived_epoch", "validation_accuracy")


def _read(folder: Storage, table: str, columns: Sequence[str], only: Mapping[str, Any] = ALL_ROWS) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read_study(folder, table, columns, only).to_pylist()
    return rows


def _by_id(rows: Iterable[Row]) -> dict[str, Row]:
    return {row["trial_id"]: row for row in rows}


def _by_trial(rows: Iterable[Row]) -> dict[str, list[Row]]:
    groups = defaultdict(list)
    for row in rows:
        groups[row["trial_id"]].append(row)
    return groups


class Outcomes:
    """The rows of `trials` and `evaluations` in a study's folder, by trial id: how each trial ended."""

    def __init__(self, folder: Path | Storage) -> None:
        self.folder = Storage(folder)
        self.trials = _by_id(_read(self.folder, "trials", _TRIALS))
        self.evaluations = _by_id(_read(self.folder, "evaluations", _EVALUATIONS))

    @property
    def completed(self) -> set[str]:
        return {name for name, row in (self.trials | self.evaluations).items() if row["status"] == "completed"}

    @property
    def over_limit(self) -> set[str]:
        """The searches that ended because a stage needs more than their memory limit. Another attempt would end the same way."""
        over = (name for name, row in self.trials.items() if row["status"] == "out_of_memory")
        return {name for name in over if (self.trials[name]["error"] or "").startswith("MemoryLimitError")}

    def missing_of(self, definition: Mapping[str, Any]) -> tuple[list[str], list[str]]:
        """The searches and the evaluations of a study's definition that are not completed."""
        completed, over = self.completed, self.over_limit
        genotypes = _by_trial(_read(self.folder, "genotypes", _GENOTYPES))
        rows = (row for name, row in self.evaluations.items() if name in completed)
        done = {(row["genotype_id"], row["recipe_id"], row["data"], row["seed"]) for row in rows}
        stored = definition["evaluation"], *definition.get("further_evaluations", ())
        recipes = [from_dict(EvalConfig, recipe) for recipe in stored]
        planned, searches = planned_evaluations(definition), []
        evaluations: dict[str, None] = {}
        for variant, seeds in planned_seeds(definition).items():
            limits, count = planned[variant]
            for name in (search_id(variant, seed) for seed in seeds):
                if name not in completed | over:
                    searches.append(name)
                cells = (final_genotype({**self.trials[name], "max_skips": limit}, genotypes[name]) for limit in limits)
                for cell, recipe, seed in product(cells if name in completed else (), recipes, range(count)):
                    if cell and (cell["genotype_id"], recipe.recipe_id, recipe.data, seed) not in done:
                        evaluations[f"{cell['genotype_id']} by {recipe.recipe_id} on {recipe.data}, seed {seed}"] = None
        return searches, list(evaluations)

    def last_error(self, trial_id: str) -> str:
        """Why the last attempt at this trial failed; empty if it did not."""
        row = self.trials.get(trial_id) or self.evaluations.get(trial_id) or {}
        return row.get("error") or row.get("failure") or ""

    @property
    def failed_tables(self) -> list[str]:
        """The tables that hold failed trials, with their errors."""
        over, tables = self.over_limit, {"trials": self.trials, "evaluations": self.evaluations}
        states = {table: {row["status"] for name, row in rows.items() if name not in over} for table, rows in tables.items()}
        return [table for table in tables if states[table] & {"failed", "out_of_memory"}]

    @property
    def image_warnings(self) -> list[str]:
        """Problems with the images of the data sets. The worker processes that notice them have no terminal to print them on."""
        messages = {
            "left_out": "images of {} cannot be used and were left out",
            "shared": "of {}'s test images are among its training images too",
        }
        counts: dict[tuple[str, str], int] = defaultdict(int)
        for row, column in product(self.evaluations.values(), messages):
            counts[row["data"], column] = max(counts[row["data"], column], row[column] or 0)
        return [f"{images} {messages[column].format(data)}" for (data, column), images in sorted(counts.items()) if images]

    def forget_checkpoints(self) -> None:
        """Removes the checkpoints of completed trials. A trial that is killed after its last row leaves one."""
        completed = self.completed
        for name in self.folder.stamps("checkpoints"):
            if name.removesuffix(".pt") in completed:
                self.folder.remove(f"checkpoints/{name}")


class StudyState(Outcomes):
    """What the tables hold of a plan, and which trials can run now. Reads the tables once, then the rows of each trial that ends.

    The evaluations of a genotype can run once a search has ended with it, each distinct genotype's once; a control
    (`paired_variant`) once its pair has ended; every other search at once. Searches come seed by seed. An evaluation comes with the
    searches of the seed that is the sum of its search's and its own, and before them: rows are complete early, neither kind waits
    for the last of the other, and a study that is cut short still compares all its variants.

    Args:
        sources: studies whose finished trials are taken over as soon as they could run.
        estimator: estimates each distinct genotype as soon as it is there.
        every_epoch: it also estimates the cells that each epoch's alphas give, at the search's own skip limit.

    Raises:
        ConfigError: a table cannot be read.
    """

    def __init__(
        self,
        plan: Plan,
        folder: Path | Storage,
        sources: Sequence[Source] = (),
        estimator: Estimator | None = None,
        every_epoch: bool = False,
    ) -> None:
        super().__init__(folder)
        self.plan, self.sources, self.estimator, self.every_epoch = plan, sources, estimator, every_epoch
        self.searches = {trial.trial_id: trial for trial in plan.searches}
        self.found: dict[str, EvalTrial] = {}  # every evaluation of the genotypes so far
        self.under_way: dict[str, Trial] = {}
        self._variants = {variant.name: variant for variant in plan.variants}
        self._cells: dict[str, dict[int, tuple[str, str]]] = {}  # by completed search and skip limit: genotype id and text
        self._waiting: list[tuple[int, bool, int, Trial]] = []  # a heap
        self._numbers = count()
        self._controls: dict[str, list[SearchTrial]] = defaultdict(list)  # by the search that they wait for
        self._accuracies: dict[str, float] = {}  # of completed searches; read for the first table
        limits = {limit for variant in plan.variants for limit in (*variant.limits, variant.search.max_skips)}
        cells = _by_trial(_read(self.folder, "genotypes", _GENOTYPES, {"max_skips": limits}) if self.trials else ())
        for name in self.searches:
            self._read_cells(name, cells[name])
        self._take_over(self.missing)
        self.ended = set(self.searches) - {trial.trial_id for trial in self.missing}
        for trial in self.missing:
            pair = paired_variant(trial.config.method)
            before = pair and search_id(pair, trial.config.seed)
            if before and before not in self.ended:
                self._controls[before].append(trial)
            else:
                self._wait(trial, trial.config.seed)
        self._find_evaluations(self._cells)

    @property
    def missing(self) -> list[SearchTrial]:
        """The searches that are neither completed nor over their memory limit."""
        over = self.over_limit
        return [trial for name, trial in self.searches.items() if name not in self._cells and name not in over]

    @property
    def is_done(self) -> bool:
        """Whether the tables hold every search and evaluation; never so where schedules are chosen on the way."""
        return not self._waiting and not self.plan.study.adaptive

    @property
    def is_exhausted(self) -> bool:
        """Whether no trial waits, and none that is under way can make others possible."""
        return not self._waiting and not any(isinstance(trial, SearchTrial) for trial in self.under_way.values())

    @property
    def most_evaluations(self) -> int:
        """How many evaluations there are, if every search that has not ended finds genotypes of its own."""
        each = len(self.plan.recipes) * self.plan.evaluation_seeds
        unknown = [trial for name, trial in self.searches.items() if name not in self.ended]
        return len(self.found) + each * sum(len(self._variants[trial.variant].limits) for trial in unknown)

    @property
    def evaluations_left(self) -> dict[EvalConfig, int]:
        """By recipe: the evaluations that are not completed, if every search that has not ended finds genotypes of its own."""
        unknown = self.most_evaluations - len(self.found)
        left = {recipe: unknown // len(self.plan.recipes) for recipe in self.plan.recipes}
        for name, trial in self.found.items():
            left[replace(trial.config, seed=0)] += not self._is_evaluated(name)
        return left

    @property
    def ready(self) -> int:
        """How many trials run or could run now."""
        return len(self._waiting) + len(self.under_way)

    def take(self, fits: Callable[[Trial], bool] = lambda _: True) -> Trial | None:
        """The trial that comes next, which runs from now on; None if there is none, or it does not fit now."""
        if not self._waiting or not fits(self._waiting[0][-1]):
            return None
        trial = heapq.heappop(self._waiting)[-1]
        self.under_way[trial.trial_id] = trial
        return trial

    def end(self, trial_id: str) -> None:
        """A trial has ended, well or for good. Reads its rows and adds what has become possible."""
        if isinstance(self.under_way.pop(trial_id), EvalTrial):
            self._read_evaluation(trial_id)
            return
        self.ended.add(trial_id)
        self._read_search(trial_id)
        for control in self._controls.pop(trial_id, ()):
            self._wait(control, control.config.seed)
        self._find_evaluations([trial_id] if trial_id in self._cells else [])

    def table(self) -> str:
        """The variants so far: searches, validation accuracy of the search networks, evaluated cells and their test error.

        ± is the standard deviation over searches. The error is that of the first recipe, at the variant's own skip limit, a mean
        over evaluation seeds; where nothing is trained, the estimated one.
        """
        from tabulate import tabulate

        self._read_accuracies()
        errors, recipe = defaultdict(list), (self.plan.evaluation.recipe_id, self.plan.evaluation.data)
        if self.estimator is not None and not self.plan.evaluation_seeds:
            recipe = self.estimator.recipe_id, self.estimator.data
        for row in self.evaluations.values():
            if row["status"] == "completed" and (row["recipe_id"], row["data"]) == recipe:
                errors[row["genotype_id"]].append(row["error_percent"])
        rows = []
        for variant in self.plan.variants:
            names = [name for name, trial in self.searches.items() if trial.variant == variant.name]
            done = [name for name in names if name in self._cells]
            accuracies = [100 * self._accuracies[name] for name in done if not math.isnan(self._accuracies[name])]
            cells = [self._cells[name].get(variant.search.max_skips, ("", ""))[0] for name in done]
            means = [statistics.fmean(errors[cell]) for cell in cells if cell in errors]
            counts = f"{len(done)}/{len(names)}", f"{len(means)}/{len(names)}"
            rows.append((variant.name, counts[0], _spread(accuracies, 1), counts[1], _spread(means, 2)))
        error = "test error, %" if self.plan.evaluation_seeds else "estimated error, %"
        headers = ("variant", "searches", "search accuracy, %", "evaluated", error)
        align = ("left", "right", "right", "right", "right")
        return tabulate(rows, headers, tablefmt="plain", disable_numparse=True, colalign=align)

    def _wait(self, trial: Trial, seed: int) -> None:
        heapq.heappush(self._waiting, (seed, isinstance(trial, SearchTrial), next(self._numbers), trial))

    def _find_evaluations(self, searches: Iterable[str]) -> None:
        """Adds the evaluations of the genotypes that these completed searches end with, at the skip limits of their variants."""
        new: dict[str, tuple[EvalTrial, int]] = {}
        for name in searches:
            search, cells = self.searches[name], self._cells[name]
            genotypes = dict(cells[limit] for limit in self._variants[search.variant].limits if limit in cells)
            for trial in self.plan.evaluations(genotypes):
                if trial.trial_id not in self.found and not self._is_evaluated(trial.trial_id):
                    new[trial.trial_id] = trial, search.config.seed + trial.config.seed
                self.found[trial.trial_id] = trial
            self._estimate([Genotype.parse(text) for text in genotypes.values()])
            if self.every_epoch:
                self._estimate(epoch_genotypes(self.folder, name, self.trials[name]["max_skips"]).values())
        self._take_over([trial for trial, _ in new.values()])
        for name, (trial, seed) in new.items():
            if not self._is_evaluated(name):
                self._wait(trial, seed)

    def _estimate(self, genotypes: Iterable[Genotype]) -> None:
        """Writes the rows of the genotypes that have none yet. A table may not know one; it then has no row."""
        if self.estimator is None:
            return
        named = {f"{genotype.genotype_id}-{self.estimator.recipe_id}": genotype for genotype in genotypes}
        new = [cell for name, cell in named.items() if not self._is_evaluated(name) and self.estimator.why_not(cell) is None]
        for genotype, estimate in zip(new, self.estimator.estimate(new), strict=True):
            row = self.estimator.row(genotype, estimate)
            write_rows(self.folder, "evaluations", row["trial_id"], [row])
            self.evaluations[row["trial_id"]] = {name: row[name] for name in _EVALUATIONS}

    def _is_evaluated(self, name: str) -> bool:
        return name in self.evaluations and self.evaluations[name]["status"] == "completed"

    def _take_over(self, trials: Sequence[Trial]) -> None:
        """Copies the rows of the trials that a source has finished, each from the first such source."""
        taken = 0
        for trial in trials:
            source = next((source for source in self.sources if source.find(trial)), None)
            if source is None:
                continue
            taken += 1
            names = {"data": trial.config.data, "config": json.dumps(to_dict(trial.config))}
            tables = ["evaluations"]
            if isinstance(trial, SearchTrial):
                names |= {"config_id": config_id(trial.config), "study": self.folder.name, "variant": trial.variant}
                tables = ["epochs", "alphas", "genotypes", "trials"]  # trials comes last: it says that the search is finished
            for table in tables:
                new = {"trial_id": trial.trial_id} | (names if table in ("evaluations", "trials") else {})
                rows = [row | new for row in read_rows(source.folder, table, source.find(trial) or "")]
                if rows:  # a random genotype has no epochs
                    write_rows(self.folder, table, trial.trial_id, rows)
            (self._read_search if isinstance(trial, SearchTrial) else self._read_evaluation)(trial.trial_id)
        if taken:
            what = "searches" if isinstance(trials[0], SearchTrial) else "evaluations"
            print(f"{taken} {what} taken over from {', '.join(map(str, self.sources))}", flush=True)

    def _read_search(self, name: str) -> None:
        self.trials.update(_by_id(read_rows(self.folder, "trials", name, _TRIALS)))
        self._read_cells(name, read_rows(self.folder, "genotypes", name, _GENOTYPES))

    def _read_cells(self, name: str, genotypes: Sequence[Row]) -> None:
        row, variant = self.trials.get(name), self._variants[self.searches[name].variant]
        if row is not None and row["status"] == "completed":
            limits = {*variant.limits, row["max_skips"]}
            cells = ((limit, final_genotype({**row, "max_skips": limit}, genotypes)) for limit in limits)
            self._cells[name] = {limit: (cell["genotype_id"], cell["genotype"]) for limit, cell in cells if cell is not None}

    def _read_evaluation(self, name: str) -> None:
        self.evaluations.update(_by_id(read_rows(self.folder, "evaluations", name, _EVALUATIONS)))

    def _read_accuracies(self) -> None:
        """Of the searches that have no accuracy yet: that of the network that the cell was taken from; nan where there is none."""
        new = [name for name in self._cells if name not in self._accuracies]
        # The first time all files are read at once.
        epochs = _by_trial(_read(self.folder, "epochs", _EPOCHS) if new and not self._accuracies else ())
        for name in new:
            chosen = chosen_epoch(self.trials[name], epochs[name] if epochs else read_rows(self.folder, "epochs", name, _EPOCHS))
            self._accuracies[name] = chosen["validation_accuracy"] if chosen else math.nan


def _spread(values: Sequence[float], digits: int) -> str:
    """Mean and standard deviation; a dash where there is no value."""
    if len(values) < 2:
        return f"{values[0]:.{digits}f}" if values else "–"
    return f"{statistics.fmean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


class Source:
    """A study whose finished searches and evaluations are taken over."""

    def __init__(self, folder: Path | Storage) -> None:
        self.folder = Storage(folder)

    def __str__(self) -> str:
        return str(self.folder)

    @cached_property
    def searches(self) -> dict[str, str]:
        """The ids of completed searches by config_id."""
        rows = _read(self.folder, "trials", ("trial_id", "status", "config_id"))
        return {row["config_id"]: row["trial_id"] for row in rows if row["status"] == "completed"}

    @cached_property
    def evaluations(self) -> dict[tuple[str, EvalConfig], str]:
        """The ids of completed evaluations by genotype id and configuration."""
        rows = _read(self.folder, "evaluations", ("trial_id", "status", "genotype_id", "config", "recipe"))
        rows = [row for row in rows if row["recipe"] not in ESTIMATORS]  # made anew, in no time
        configs = {text: from_dict(EvalConfig, json.loads(text)) for text in {row["config"] for row in rows}}
        return {(row["genotype_id"], configs[row["config"]]): row["trial_id"] for row in rows if row["status"] == "completed"}

    def find(self, trial: Trial) -> str | None:
        """The id there of a trial that is the same; None if there is none.

        A control of another search is never the same: it depends on that search, which can differ there.
        """
        names = trial.config.data, short_name(trial.config.data)
        if isinstance(trial, EvalTrial):
            cell = Genotype.parse(trial.genotype).genotype_id
            same = [self.evaluations.get((cell, replace(trial.config, data=name))) for name in names]
        elif paired_variant(trial.config.method):
            return None
        else:
            same = [self.searches.get(config_id(replace(trial.config, data=name))) for name in names]
        return same[0] or same[1]


def open_sources(reuse: str | None, folder: Storage) -> list[Source]:
    """The studies whose folders `--reuse` names, separated by commas.

    Raises:
        ConfigError: one of them is not a study's folder, or is the study's own.
    """
    sources = [Source(Storage(name)) for name in reuse.split(",")] if reuse else []
    for source in sources:
        if "trials" not in source.folder.folders():
            raise ConfigError(f"reuse: {source} is not the folder of a study, it has no folder trials")
        if source.folder.location == folder.location:
            raise ConfigError(f"reuse: {source} is the study itself, which is continued anyway")
    return sources


def run_missing(plan: Plan, settings: Arguments, folder: Storage) -> int:
    """Runs the trials that the tables lack, and returns how many failed. Ray and torch start only if there are some."""
    estimator = None
    if settings.estimator:
        from pdarts_tune.evaluation.estimates import open_estimator

        estimator = open_estimator(settings.estimator)
    state = StudyState(plan, folder, open_sources(settings.reuse, folder), estimator, settings.estimate_every_epoch)
    if state.is_done:
        print(f"{len(state.searches)} searches and {len(state.found)} evaluations, all of them done", flush=True)
        return 0

    from pdarts_tune.networks.kernels.build import announce
    from pdarts_tune.study.forecast import check_gpu
    from pdarts_tune.study.sweep import open_sweep

    with multi_process_service() if settings.mps else nullcontext(), open_sweep(folder, settings, _commit()) as sweep:
        if not sweep.grants.gpu_bytes:  # compiles the kernels, before trials would do it side by side
            announce(plan.cell_evaluations())
        if plan.study.adaptive:
            from pdarts_tune.study.schedule_search import run_schedules

            return run_schedules(plan, sweep)
        if sweep.grants.gpu_bytes:
            check_gpu(state.missing, sweep.grants.gpu_bytes)
        failed = sweep.run_study(state)
    if plan.study.report is None:
        print(f"\n{state.table()}", flush=True)
    return failed


def _commit() -> str:
    """The commit of the code that runs, with + if it is changed; `unknown` where no repository holds this file.

    A package in a `.venv` below somebody else's repository is not of that repository's commit.
    """
    here = Path(__file__)
    git = ["git", "-C", str(here.parent)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", here.name], capture_output=True, check=True)
        describe = [*git, "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
