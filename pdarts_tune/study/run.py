"""Runs what is missing of a study: which trials its tables lack, what other studies have finished, and the sweep of the rest.

Studies share variants: P-DARTS itself is the base of RQ1, RQ2 and RQ3. With `--reuse` a search is taken over where its whole
configuration is the same, seeds included, and an evaluation where genotype and configuration are. Rows are copied as they are, with
commit, device and times of where they ran, under this study's names. A published copy names data in files by their folder alone
(`parquet:cifar10`): the same name is taken for the same data.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pdarts_tune.config.evaluation import EvalConfig
from pdarts_tune.config.methods import paired_variant
from pdarts_tune.config.serialize import ConfigError, config_id, from_dict, short_name, to_dict
from pdarts_tune.pdarts.genotype import Genotype
from pdarts_tune.results.storage import Storage
from pdarts_tune.results.tables import final_genotypes, read_rows, read_table, write_rows
from pdarts_tune.study.plan import EvalTrial, Plan, SearchTrial

if TYPE_CHECKING:
    import pandas as pd

    from pdarts_tune.study.locking import Signals

_STATE = {
    "trials": ("trial_id", "status", "error", "max_skips"),
    "evaluations": ("trial_id", "status", "data", "left_out", "shared"),
}


def missing_trials(trials: Sequence[SearchTrial | EvalTrial], table: str, folder: Storage) -> list[SearchTrial | EvalTrial]:
    """The trials that the table does not hold as completed or over their memory limit."""
    finished = _finished(folder, table) | (over_limit(folder) if table == "trials" else set())
    return [trial for trial in trials if trial.trial_id not in finished]


def found_genotypes(plan: Plan, folder: Path | Storage) -> dict[str, str]:
    """The distinct genotypes (id to text) that the plan's finished searches end with, at the skip limits of their variants."""
    trials = read_columns(Storage(folder), "trials", *_STATE["trials"])
    finished = set(trials.trial_id[trials.status == "completed"])
    if not finished:
        return {}
    limits = {variant.name: variant.limits for variant in plan.variants}
    columns = ("trial_id", "stage", "max_skips", "genotype_id", "genotype")
    every_limit = tuple(sorted({limit for chosen in limits.values() for limit in chosen}))
    rows = final_genotypes(read_columns(Storage(folder), "genotypes", *columns, max_skips=every_limit), trials, every_limit)
    genotypes = {(row.trial_id, row.max_skips): (str(row.genotype_id), str(row.genotype)) for row in rows.itertuples(index=False)}
    return dict(
        genotypes[trial.trial_id, limit]
        for trial in plan.searches()
        if trial.trial_id in finished
        for limit in limits[trial.variant]
    )


def study_is_done(plan: Plan, folder: Storage) -> bool:
    """Whether the tables hold every search and every evaluation of the plan; never so where schedules are chosen on the way."""
    if plan.study.adaptive or missing_trials(plan.searches(), "trials", folder):
        return False
    return not missing_trials(plan.evaluations(found_genotypes(plan, folder)), "evaluations", folder)


def _finished(folder: Path | Storage, table: str) -> set[str]:
    rows = read_columns(Storage(folder), table, *_STATE[table])
    return set(rows.trial_id[rows.status == "completed"])


def over_limit(folder: Path | Storage) -> set[str]:
    """The searches that ended because a stage needs more than their memory limit. Another attempt would end the same way."""
    rows = read_columns(Storage(folder), "trials", *_STATE["trials"])
    return set(rows.trial_id[(rows.status == "out_of_memory") & rows.error.str.startswith("MemoryLimitError").fillna(False)])


def failed_tables(folder: Path | Storage) -> list[str]:
    """The tables that hold failed trials, with their errors."""
    tables = []
    for table, columns in _STATE.items():
        rows = read_columns(Storage(folder), table, *columns)
        failed = set(rows.trial_id[rows.status.isin(["failed", "out_of_memory"])])
        if failed - (over_limit(folder) if table == "trials" else set()):
            tables.append(table)
    return tables


def read_columns(folder: Storage, table: str, *columns: str, max_skips: tuple[int, ...] | None = None) -> pd.DataFrame:
    """These columns of a table, read again only when one of its files changes. No rows where there are no files.

    Args:
        max_skips: of `genotypes`, the rows at these limits alone.
    """
    return _read_once(folder.location, table, columns, max_skips, tuple(folder.stamps(table).items()))


@lru_cache(maxsize=8)
def _read_once(
    location: str, table: str, columns: tuple[str, ...], max_skips: tuple[int, ...] | None, stamps: tuple[tuple[str, str], ...]
) -> pd.DataFrame:
    folder = Storage(location)
    if not stamps:
        import pandas as pd

        return pd.DataFrame({column: pd.Series(dtype=str) for column in columns})
    return read_table(folder, table, columns, only={} if max_skips is None else {"max_skips": max_skips})


