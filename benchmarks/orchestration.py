"""What the machinery around the trials costs: scheduling, writing results, and studies of many trials.

python benchmarks/orchestration.py --folder FOLDER                   # 10,000 finished trials: 3 GB, made once
python benchmarks/orchestration.py --folder FOLDER --trials 100      # does it run?

1. 200 trials of one second through the project's own sweep, two at a time: seconds from the first start to the last end.
2. What a search writes after an epoch, late in a search of the paper's size, against an epoch of 30 seconds.
3. A study of many finished searches, each of 75 epochs with 224 alphas and with a genotype and an evaluation of its own: opening
   it, planning it, and resuming it with nothing to do, each in a process of its own. One search's rows are the project's own
   writer's, the others are copies with other ids; nobody's results.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]

import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402

from pdarts_tune.config.search import SearchConfig  # noqa: E402
from pdarts_tune.pdarts.genotype import random_genotype  # noqa: E402
from pdarts_tune.results.storage import Storage  # noqa: E402
from pdarts_tune.study.cli import main  # noqa: E402
from pdarts_tune.study.plan import (  # noqa: E402
    Arguments,
    Study,
    Variant,
    make_plan,
)
from synthetic import make_study  # noqa: E402

SHORT_TRIALS, SLOTS, EPOCH_SECONDS = 200, 2, 30.0
EIGHT = tuple(replace(stage, operations=8) for stage in SearchConfig().stages)  # 224 alphas in every epoch
STUDY = Study("many", "How long does it take to do nothing?", lambda base: [Variant("all", replace(base, stages=EIGHT))])


def time_short_trials(folder: Path) -> tuple[float, float]:
    """Seconds from the first trial's start to the last one's end, and those in which Ray starts and stops."""
    from pdarts_tune.results.tables import read_table
    from pdarts_tune.study import sweep
    from pdarts_tune.study.run import StudyState

    def one_second(settings: dict[str, Any]) -> None:
        from ray import tune

        from pdarts_tune.config.serialize import from_dict
        from pdarts_tune.study.trainable import TrialRow, TrialSpec

        started = time.monotonic()
        spec = TrialSpec(**settings["trial"])
        row = TrialRow(spec, from_dict(SearchConfig, spec.config))
        row.write("running")
        tune.report({"epoch": 0})
        time.sleep(max(0.0, 1.0 - (time.monotonic() - started)))
        row.write("completed")

    plan = make_plan(STUDY, Arguments("paper", seeds=SHORT_TRIALS))
    storage = Storage(folder / "short" / "many")
    sweep.run_trial = one_second
    begun = time.perf_counter()
    with sweep.open_sweep(storage, Arguments(max_trials=SLOTS), "unknown") as session:
        failed = session.run_study(StudyState(plan, storage))
    whole = time.perf_counter() - begun
    assert not failed
    trials = read_table(storage, "trials")
    seconds = (trials["finished"].max() - trials["started"].min()).total_seconds()
    return seconds, whole - seconds


def time_writing(folder: Path) -> tuple[float, float]:
    """Seconds, and of these CPU time, for what a search of the paper's size writes after its last epochs, the longest to write."""
    import torch

    from pdarts_tune.networks.checkpoint import save_checkpoint
    from pdarts_tune.pdarts.space import SearchSpace
    from pdarts_tune.search.loop import Search
    from pdarts_tune.study.trainable import TrialRow, TrialSpec, _SearchRows

    config = SearchConfig(stages=EIGHT, data="digits", train_images=100, batch_size=24)
    search = Search(
        replace(config, channels=2, stages=(replace(EIGHT[0], cells=3, epochs=1, warmup_epochs=0),)), torch.device("cpu")
    )
    (record,) = search.epochs()
    search = Search(config, torch.device("cpu"))
    full = SearchSpace.full()
    last = SearchSpace(*(tuple(edge[-3:] for edge in cell) for cell in (full.normal, full.reduce)))
    search._start_stage(2, last)  # 17 cells of 3 operations an edge, as in the paper; the rows below are of 8
    search.records = [
        dataclasses.replace(record, stage=number, epoch=epoch, derived_epoch=epoch if epoch == stage.epochs - 1 else None)
        for number, stage in enumerate(EIGHT, start=1)
        for epoch in range(stage.epochs)
    ]
    for group in search.weight_optimizer.param_groups:  # momentum, as large as the weights
        for weight in group["params"]:
            search.weight_optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
    spec = TrialSpec("t", str(folder / "writing" / "many"), "", {}, variant="all", threads=1, commit="")
    row = TrialRow(spec, config)
    rows, whole, seconds, cpu = _SearchRows(spec, config), search.records, [], []
    search.records = whole[:-5]
    rows.write(search.records)
    search.state_dict()
    for done in range(len(whole) - 4, len(whole) + 1):
        search.records = whole[:done]
        begun, used = time.perf_counter(), time.process_time()
        save_checkpoint(search.state_dict(), Storage(spec.folder), spec.checkpoint)
        rows.write(search.records)
        row.write("running")
        seconds.append(time.perf_counter() - begun)
        cpu.append(time.process_time() - used)
    return statistics.median(seconds), statistics.median(cpu)


