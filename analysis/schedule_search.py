"""Schedule search

python analysis/schedule_search.py --results results

Which schedules are worth having? The Pareto front of error, search time and memory, over all schedules that were tried. They were
chosen by the error on validation images, and so is the front; the error on test images stands beside it, read once for each
schedule. A schedule whose training from scratch was stopped early has neither and cannot be on the front.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from common.comparisons import find_front
from common.question import Answer, Question
from common.study_tables import read_definition
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.config.serialize import config_id, from_dict
from pdarts_tune.results.tables import read_table

OBJECTIVES = ["validation_error_percent", "search_seconds", "peak_mebibytes"]
SHOWN = ["schedule", "depths", "operations", "skip_dropout", "max_skips", *OBJECTIVES, "test_error_percent"]


NOTES = {"pareto_front": "No schedule is at least as good in all three and better in one. Errors are of one seed each."}


def fill(answer: Answer) -> None:
    schedules = measure_schedules(answer.study.folder)
    finished = schedules.dropna(subset=OBJECTIVES)
    front = finished[find_front(finished[OBJECTIVES].to_numpy(dtype=float))].sort_values(OBJECTIVES[0])
    unfinished = schedules.loc[schedules["status"] != "evaluated", ["schedule", "status"]]
    answer.tables |= {"pareto_front": front[SHOWN], "all_schedules": schedules[[*SHOWN, "status"]]}
    if len(finished):
        answer.figures["pareto_front"] = partial(draw_front, finished, front)
    answer.conclusion += conclude(schedules, front, find_base(answer.study.folder))
    answer.missing += [f"{name}: {status}" for name, status in unfinished.itertuples(index=False)]
    answer.about = f"{len(schedules)} schedules, {len(finished)} of them evaluated to the end."


def measure_schedules(folder: Path) -> pd.DataFrame:
    """One row a schedule, as tried: its settings, the objectives, the test error; nan where the evaluation was not finished."""
    trials = read_table(folder, "trials").sort_values(["started", "trial_id"], ignore_index=True)
    columns = ["trial_id", "status", "last_validation_accuracy", "error_percent"]
    evaluations = read_table(folder, "evaluations", columns)
    evaluations["schedule"] = evaluations["trial_id"].str.extract(r"^schedule-([0-9a-f]+)-")
    completed = evaluations[evaluations["status"] == "completed"].set_index("schedule")
    failed = evaluations.loc[evaluations["status"].isin(["failed", "out_of_memory"]), "schedule"]
    searched = trials["status"] == "completed"
    status = trials["status"].mask(searched, "stopped early").mask(searched & trials["variant"].isin(failed), "evaluation failed")
    status = status.mask(trials["variant"].isin(completed.index), "evaluated")
    return trials.assign(
        schedule=trials["variant"],
        status=status,
        validation_error_percent=100 * (1 - trials["variant"].map(completed["last_validation_accuracy"]).astype(float)),
        test_error_percent=trials["variant"].map(completed["error_percent"]).astype(float),
        search_seconds=trials["seconds"].astype(float),
        peak_mebibytes=trials["peak_bytes"].astype(float) / 2**20,
    )


def find_base(folder: Path) -> str:
    """The name of the base's own schedule, which is tried first."""
    return config_id(from_dict(SearchConfig, read_definition(folder)["variants"]["base"]))


def conclude(schedules: pd.DataFrame, front: pd.DataFrame, base: str) -> tuple[str, ...]:
    if front.empty:
        return ("No schedule has been evaluated to the end yet.",)
    place = "is on the front" if base in set(front["schedule"]) else "is not on the front"
    return (
        f"{len(front)} of {len(schedules)} schedules are on the Pareto front; the base's own ({base}) {place}.",
        "One seed a schedule: repeat those on the front with several seeds, as variants of a study, before believing their order.",
    )


def draw_front(finished: pd.DataFrame, front: pd.DataFrame) -> Figure:
    """Error against search time, memory as size; the front joined and named."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    memory = finished["peak_mebibytes"]
    sizes = 20 + 160 * (memory - memory.min()) / max(memory.max() - memory.min(), 1e-9)
    axes.scatter(finished["search_seconds"], finished[OBJECTIVES[0]], sizes, color="#8c8c8c", label="tried (larger: more memory)")
    axes.scatter(front["search_seconds"], front[OBJECTIVES[0]], sizes[front.index], color="#d55e00", label="on the Pareto front")
    for row in front.to_dict("records"):
        axes.annotate(f"{row['depths']}\n{row['operations']}", (row["search_seconds"], row[OBJECTIVES[0]]), fontsize=7)
    axes.set_xlabel("search, seconds")
    axes.set_ylabel("validation error after training from scratch, %")
    axes.legend(frameon=False)
    return figure


QUESTION = Question("schedule_search", "schedule_search", __doc__, NOTES, lambda _: False, fill, across_settings=True)
build, main = QUESTION.build, QUESTION.main

if __name__ == "__main__":
    main()