def image_warnings(folder: Path | Storage) -> list[str]:
    """Problems with the images of the data sets. The worker processes that notice them have no terminal to print them on."""
    messages = {
        "left_out": "images of {} cannot be used and were left out",
        "shared": "of {}'s test images are among its training images too",
    }
    rows = read_columns(Storage(folder), "evaluations", *_STATE["evaluations"])
    counts = rows[["data", *messages]].groupby("data").max()
    return [
        f"{row[column]:.0f} {message.format(name)}"
        for name, row in counts.iterrows()
        for column, message in messages.items()
        if row[column] > 0
    ]


def forget_checkpoints(folder: Storage) -> None:
    """Removes the checkpoints of finished trials. A trial that is killed after its last row leaves one."""
    finished = _finished(folder, "trials") | _finished(folder, "evaluations")
    for name in folder.stamps("checkpoints"):
        if name.removesuffix(".pt") in finished:
            folder.remove(f"checkpoints/{name}")


_TABLES = ("epochs", "alphas", "genotypes", "trials")  # of a search; trials comes last: it says that the search is finished


def open_sources(reuse: str | None, folder: Storage) -> list[Storage]:
    """The study folders that `--reuse` names, separated by commas.

    Raises:
        ConfigError: one of them is not a study's folder, or is the study's own.
    """
    sources = [Storage(name) for name in reuse.split(",")] if reuse else []
    for source in sources:
        if "trials" not in source.folders():
            raise ConfigError(f"reuse: {source} is not the folder of a study, it has no folder trials")
        if source.location == folder.location:
            raise ConfigError(f"reuse: {source} is the study itself, which is continued anyway")
    return sources


Same = tuple[SearchTrial | EvalTrial, Storage, str]


def find_same(trials: Sequence[SearchTrial | EvalTrial], sources: Sequence[Storage]) -> list[Same]:
    """The trials that a source has finished, with the first such source and the trial's id there.

    Raises:
        ConfigError: a source's table cannot be read.
    """
    same: dict[str, Same] = {}
    for source in sources:
        searches = _finished_searches(source) if any(isinstance(trial, SearchTrial) for trial in trials) else {}
        trainings = _finished_evaluations(source) if any(isinstance(trial, EvalTrial) for trial in trials) else {}
        for trial in trials:
            for data in (trial.config.data, short_name(trial.config.data)):
                if isinstance(trial, SearchTrial) and paired_variant(trial.config.method):
                    there = None  # it depends on another search too, which can differ there
                elif isinstance(trial, SearchTrial):
                    there = searches.get(config_id(replace(trial.config, data=data)))
                else:
                    there = trainings.get((Genotype.parse(trial.genotype).genotype_id, replace(trial.config, data=data)))
                if there is not None:
                    same.setdefault(trial.trial_id, (trial, source, there))
    return list(same.values())


def _finished_searches(source: Storage) -> dict[str, str]:
    """Trial ids by config_id."""
    rows = read_columns(source, "trials", "trial_id", "status", "config_id")
    rows = rows[rows.status == "completed"]
    return dict(zip(rows.config_id, rows.trial_id, strict=True))


def _finished_evaluations(source: Storage) -> dict[tuple[str, EvalConfig], str]:
    """Trial ids by genotype id and configuration."""
    rows = read_columns(source, "evaluations", "trial_id", "status", "genotype_id", "config")
    rows = rows[rows.status == "completed"]
    configs = {text: from_dict(EvalConfig, json.loads(text)) for text in rows.config.unique()}
    return dict(zip(zip(rows.genotype_id, rows.config.map(configs), strict=True), rows.trial_id, strict=True))


def take_over(trials: Sequence[SearchTrial | EvalTrial], sources: Sequence[Storage], folder: Storage) -> int:
    """Copies the rows of the trials that a source has finished, and returns how many trials these are.

    Raises:
        ConfigError: a source's table cannot be read.
    """
    same = find_same(trials, sources)
    for trial, source, there in same:
        config = {"data": trial.config.data, "config": json.dumps(to_dict(trial.config))}
        if isinstance(trial, EvalTrial):
            _copy(source, there, folder, "evaluations", trial.trial_id, config)
            continue
        names = config | {"config_id": config_id(trial.config), "study": folder.name, "variant": trial.variant}
        for table in _TABLES:
            _copy(source, there, folder, table, trial.trial_id, names if table == "trials" else {})
    return len(same)


def _copy(source: Storage, there: str, folder: Storage, table: str, trial_id: str, names: dict[str, Any]) -> None:
    rows = [row | names | {"trial_id": trial_id} for row in read_rows(source, table, there)]
    if rows:  # a random genotype has no epochs
        write_rows(folder, table, trial_id, rows)