def make_many(folder: Path, count: int) -> None:
    """Writes a finished study of `count` searches and as many evaluations, and its MLflow store."""
    from pdarts_tune.results.manifest import DEFINITION
    from pdarts_tune.study.plan import define

    plan = make_plan(STUDY, Arguments("paper", data="digits", seeds=count))
    parts = [list(range(start, min(start + 100, count))) for start in range(0, count, 100)]
    with tempfile.TemporaryDirectory() as scratch, ProcessPoolExecutor(2) as pool:
        (template,) = [make_study(Path(scratch), "many", {"all": plan.variants[0].search}, (0,), epochs=None, test_images=10_000)]
        for done, _ in enumerate(pool.map(write_copies, [template] * len(parts), [folder / "many"] * len(parts), parts)):
            if sys.stderr.isatty():
                print(f"\r{done + 1} of {len(parts)}", end="", file=sys.stderr)
    import json

    Storage(folder / "many").write(DEFINITION, json.dumps(define(plan)).encode())
    mirror_many(folder)


def write_copies(template: Path, folder: Path, seeds: Sequence[int]) -> None:
    """The template's trial under other ids, with a genotype of its own for each seed."""
    plan = make_plan(STUDY, Arguments("paper", data="digits"))
    tables = {path.parent.name: pq.read_table(path) for path in sorted(template.glob("*/*.parquet"))}
    for table in tables:
        (folder / table).mkdir(parents=True, exist_ok=True)
    limit = plan.variants[0].search.max_skips
    for seed in seeds:
        genotype = random_genotype(random.Random(seed), limit)
        (evaluation,) = plan.evaluations({genotype.genotype_id: str(genotype)})
        found = {"genotype_id": genotype.genotype_id, "genotype": str(genotype)}
        for table, rows in tables.items():
            name = evaluation.trial_id if table == "evaluations" else f"all-seed{seed}"
            changes: dict[str, Any] = {"trial_id": name}
            if table == "trials":
                changes["seed"] = seed
            if table == "evaluations":
                changes["genotype_id"] = genotype.genotype_id
            for column, value in changes.items():
                rows = fill(rows, column, [value] * len(rows))
            if table == "genotypes":
                final = [
                    stage == 3 and skips == limit
                    for stage, skips in zip(rows["stage"].to_pylist(), rows["max_skips"].to_pylist(), strict=True)
                ]
                for column, value in found.items():
                    rows = fill(
                        rows, column, [value if mine else old for mine, old in zip(final, rows[column].to_pylist(), strict=True)]
                    )
            pq.write_table(rows, folder / table / f"{name}.parquet", compression="zstd")


def fill(rows: Any, column: str, values: list[Any]) -> Any:
    index = rows.schema.get_field_index(column)
    return rows.set_column(index, rows.schema.field(index), pa.array(values, rows.schema.field(index).type))


def mirror_many(folder: Path) -> None:
    """An MLflow store that says that all tables are mirrored, without the runs, which nobody reads back."""
    from pdarts_tune.study import mlflow_mirror

    mirror = mlflow_mirror.Mirror(folder / "many", mlflow_mirror.default_tracking_uri(folder))
    mirror._client.set_experiment_tag(mirror._experiment, mlflow_mirror.STATE, mlflow_mirror._digest(False, mirror._stamps()))


def measure(command: Sequence[str]) -> tuple[float, float, float]:
    """Seconds, seconds of CPU time and peak memory in GiB of a process that must succeed."""
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed:\n{said[-2000:]}")
    return time.perf_counter() - begun, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**20


def time_many(folder: Path, trials: int) -> None:
    """Prints the rows of the third part. Called before torch is imported, whose memory the processes would seem to have."""
    if not (folder / "mlflow.db").exists():
        make_many(folder, trials)
    me = [sys.executable, str(Path(__file__)), "study", "--preset", "paper", "--data", "digits", "--seeds", str(trials)]
    read = "import sys; from pathlib import Path; from pdarts_tune.results.tables import read_table as r; s = Path(sys.argv[1]); "
    read += "print(len(r(s, 'trials')), len(r(s, 'evaluations', ['trial_id', 'status', 'accuracy'])))"
    commands = {
        "opening": [sys.executable, "-c", read, str(folder / "many")],
        "dry run, without a probe": [*me, "--results", str(folder), "--dry-run", "--probe-seconds", "0"],
        "resuming with nothing to do": [*me, "--results", str(folder)],
    }
    for what, command in commands.items():
        seconds, cpu, memory = measure(command)
        name = f"{what}, {trials:,} finished trials"
        print(f"| {name} | {seconds:.1f} s | {cpu:.1f} | {memory:.2f} | 20 s, 2 GiB |", flush=True)


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--parts", default="short,writing,many")
    settings = parser.parse_args()
    parts, folder = settings.parts.split(","), settings.folder.absolute()
    print("| what | measured | CPU seconds | peak GiB | asked for |\n|---|---|---|---|---|", flush=True)
    if "many" in parts:
        time_many(folder, settings.trials)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        if "writing" in parts:
            seconds, cpu = time_writing(Path(scratch))
            share = 100 * seconds / EPOCH_SECONDS
            print(f"| writing results after an epoch of 30 s | {seconds:.2f} s, {share:.2f} % | {cpu:.2f} | – | 1 % |", flush=True)
        if "short" in parts:
            seconds, start = time_short_trials(Path(scratch))
            ideal = SHORT_TRIALS / SLOTS
            what = f"{SHORT_TRIALS} trials of 1 s on {SLOTS} slots, after {start:.0f} s of start and stop"
            print(f"| {what} | {seconds:.0f} s, {seconds / ideal:.2f} x ideal | – | – | 1.15 x |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["study"]:
        main(STUDY, sys.argv[2:])
    else:
        run()
