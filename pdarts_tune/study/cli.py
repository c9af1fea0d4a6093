"""The command line of every study: runs every search as a Ray Tune trial, then every distinct genotype, then the report.

The same command continues a study that is stopped or killed, and extends one with more seeds or variants: it runs the trials that
the tables lack. Ray, torch and MLflow are imported when work starts, so `--help` answers at once.
"""

from __future__ import annotations

import errno
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pdarts_tune.config.command_line import NOBODY_READS, outlive_reader, parse
from pdarts_tune.config.methods import Given
from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.pdarts.genotype import Genotype
from pdarts_tune.results.manifest import COMPLETED, DEFINITION, check_definition, listed
from pdarts_tune.results.storage import Storage, hold_lock
from pdarts_tune.study.plan import Arguments, Plan, Study, check_least, define, describe, make_plan
from pdarts_tune.study.shares import ClusterLostError, check_gpus_per_trial

if TYPE_CHECKING:
    from pdarts_tune.study.run import Outcomes

STOPPED = 130  # the exit code of a study that Ctrl-C or SIGTERM ended
_OF_STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.EFBIG)
COMPARISON = Path(__file__).parents[2] / "analysis" / "compare.py"  # of studies that name no report; it is in the checkout alone


def main(study: Study, arguments: Sequence[str] | None = None) -> None:
    """The command line of a study. Exits with 0, 1 (a trial failed), 2 (bad input) or 130 (stopped by Ctrl-C or SIGTERM)."""
    settings = parse(Arguments, arguments, prog=f"{study.name}.py", description=study.question)
    try:
        plan = make_plan(study, settings)
        definition = _check_inputs(plan, settings)
        if settings.dry_run:
            _forecast(plan, settings)
            return
        if settings.print_config:
            whole = definition | {"seeds": plan.seeds, "evaluation_seeds": plan.evaluation_seeds}
            print(json.dumps(whole, indent=1), flush=True)
            return
        failed = run_study(plan, settings)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nstopped; the same command continues the study from the last finished epochs", file=sys.stderr)
        sys.exit(STOPPED)
    except (ClusterLostError, OSError) as error:
        reason = explain_storage_error(error) if isinstance(error, OSError) else str(error)
        if reason is None:
            raise
        print(f"error: {reason}", file=sys.stderr)
        sys.exit(1)
    sys.exit(1 if failed else 0)


def explain_storage_error(error: OSError) -> str | None:
    """One line, where the disk or the permissions are the cause; None: the cause is another."""
    if error.errno not in _OF_STORAGE and not (error.errno is None and "S3" in str(error)):
        return None
    where = f" ({error.filename})" if error.filename else ""
    reason = error.strerror or " ".join(str(error).split())
    return f"results cannot be written: {reason}{where}; when that is solved, the same command continues the study"


