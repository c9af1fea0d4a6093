"""Runs a study: every search as a Ray Tune trial, then every distinct genotype, then the report. One command line for all studies.

The same command continues a study that was stopped or killed, and extends one whose seeds or variants were added: what runs is
what the tables say is missing. Ray, torch and MLflow are imported when work starts, so that `--help` answers at once.
"""

from __future__ import annotations

import fcntl
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from pdarts_tune.command_line import parse
from pdarts_tune.config import DEFAULT_EXECUTION, ConfigError, EvalConfig, SearchConfig, to_dict
from pdarts_tune.definition import check_definition
from pdarts_tune.execution import Execution
from pdarts_tune.genotype import Genotype
from pdarts_tune.methods import Given
from pdarts_tune.plan import EvalTrial, Plan, SearchTrial, Study, Variant, describe, make_plan

if TYPE_CHECKING:
    from pdarts_tune.sweep import Sweep

__all__ = ["Arguments", "Study", "Variant", "main", "run_study"]


@dataclass(frozen=True)
class Arguments:
    """The command line of every study."""

    preset: str = "laptop"
    """How large: smoke, laptop, cifar-mini or paper."""
    results: Path = Path("results")
    """Folder for tables, report and MLflow store; a study that is in it is continued."""
    data: str | None = None
    """Data set: digits, cifar10, cifar100, imagenet, folder:PATH (train/ and val/) or parquet:PATH (train and test files). Several,
    separated by commas: searches are on the first, genotypes are evaluated on each."""
    variants: str | None = None
    """Run only these, separated by commas."""
    genotypes: str | None = None
    """Search nothing, evaluate these: published names, genotype files, random:SEED or folders of studies, separated by commas, each
    as SOURCE or NAME=SOURCE."""
    seeds: int | None = None
    """Searches per variant."""
    evaluation_seeds: int | None = None
    """Trainings from scratch per distinct genotype."""
    gpus_per_trial: float | None = None
    """GPUs for each trial where the cluster has any; 0.5 puts two trials on one. Without it, as follows from predicted memory."""
    max_failures: int = 2
    """How often a trial that fails or loses its process is started again, from its last epoch."""
    execution: Annotated[Execution, tyro.conf.OmitArgPrefixes] = DEFAULT_EXECUTION
    memory_limit: int | None = None
    """Bytes that a stage of a search may take, by prediction; a search that needs more ends as out_of_memory."""
    image_size: int | None = None
    """Stream images, cropped to so many pixels: for sets of larger images, or of several sizes."""
    skip_bad_images: bool = False
    """Leave out, and count, images that cannot be read; one such image is else an error."""
    address: str | None = None
    """A running Ray cluster, e.g. auto or ray://head:10001; without it, this machine."""
    tracking_uri: str | None = None
    """MLflow store or server; without it, a sqlite file in the results folder."""
    dry_run: bool = False
    """Print the trials, what each changes, and the bytes, seconds and disk that the study will take; then stop."""
    probe_seconds: float = 120.0
    """How long a dry run may time steps on this device; stages that it does not get to are scaled from the others. 0: no times."""
    print_config: bool = False
    """Print the whole study as it is resolved, as JSON, then stop."""


def main(study: Study, arguments: Sequence[str] | None = None) -> None:
    """The command line of a study. Exits with 0, 1 (a trial failed), 2 (bad input) or 130 (stopped by Ctrl-C or SIGTERM)."""
    settings = parse(Arguments, arguments, prog=f"{study.name}.py", description=study.question)
    try:
        plan = make_plan(
            study,
            settings.preset,
            data=settings.data,
            variants=settings.variants,
            memory_limit=settings.memory_limit,
            image_size=settings.image_size,
            skip_bad_images=settings.skip_bad_images,
            execution=settings.execution,
            genotypes=_find_genotypes(settings.genotypes) if settings.genotypes else None,
            seeds=settings.seeds,
            evaluation_seeds=settings.evaluation_seeds,
        )
        if settings.dry_run:
            _check_inputs(plan, settings)
            print(describe(plan, settings.results / study.name))
            from pdarts_tune.forecast import forecast_here

            print(f"\n{forecast_here(plan, settings.probe_seconds)}")
            return
        if settings.print_config:
            print(
                json.dumps(
                    _check_inputs(plan, settings) | {"seeds": plan.seeds, "evaluation_seeds": plan.evaluation_seeds}, indent=1
                )
            )
            return
        failed = run_study(plan, settings)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nstopped; the same command continues the study from the last finished epochs", file=sys.stderr)
        sys.exit(130)
    sys.exit(1 if failed else 0)


