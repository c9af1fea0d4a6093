"""Milliseconds a step of the three stages of P-DARTS and of the evaluation, by how it is computed. For a GPU; runs on any device.

    python benchmarks/gpu.py --csv gpu.csv

A step is what a search or a training does: forward, backward, clipping, optimizers. Medians of three steps. `graph` is one CUDA
graph a step, the default on a GPU; `plain` launches every operator from Python. Compiling takes minutes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from pdarts_tune.config.evaluation import EvalConfig
from pdarts_tune.config.execution import Execution
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.data.datasets import DatasetInfo
from pdarts_tune.evaluation.job import describe_device
from pdarts_tune.networks.runtime import is_out_of_memory, peak_bytes, reset_peak_bytes
from pdarts_tune.pdarts.published import PUBLISHED
from pdarts_tune.study.forecast import probe_evaluation, probe_stage

PLAIN = Execution(cell_evaluation="plain", graph="off")
VARIANTS = {
    "plain": PLAIN,
    "recompute": replace(PLAIN, recompute=True),
    "graph": replace(PLAIN, graph="auto"),
    "compile": replace(PLAIN, compile=True),
    "compile, graph": replace(PLAIN, compile=True, graph="auto"),
}
RECIPES = {"fp32": {}, "tf32": {"tf32": True}, "bf16": {"precision": "bf16", "channels_last": True}}


def main(arguments: Sequence[str] | None = None) -> pd.DataFrame:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--channels", type=int, default=16, help="of the search; an evaluation has 2.25 times as many")
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--size", type=int, default=32, help="of the images, pixels")
    parser.add_argument("--cells", type=int, default=20, help="of the evaluation")
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    info = DatasetInfo(3, options.size, 10, 50_000, 10_000)
    search = SearchConfig(channels=options.channels, batch_size=options.batch)
    training = EvalConfig(cells=options.cells, channels=2 * (9 * options.channels // 8), batch_size=options.batch * 4 // 3)
    genotype = PUBLISHED["PDARTS_C10"].genotype
    rows = []
    for name in options.variants:
        execution = VARIANTS[name]
        for number, stage in enumerate(search.stages, start=1):
            row = {"network": f"stage {number}", "variant": name}
            rows.append(
                row | _measured(lambda s=stage, e=execution: probe_stage(replace(search, execution=e), s, info, device), device)
            )
        if execution.recompute:
            continue  # evaluations have no such setting
        for precision, changes in RECIPES.items():
            config = replace(training, cell_evaluation="plain", compile=execution.compile, graph=execution.graph, **changes)
            row = {"network": f"evaluation, {precision}", "variant": name}
            rows.append(row | _measured(lambda c=config: probe_evaluation(genotype, c, info, device), device))
    table = pd.DataFrame(rows).round(1)
    print(f"{describe_device(device)}, PyTorch {torch.__version__}\n{table.to_string(index=False)}")
    if options.csv:
        table.to_csv(options.csv, index=False)
    return table


def _measured(probe, device: torch.device) -> dict[str, object]:
    reset_peak_bytes(device)
    try:
        times = probe()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return {"weights_ms": None, "both_ms": None, "forward_ms": None, "peak_gb": None}
    milliseconds = {f"{part}_ms": 1000 * getattr(times, part) for part in ("weights", "both", "forward")}
    return milliseconds | {"peak_gb": peak_bytes(device) / 1e9}


if __name__ == "__main__":
    main()