@contextmanager
def exclusive(storage: Storage) -> Iterator[None]:
    """Holds a study's folder against a second driver, which would run every trial twice. The system frees it with the process.

    Raises:
        ConfigError: another process holds it, or the folder cannot be written.
    """
    from filelock import Timeout  # imports asyncio, which --help does not need

    with ExitStack() as stack:
        try:
            stack.enter_context(hold_lock(f"{storage}/.lock", timeout=0))
        except Timeout:
            advice = "another process is running this study here; wait for it or name another folder"
            raise ConfigError(f"{storage}: {advice}") from None
        except OSError as error:
            raise ConfigError(f"results: {storage} cannot be written ({error.strerror})") from None
        yield


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Ctrl-C, and SIGTERM, which clusters send before they take a node away. The first stops the study, the second at once."""
    received = 0

    def stop(*_: object) -> None:
        nonlocal received
        received += 1
        if received > 1:
            # Nothing can be lost: files are replaced as a whole, and Ray's processes end with this one.
            os.write(2, b"\nstopped at once; the same command continues the study\n")
            os._exit(STOPPED)
        print("\nstopping; Ctrl-C once more stops at once", file=sys.stderr, flush=True)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        if not received:  # else the process is about to end, and a second signal must not print a traceback
            for number, handler in before.items():
                signal.signal(number, handler)


def _forecast(plan: Plan, settings: Arguments) -> None:
    """Prints a dry run: the trials, what each changes, and their bytes, seconds and disk."""
    from pdarts_tune.study.run import StudyState, open_sources

    folder = Storage(settings.results).below(plan.study.name)
    state = StudyState(plan, folder)
    print(describe(plan, f"{settings.results}/{plan.study.name}", state.completed | state.over_limit, state.found))
    if state.is_done:
        print("\nall of them done, and their evaluations; nothing is left to run")
        return
    if settings.reuse:
        sources = open_sources(settings.reuse, folder)
        same = [trial for trial in state.missing if any(source.find(trial) for source in sources)]
        taken = f"{len(same)} searches would be taken over from {settings.reuse}, and what it has evaluated of their genotypes"
        print(f"\n{taken}; the forecast counts them as if they ran")
    if settings.estimator:
        print(f"\neach distinct genotype is estimated by {settings.estimator}, which takes no time worth a forecast")
    from pdarts_tune.study.forecast import forecast_here

    print(f"\n{forecast_here(state, settings.probe_seconds)}", flush=True)


def run_study(plan: Plan, settings: Arguments) -> int:
    """Runs what is missing of the study, whose input is checked, and returns how many of its trials failed.

    Raises:
        ConfigError: the folder is another driver's, or became another study's since the check.
        KeyboardInterrupt: stopped; everything up to the last finished epoch of each trial is on disk.
        OSError: the results cannot be written any more.
    """
    folder = Storage(settings.results).below(plan.study.name)
    if plan.note:
        print(f"note: {plan.note}", file=sys.stderr)
    with exclusive(folder), stop_on_signals():
        definition = _merge_definition(plan, settings)  # again: another driver may have added variants since the check
        folder.remove(COMPLETED)
        folder.write(DEFINITION, json.dumps(definition, indent=1).encode())

        from pdarts_tune.study.mlflow_mirror import Mirror, default_tracking_uri
        from pdarts_tune.study.run import Outcomes, run_missing

        mirror = Mirror(folder, settings.tracking_uri or default_tracking_uri(settings.results))
        outlive_reader()
        with mirror.updating():
            failed = run_missing(plan, settings, folder)
        outcomes = Outcomes(folder)
        outcomes.forget_checkpoints()
        if not failed:  # the tables are complete, whatever becomes of the report, of MLflow and of the lines below
            _complete(outcomes, definition)
        for line in outcomes.image_warnings:
            print(f"warning: {line}", file=sys.stderr)
        script = plan.study.report or COMPARISON
        report = f"python {script} --results {shlex.quote(f'{settings.results}/{plan.study.name}')}"
        if script.exists() and not _report(script, folder):
            print(f"warning: there is no report, for the reason above; {report} tries again", file=sys.stderr)
        mirror.finish()  # after the report, which it shows
        print(f"\ntables   {settings.results}/{plan.study.name}/*/*.parquet")
        print(f"report   {settings.results}/{plan.study.name}/report/" if script.exists() else f"report   {report}")
        print("compare  " + "\n         ".join(mirror.links()))
        size, files = folder.used()
        print(f"disk     {size / 1e6:.1f} MB in {files} files of the study")
        if settings.keep_weights:
            print(f"weights  {_kept_weights(outcomes)}")
        beyond = sorted(outcomes.over_limit & {trial.trial_id for trial in plan.searches})
        if beyond:
            print(f"memory   {len(beyond)} searches would take more than memory_limit: {', '.join(beyond)}")
        if failed:
            places = " and ".join(f"the table {table}" for table in outcomes.failed_tables)
            print(f"failed   {failed} (the reasons are in {places}; the same command tries again)")
    return failed


def _check_estimator(plan: Plan, settings: Arguments) -> None:
    if settings.estimator is None:
        if not plan.evaluation_seeds:
            raise ConfigError("evaluation_seeds: 0 is wrong without --estimator, it must be at least 1")
        if settings.estimate_every_epoch:
            raise ConfigError("estimate_every_epoch: has no effect without --estimator")
        return
    if plan.study.adaptive:
        raise ConfigError(f"estimator: {plan.study.name} chooses its schedules by trainings; leave it out")
    from pdarts_tune.evaluation.estimates import open_estimator

    estimator = open_estimator(settings.estimator)
    for variant in plan.variants:
        if isinstance(variant.search.method, Given):
            reason = estimator.why_not(Genotype.parse(variant.search.method.genotype))
            if reason is not None:
                raise ConfigError(f"genotype: {variant.name} has no estimate, {reason}")


def _complete(outcomes: Outcomes, definition: dict[str, Any]) -> None:
    """Marks the study as completed, if the tables hold all its trials. A command for a part of them may leave some out."""
    searches, evaluations = outcomes.missing_of(definition)
    for what, missing in (("searches", searches), ("evaluations", evaluations)):
        if missing:
            print(f"missing  {len(missing)} {what} of the study, which this command does not run: {listed(missing)}")
    if not searches and not evaluations:
        counts = {
            "searches": len((outcomes.completed | outcomes.over_limit) & outcomes.trials.keys()),
            "evaluations": len(outcomes.completed & outcomes.evaluations.keys()),
            "seeds": definition["seeds"],
            "finished": datetime.now(UTC).isoformat(),
        }
        outcomes.folder.write(COMPLETED, json.dumps(counts, indent=1).encode())


def _kept_weights(outcomes: Outcomes) -> str:
    """Where weights are, and which trials have none, since weights are kept only while a trial runs."""
    kept, completed = outcomes.folder.stamps("weights"), sorted(outcomes.completed)
    without = [name for name in completed if f"{name}.pt" not in kept]
    lines = [f"{outcomes.folder}/weights, of {len(completed) - len(without)} of {len(completed)} completed trials"]
    if without:
        lines.append(f"{listed(without)} trained nothing or ended before without --keep-weights;")
        advice = "python -m pdarts_tune.evaluation --genotype trains a cell with weights"
        lines.append(f"another results folder runs them anew, {advice}")
    return "\n         ".join(lines)


def _check_inputs(plan: Plan, settings: Arguments) -> dict[str, Any]:
    """Raises ConfigError for everything that can be checked before work starts. Returns the folder's new manifest."""
    check_gpus_per_trial(settings.gpus_per_trial)
    if settings.mps and settings.address is not None:
        raise ConfigError("mps: is for Ray on this machine; on a cluster start nvidia-cuda-mps-control on each node before Ray")
    if settings.max_trials is not None:
        check_least("max_trials", settings.max_trials, 1)
    check_least("max_failures", settings.max_failures, 0)
    _check_estimator(plan, settings)
    if plan.study.report and not Path(plan.study.report).exists():
        raise ConfigError(f"the report script {plan.study.report} is not there")
    results = Storage(settings.results)
    if settings.reuse is not None:
        from pdarts_tune.study.run import open_sources

        if plan.study.adaptive:
            raise ConfigError(f"reuse: {plan.study.name} chooses its schedules as results come in, so it can take over none")
        if settings.keep_weights:
            raise ConfigError("reuse: takes over rows of tables and no weights; leave out either it or --keep-weights")
        open_sources(settings.reuse, results.below(plan.study.name))
    if plan.study.adaptive and results.is_remote:
        raise ConfigError(f"results: {settings.results} is wrong for this study, what Optuna knows needs a folder")
    if not results.is_remote and results.path.exists() and not results.path.is_dir():
        raise ConfigError(f"results: {settings.results} is a file, it must be a folder")
    if settings.tracking_uri is None:
        from pdarts_tune.study.mlflow_mirror import default_tracking_uri

        default_tracking_uri(settings.results)
    definition = _merge_definition(plan, settings)
    if "kernels" in plan.cell_evaluations() and settings.address is None:
        from pdarts_tune.networks.kernels.build import missing

        if reason := missing():
            raise ConfigError(f"cell_evaluation: {reason}, or set it to auto")

    from pdarts_tune.data.datasets import check_dataset
    from pdarts_tune.networks.cost import check_madds
    from pdarts_tune.results.tables import table_file
    from pdarts_tune.search.resources import check_latencies

    table_file(plan.study.name, "trials", plan.searches[0].trial_id)  # names of tables are no names of studies
    image_size = check_dataset(plan.base).image_size
    for variant in plan.variants:
        check_latencies(variant.search, image_size)
    for recipe in plan.recipes:
        info = check_dataset(recipe)
        for variant in plan.variants:
            method = variant.search.method
            if isinstance(method, Given):
                check_madds(Genotype.parse(method.genotype), recipe, info, variant.name)
    return definition