def run_study(plan: Plan, settings: Arguments) -> int:
    """Runs what is missing of the study and returns how many of its trials failed.

    Raises:
        ConfigError: bad input, found before anything is started or written.
        KeyboardInterrupt: stopped; everything up to the last finished epoch of each trial is on disk.
    """
    folder = settings.results.absolute() / plan.study.name
    definition = _check_inputs(plan, settings)
    with _exclusive(folder):
        (folder / "study.json.tmp").write_text(json.dumps(definition, indent=1))
        (folder / "study.json.tmp").replace(folder / "study.json")

        from pdarts_tune.sweep import open_sweep
        from pdarts_tune.tracking import BackgroundMirror, Mirror, TrackingError, default_tracking_uri

        uri = settings.tracking_uri or default_tracking_uri(settings.results.absolute())
        mirror = Mirror(folder, uri)
        with (
            BackgroundMirror(mirror) as background,
            open_sweep(folder, settings.address, settings.gpus_per_trial, settings.max_failures, background.touch) as sweep,
            _terminate_like_interrupt(),  # after Ray's start, which installs a handler that aborts
        ):
            failed = _run(plan.searches(), "searches", "trials", plan, folder, sweep)
            failed += _run(plan.evaluations(found_genotypes(plan, folder)), "evaluations", "evaluations", plan, folder, sweep)
        try:
            mirror.finish(ok=not failed)
        except TrackingError as error:
            print(f"warning: {error}; the tables are complete, the same command brings MLflow up to date", file=sys.stderr)
            failed += 1
        for line in image_warnings(folder):
            print(f"warning: {line}", file=sys.stderr)
        if plan.study.report:
            print(flush=True)
            subprocess.run([sys.executable, plan.study.report, "--results", settings.results], check=True)
        print(f"\ntables   {settings.results / plan.study.name}/*/*.parquet")
        print(f"report   {settings.results / plan.study.name}/report/")
        print(f"compare  mlflow ui --backend-store-uri {uri}")
        beyond = sorted(over_limit(folder) & {trial.trial_id for trial in plan.searches()})
        if beyond:
            print(f"memory   {len(beyond)} searches would take more than memory_limit: {', '.join(beyond)}")
        if failed:
            print(f"failed   {failed} (the reasons are in the trials and evaluations tables; the same command tries again)")
    return failed


def _check_inputs(plan: Plan, settings: Arguments) -> dict[str, Any]:
    """Everything that can be known to be wrong before work starts. Returns the definition that the folder shall remember."""
    if settings.gpus_per_trial is not None and settings.gpus_per_trial <= 0:
        raise ConfigError(f"gpus_per_trial: {settings.gpus_per_trial} is wrong, it must be more than 0")
    if settings.max_failures < 0:
        raise ConfigError(f"max_failures: {settings.max_failures} is wrong, it must be at least 0")
    if plan.study.report and not plan.study.report.exists():
        raise ConfigError(f"the report script {plan.study.report} is not there")
    if settings.results.exists() and not settings.results.is_dir():
        raise ConfigError(f"results: {settings.results} is a file, it must be a folder")
    definition = check_definition(plan, settings.results / plan.study.name)

    from pdarts_tune.data import DatasetInfo, check_dataset
    from pdarts_tune.network_shape import check_madds

    def check_data(config: SearchConfig | EvalConfig) -> DatasetInfo:
        counts = config.train_images, config.test_images
        return check_dataset(config.data, *counts, config.image_size, skip_bad_images=config.skip_bad_images)

    check_data(plan.base)
    for recipe in plan.recipes:
        info = check_data(recipe)
        for variant in plan.variants:
            method = variant.search.method
            if isinstance(method, Given):
                check_madds(Genotype.parse(method.genotype), recipe, info, variant.name)
    return definition


