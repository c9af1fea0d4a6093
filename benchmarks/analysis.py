"""How long the analysis scripts take, and how much memory, on a folder of many trials.

python benchmarks/analysis.py --folder FOLDER                      # 10,000 searches, 168 million rows of alphas: 2.5 GB
python benchmarks/analysis.py --folder FOLDER --searches 100       # does it run?

Makes `FOLDER/<study>` first, unless it is there: as many searches as asked for, of 75 epochs and 8 operations per edge in every
stage, two evaluations each (in the study transfer, two on each of two data sets); nobody's results. One trial a variant is written
by the project's own writer, the others are copies with other ids and with noise on every figure. Then runs each script in a process
of its own on 2 cores, and prints seconds, CPU seconds (an idle machine needs no more) and peak memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from pdarts_tune.config.methods import RandomSampling  # noqa: E402
from pdarts_tune.config.search import SearchConfig  # noqa: E402
from pdarts_tune.results.schemas import SCHEMAS  # noqa: E402
from synthetic import make_study  # noqa: E402

CORES = 2
NOISE = 0.01  # relative
SCRIPTS = {
    "rq1_depth_gap.py": "depth_gap",
    "compare.py": "depth_gap",
    "rq2_approximation.py": "approximation",
    "rq3_regularization.py": "regularization",
    "baselines.py": "baselines",
    "rq4_transfer.py": "transfer",
    "report.py": "regularization",
}
SECOND = "cifar100"  # data set of the study transfer, beside that of its searches


def variants_of(study: str) -> dict[str, SearchConfig]:
    """The study's own variants at the paper's settings, but with 8 operations per edge in every stage: the most rows."""
    # The study transfer has no searches of its own, but evaluates others'.
    module = importlib.import_module(f"studies.{study if study != 'transfer' else 'depth_gap'}")
    found = {}
    for variant in module.STUDY.variants(SearchConfig()):
        stages = tuple(dataclasses.replace(stage, operations=8) for stage in variant.search.stages)
        found[variant.name] = dataclasses.replace(variant.search, stages=stages)
    return found


def make_folder(folder: Path, study: str, searches: int) -> None:
    """Writes `folder`/`study` with `searches` searches, and as many random cells as other variants have searches."""
    unfinished = folder / f"{study}.part"
    if unfinished.exists():
        shutil.rmtree(unfinished)
    variants = variants_of(study)
    searched = [name for name, config in variants.items() if not isinstance(config.method, RandomSampling)]
    seeds = -(-searches // len(searched))
    with tempfile.TemporaryDirectory() as scratch, ProcessPoolExecutor(CORES) as pool:
        for name, config in variants.items():
            template = make_study(Path(scratch) / name, study, {name: config}, (0,), epochs=None, test_images=10_000)
            if study == "transfer":
                evaluate_again(template)
            tables = {
                table: [pq.read_table(path) for path in sorted((template / table).glob("*.parquet"))]
                for table in SCHEMAS
                if (template / table).is_dir()
            }
            parts = [range(start, min(start + 50, seeds)) for start in range(0, seeds, 50)]
            list(pool.map(write_copies, *zip(*[(unfinished, tables, part) for part in parts], strict=True)))
    unfinished.rename(folder / study)


def evaluate_again(template: Path) -> None:
    """Copies the evaluations to a second data set, of which `vary` then makes other figures."""
    for path in sorted((template / "evaluations").glob("*.parquet")):
        rows = pq.read_table(path)
        name = f"{path.stem}-{SECOND}"
        for column, value in (("trial_id", name), ("data", SECOND)):
            index = rows.schema.get_field_index(column)
            rows = rows.set_column(index, rows.schema.field(index), pa.array([value] * len(rows)))
        pq.write_table(rows, path.with_stem(name), compression="zstd")


def write_copies(folder: Path, tables: Mapping[str, Sequence[pa.Table]], seeds: Sequence[int]) -> None:
    for table in tables:
        (folder / table).mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        for table, originals in tables.items():
            for number, original in enumerate(originals):
                copy = vary(original, seed, np.random.default_rng([seed, number]))
                name = copy["trial_id"][0].as_py()
                pq.write_table(copy, folder / table / f"{name}.parquet", compression="zstd")


def vary(table: pa.Table, seed: int, rng: np.random.Generator) -> pa.Table:
    """The same rows for another seed: ids end in it, and every float is a little off."""
    for index, field in enumerate(table.schema):
        column = table.column(index)
        if field.name in ("trial_id", "genotype_id"):
            texts = column.cast(pa.string())
            column = pc.binary_join_element_wise(texts, pa.scalar(str(seed)), "-").cast(field.type)
        elif field.name == "seed" and table.schema.get_field_index("recipe") < 0:
            column = pa.array([seed] * len(table), field.type)
        elif pa.types.is_floating(field.type) and column.null_count == 0:
            column = pa.array(column.to_numpy() * (1 + NOISE * rng.standard_normal(len(table))), field.type)
        else:
            continue
        table = table.set_column(index, field, column)
    return table


def measure(script: Path, results: Path) -> tuple[int, float, float, float]:
    """Runs a script on a results folder; returns its exit status, seconds, seconds of CPU time and peak memory in GiB."""
    with tempfile.TemporaryDirectory() as out, Path(os.devnull).open("wb") as silent:
        start = time.perf_counter()
        target = f"{out}/report.html" if script.name == "report.py" else out
        command = [sys.executable, str(script), "--results", str(results), "--out", target]
        child = os.posix_spawn(
            sys.executable, command, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, silent.fileno(), sys.stdout.fileno())]
        )
        _, status, usage = os.wait4(child, 0)
        seconds = time.perf_counter() - start
        return os.waitstatus_to_exitcode(status), seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--searches", type=int, default=10_000, help="of each study")
    parser.add_argument("--scripts", nargs="+", default=list(SCRIPTS), choices=list(SCRIPTS))
    settings = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    print("| script | searches | seconds | CPU seconds | peak GiB |\n|---|---|---|---|---|")
    for script in settings.scripts:
        study = SCRIPTS[script]
        if not (settings.folder / study).is_dir():
            start = time.perf_counter()
            make_folder(settings.folder, study, settings.searches)
            print(f"made {settings.folder / study} in {time.perf_counter() - start:.0f} s", file=sys.stderr)
        status, seconds, cpu, memory = measure(ROOT / "analysis" / script, settings.folder / study)
        failed = " (failed)" if status else ""
        print(f"| {script}{failed} | {settings.searches} | {seconds:.1f} | {cpu:.1f} | {memory:.2f} |", flush=True)


if __name__ == "__main__":
    main()