def _merge_definition(plan: Plan, settings: Arguments) -> dict[str, Any]:
    """The folder's manifest with the plan's variants and seeds. ConfigError if they do not fit."""
    try:
        manifest = Storage(settings.results).below(plan.study.name).read(DEFINITION)
    except FileNotFoundError:
        manifest = None
    except OSError as error:
        raise ConfigError(f"results: {settings.results} cannot be read ({' '.join(str(error).split())})") from None
    return check_definition(define(plan), manifest, f"{settings.results}/{plan.study.name}")


def _report(script: Path, folder: Storage) -> bool:
    """Runs the report script on the study's folder, or on a copy of it if it is in an object store. Returns whether it succeeds."""
    print(flush=True)
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name) / folder.name if folder.is_remote else folder.path
        if folder.is_remote:
            for part in ("", "trials", "epochs", "alphas", "genotypes", "evaluations"):
                folder.copy_down(part, copy / part)
        # PYTHONSAFEPATH would hide what lies beside the script.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
        command = [sys.executable, str(script), "--results", str(copy)]
        code = subprocess.run(command, env=environment, start_new_session=True, check=False).returncode  # Ctrl-C is for the study
        if folder.is_remote:
            for path in sorted((copy / "report").glob("*.*")):
                folder.write(f"report/{path.name}", path.read_bytes())
    return code in (0, NOBODY_READS)  # a script prints after it has written
