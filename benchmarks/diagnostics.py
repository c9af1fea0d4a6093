"""What looking into a search costs: the diagnostics of `pdarts_tune/search/diagnostics.py`, beside the epochs that they look at.

    python benchmarks/diagnostics.py --threads 1 --preset laptop

Runs one search of the preset with everything at its default, and on the network of each stage's end estimates the Hessian's
eigenvalue, which is off by default. Shares are of the time that the epochs take without any diagnostics. The laptop preset takes
about a minute.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import pandas as pd
import torch

from pdarts_tune.config.presets import PRESETS
from pdarts_tune.config.serialize import derive_seed
from pdarts_tune.search.diagnostics import diagnose
from pdarts_tune.search.loop import Search


def eigenvalue_seconds(search: Search, repeats: int) -> float:
    """The median time of an estimate on the network as it is."""
    batches = search.weight_batches, search.alpha_batches, search.validation_batches
    shape = search.dataset.num_classes, search.dataset.in_channels
    genotype = search.records[-1].genotype(search.config.max_skips)
    seconds = []
    for repeat in range(repeats):
        started = time.perf_counter()
        seed = derive_seed(search.config.seed, f"benchmark {repeat}")
        diagnose(search.config, search.network, genotype, batches, *shape, seed, look=False, eigenvalue=True)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--preset", default="laptop", choices=list(PRESETS))
    parser.add_argument("--repeats", type=int, default=3, help="estimates of the eigenvalue per stage")
    parser.add_argument("--csv", type=Path, help="where to write the table")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    search = Search(PRESETS[arguments.preset].search, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    rows = []
    for record in search.epochs():
        if record.derived_epoch is None:
            continue
        stage = search.stage
        epochs = [r for r in search.records if r.stage == record.stage]
        alone = [r.seconds for r in epochs]
        of_both = statistics.median(a for a, r in zip(alone, epochs, strict=True) if r.phase == "both")
        looks = [r.diagnostic_seconds for r in epochs if r.inherited_accuracy is not None]
        estimate = eigenvalue_seconds(search, arguments.repeats)
        rows.append(
            {
                "stage": f"{record.stage}: {stage.cells} cells, {stage.operations} operations",
                "batches an epoch": len(search.weight_batches),
                "epoch, s": of_both,
                "look, s": statistics.median(looks),
                "looks": f"{len(looks)} in {len(epochs)} epochs",
                "looking, %": 100 * sum(r.diagnostic_seconds for r in epochs) / sum(alone),
                "eigenvalue, s": estimate,
                "eigenvalue, % of an epoch": 100 * estimate / of_both,
            }
        )
    table = pd.DataFrame(rows)
    print(table.to_markdown(index=False, floatfmt=".2f"))
    if arguments.csv:
        table.to_csv(arguments.csv, index=False)


if __name__ == "__main__":
    main()