def _find_genotypes(sources: str) -> dict[str, tuple[str, Genotype]]:
    """Genotypes by the name of their variant, with where they are from."""
    from pdarts_tune.genotype_source import find_genotypes

    found: dict[str, tuple[str, Genotype]] = {}
    for item in sources.split(","):
        name, equals, source = item.rpartition("=")
        genotypes = find_genotypes(source)
        for label, genotype in genotypes.items():
            parts = [name] if equals and len(genotypes) == 1 else [part for part in (name, label.split(" ")[0]) if part]
            variant = re.sub(r"[^A-Za-z0-9_.-]+", "_", ".".join(parts)).strip("_.-")
            if variant in found:
                raise ConfigError(f"genotypes: two are called {variant}; give each source a name, as in NAME={source}")
            found[variant] = (f"{source}: {label}" if label != source else source, genotype)
    return found


def _run(trials: Sequence[SearchTrial | EvalTrial], what: str, table: str, plan: Plan, folder: Path, sweep: Sweep) -> int:
    """Runs those of the trials that the table does not hold as completed or over their limit; returns how many failed."""
    from pdarts_tune.forecast import predict_needs

    finished = _finished(folder, table) | (over_limit(folder) if table == "trials" else set())
    missing = [trial for trial in trials if trial.trial_id not in finished]
    needs = predict_needs(missing) if sweep.grants.gpu_bytes else {}
    specs = [_spec(trial, plan, folder, sweep, needs.get(trial.trial_id, 0)) for trial in missing]
    return sweep.run(specs, what, total=len(trials))


def found_genotypes(plan: Plan, folder: Path) -> dict[str, str]:
    """The distinct genotypes (id to text) that the plan's finished searches ended with, at the skip limits of their variants."""
    from pdarts_tune.results import read_rows

    finished = _finished(folder, "trials")
    genotypes: dict[str, str] = {}
    limits = {variant.name: variant.limits for variant in plan.variants}
    for trial in plan.searches():
        if trial.trial_id in finished:
            rows = read_rows(folder, "genotypes", trial.trial_id)
            last = max(row["stage"] for row in rows)
            of_limits = {row["max_skips"]: row for row in rows if row["stage"] == last}
            genotypes |= {of_limits[m]["genotype_id"]: of_limits[m]["genotype"] for m in limits[trial.variant]}
    return genotypes


def _finished(folder: Path, table: str) -> set[str]:
    from pdarts_tune.results import read_table

    if not any((folder / table).glob("*.parquet")):
        return set()
    rows = read_table(folder, table, ["trial_id", "status"])
    return set(rows.trial_id[rows.status == "completed"])


def image_warnings(folder: Path) -> list[str]:
    """What the evaluations found wrong with the images of their data sets: the processes that saw it have no terminal."""
    from pdarts_tune.results import read_table

    counts = read_table(folder, "evaluations", ["data", "left_out", "shared"]).groupby("data").max()
    says = {
        "left_out": "images of {} cannot be used and were left out",
        "shared": "of {}'s test images are among its training images too",
    }
    return [
        f"{row[column]:.0f} {says[column].format(name)}" for name, row in counts.iterrows() for column in says if row[column] > 0
    ]


def over_limit(folder: Path) -> set[str]:
    """The searches that were ended because a stage would take more than their memory limit, as another attempt's would."""
    from pdarts_tune.results import read_table

    if not any((folder / "trials").glob("*.parquet")):
        return set()
    rows = read_table(folder, "trials", ["trial_id", "status", "error"])
    return set(rows.trial_id[(rows.status == "out_of_memory") & rows.error.str.startswith("MemoryLimitError")])


def _spec(trial: SearchTrial | EvalTrial, plan: Plan, folder: Path, sweep: Sweep, needed_bytes: int) -> dict[str, Any]:
    from pdarts_tune.trainable import TrialSpec

    if isinstance(trial, SearchTrial):
        variant, genotype = trial.variant, ""
    else:
        variant, genotype = "", trial.genotype
    return asdict(
        TrialSpec(
            trial_id=trial.trial_id,
            study=plan.study.name,
            variant=variant,
            study_dir=str(folder),
            config=to_dict(trial.config),
            genotype=genotype,
            threads=sweep.threads(needed_bytes),
            commit=_commit(),
            needed_bytes=needed_bytes,
        )
    )


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """Holds the study's folder against a second driver, which would run every trial twice. Freed when the process ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{folder}: another process is running this study here; wait for it or name another folder") from None
        yield


@contextmanager
def _terminate_like_interrupt() -> Iterator[None]:
    """SIGTERM, which clusters send before they take a node away, stops a study as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _commit() -> str:
    """The commit of the code that runs, with + if it was changed; `unknown` outside a checkout."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"