NAMES_SHOWN = 8  # of missing trials


@dataclass(frozen=True)
class Demands:
    """How trials run. No result depends on it."""

    address: str | None
    gpus_per_trial: float | None
    max_failures: int
    keep_weights: bool
    sources: Sequence[Storage] = ()  # studies whose finished trials are taken over


def run_missing(plan: Plan, demands: Demands, folder: Storage, signals: Signals) -> int:
    """Runs the trials that the tables lack, and returns how many failed. Ray and torch start only if there are some."""
    if plan.study.adaptive:
        return _run_adaptive(plan, demands, folder, signals)

    def lacking(trials: Sequence[SearchTrial | EvalTrial], table: str) -> list[SearchTrial | EvalTrial]:
        missing = missing_trials(trials, table, folder)
        taken = take_over(missing, demands.sources, folder) if demands.sources else 0
        if taken:
            what = "searches" if table == "trials" else "evaluations"
            print(f"{taken} {what} taken over from {', '.join(map(str, demands.sources))}", flush=True)
            return missing_trials(trials, table, folder)
        return missing

    searches = plan.searches()
    missing = lacking(searches, "trials")
    evaluations = [] if missing else plan.evaluations(found_genotypes(plan, folder))
    if not missing and not lacking(evaluations, "evaluations"):
        print(f"{len(searches)} searches and {len(evaluations)} evaluations, all of them done", flush=True)
        return 0

    from pdarts_tune.networks.kernels.build import announce
    from pdarts_tune.study.forecast import predict_needs, refuse_large
    from pdarts_tune.study.sweep import open_sweep

    failed = 0
    with open_sweep(folder, demands.address, demands.gpus_per_trial, demands.max_failures) as sweep:
        signals.install()  # again: Ray's start installs a handler that aborts
        if not sweep.grants.gpu_bytes:  # compiles the kernels, before trials would do it side by side
            announce(plan.cell_evaluations())

        def run(trials: Sequence[SearchTrial | EvalTrial], what: str, table: str) -> int:
            missing = lacking(trials, table)
            refused = len(missing)
            searches = [trial for trial in missing if isinstance(trial, SearchTrial)]
            missing = [*searches, *refuse_large([trial for trial in missing if isinstance(trial, EvalTrial)], folder)]
            refused -= len(missing)
            if 0 < len(missing) < len(trials):
                names = ", ".join(trial.trial_id for trial in missing[:NAMES_SHOWN])
                more = f" and {len(missing) - NAMES_SHOWN} more" if len(missing) > NAMES_SHOWN else ""
                print(f"missing {what}: {names}{more}", flush=True)
            needs = predict_needs(missing) if sweep.grants.gpu_bytes else {}
            needed = [needs.get(trial.trial_id, 0) for trial in missing]
            specs = [
                _spec(trial, plan, folder, sweep.threads(need), need, demands.keep_weights)
                for trial, need in zip(missing, needed, strict=True)
            ]
            return refused + sweep.run(specs, what, total=len(trials) - refused)

        controls = [trial for trial in searches if paired_variant(trial.config.method)]  # whose pairs must be finished first
        failed += run([trial for trial in searches if trial not in controls], "searches", "trials")
        if controls:
            failed += run(controls, "controls", "trials")
        failed += run(plan.evaluations(found_genotypes(plan, folder)), "evaluations", "evaluations")
    return failed


def _run_adaptive(plan: Plan, demands: Demands, folder: Storage, signals: Signals) -> int:
    """Runs schedules until the plan's number of them is finished, and returns how many failed."""
    from pdarts_tune.networks.kernels.build import announce
    from pdarts_tune.study.schedule_search import run_schedules
    from pdarts_tune.study.sweep import open_sweep

    with open_sweep(folder, demands.address, demands.gpus_per_trial, demands.max_failures) as sweep:
        signals.install()
        if not sweep.grants.gpu_bytes:
            announce(plan.cell_evaluations())
        return run_schedules(plan, folder, sweep, _commit())


def _spec(
    trial: SearchTrial | EvalTrial, plan: Plan, folder: Storage, threads: int, needed_bytes: int, keep_weights: bool
) -> dict[str, Any]:
    from pdarts_tune.study.trainable import TrialSpec

    return asdict(
        TrialSpec(
            trial_id=trial.trial_id,
            study=plan.study.name,
            variant=trial.variant if isinstance(trial, SearchTrial) else "",
            study_dir=str(folder),
            config=to_dict(trial.config),
            genotype=trial.genotype if isinstance(trial, EvalTrial) else "",
            threads=threads,
            commit=_commit(),
            needed_bytes=needed_bytes,
            keep_weights=keep_weights,
        )
    )


@cache
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
