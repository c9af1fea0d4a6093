"""Best of k: against hand figures and all subsets, and on a study's tables."""

import math
from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from common.best_of_k import MOST, add_best_of_k, compare_choices, expected_best, short_trainings
from common.question import Answer
from common.study_tables import by_setting, measure_trials, read_study
from pdarts_tune.config.methods import RandomSampling
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.results.storage import Storage
from pdarts_tune.results.tables import list_files, read_rows, write_rows
from synthetic import make_study

SEEDS = 6
ERRORS = np.array([3.0, 1.0, 2.0, 5.0, 4.0, 1.0])
SCORES = np.array([0.7, 0.9, 0.7, 0.1, 0.9, 0.7])  # ties of two and of three


def mean_over_subsets(errors, scores, k):
    chosen = []
    for subset in combinations(range(len(errors)), k):
        best = [item for item in subset if scores[item] == max(scores[item] for item in subset)]
        chosen.append(np.mean(errors[best]))
    return np.mean(chosen)


def test_the_best_of_three_by_hand():
    """Errors 1, 2, 6; the score prefers 2, then 6: of the pairs two have the 2 and one the 6."""
    (expected,) = expected_best(np.array([1.0, 2.0, 6.0]), np.array([0.1, 0.9, 0.5]), 3).T
    assert expected.tolist() == pytest.approx([3.0, (2 + 2 + 6) / 3, 2.0])


@pytest.mark.parametrize("scores", [SCORES, -ERRORS, np.zeros(6)], ids=["ties", "the error itself", "no choice"])
def test_the_expectation_is_the_mean_over_all_subsets(scores):
    expected = expected_best(ERRORS, scores, 6)[:, 0]
    assert expected.tolist() == pytest.approx([mean_over_subsets(ERRORS, scores, k) for k in range(1, 7)])


def test_a_search_that_is_drawn_twice_is_two_searches_and_few_searches_have_their_best():
    counts = np.array([[0, 2, 1, 0, 3, 0], [1, 1, 1, 1, 1, 1], [0, 0, 2, 0, 0, 0]])
    drawn = expected_best(ERRORS, SCORES, 4, counts)
    for column, often in enumerate(counts):
        errors, scores = np.repeat(ERRORS, often), np.repeat(SCORES, often)
        wanted = [mean_over_subsets(errors, scores, min(k, len(errors))) for k in range(1, 5)]
        assert drawn[:, column].tolist() == pytest.approx(wanted)


@pytest.fixture
def folder(tmp_path):
    variants = {"pdarts": SearchConfig(), "random": SearchConfig(method=RandomSampling())}
    return make_study(tmp_path, "depth_gap", variants, range(SEEDS), epochs=1, test_images=50)


def of(folder):
    """The study by its first recipe, and its searches with known figures."""
    study = next(iter(by_setting(read_study(folder)).values()))
    measures = measure_trials(study)
    chosen = measures["variant"] == "pdarts"
    measures.loc[chosen, "error_percent"], measures.loc[chosen, "accuracy"] = ERRORS, 1 - ERRORS / 100
    measures.loc[chosen, "search_accuracy"] = SCORES
    return study, measures


def of_choices(measures, short=pd.Series(dtype=float)):  # noqa: B008
    return compare_choices(measures, short, np.random.default_rng(0))


def change_evaluations(folder, change):
    for name in list_files(Storage(folder), "evaluations"):
        (row,) = read_rows(folder, "evaluations", name.removesuffix(".parquet"))
        row = change(row)
        write_rows(folder, "evaluations", row["trial_id"], [row])


def test_the_table_has_each_choice_of_each_variant_and_no_choice_that_is_not_there(folder):
    study, measures = of(folder)
    answer = Answer(name="rq1", title="", study=study)
    answer.measures = measures
    add_best_of_k(answer, "pdarts")
    table, note = answer.tables["best_of_k"], answer.notes["best_of_k"]
    pdarts, random = (rows.reset_index() for _, rows in table.groupby("variant"))
    assert list(pdarts["k"]) == list(random["k"]) == [1, 2, 3, 4, 5, 6]
    for name, scores in (("by_search_accuracy", SCORES), ("best_possible", -ERRORS)):
        assert list(pdarts[f"{name}_percent"]) == pytest.approx([mean_over_subsets(ERRORS, scores, k) for k in range(1, 7)])
    assert pdarts["best_possible_percent"].iloc[[0, -1]].tolist() == pytest.approx([ERRORS.mean(), ERRORS.min()])
    assert random["by_search_accuracy_percent"].isna().all()
    assert random["best_possible_percent"].notna().all()
    assert "by_short_training_percent" not in table
    assert "short training" not in note
    (axes,) = answer.figures["best_of_k_curves"]().axes
    assert [line.get_label() for line in axes.containers] == ["by search accuracy", "by inherited accuracy", "best possible"]
    single = Answer(name="rq1", title="", study=study)
    single.measures = measures[measures["seed"] == 0]
    add_best_of_k(single, "pdarts")
    assert single.tables["best_of_k"]["k"].tolist() == [1, 1]
    assert single.figures == {}


def test_a_search_without_a_figure_is_in_no_column_and_k_has_a_limit(folder):
    _, measures = of(folder)
    measures.loc[measures.index[0], "inherited_accuracy"] = math.nan
    measures.loc[measures.index[1], "error_percent"] = math.nan
    table = of_choices(measures)
    rows = table[table["variant"] == "pdarts"]
    assert set(rows["n"]) == {4}
    assert rows["by_search_accuracy_percent"].iloc[0] == pytest.approx(ERRORS[2:].mean())
    assert rows["best_possible_percent"].iloc[-1] == 1.0
    many = measures[measures["variant"] == "random"].sample(30, replace=True, random_state=0)
    assert of_choices(many)["k"].tolist() == list(range(1, MOST + 1))
    nothing = measures.assign(error_percent=math.nan, accuracy=math.nan)
    assert of_choices(nothing).empty


def test_intervals_are_those_of_resampled_cells_up_to_half_of_them(folder):
    _, measures = of(folder)
    table = of_choices(measures)
    rows = table[table["variant"] == "pdarts"]
    assert rows["by_search_accuracy_percent_low"].notna().tolist() == [True] * 3 + [False] * 3
    draws = np.random.default_rng(1).choice(ERRORS, (20_000, SEEDS)).mean(axis=1)
    assert rows.iloc[0][["best_possible_percent_low", "best_possible_percent_high"]].tolist() == pytest.approx(
        np.quantile(draws, (0.025, 0.975)), abs=0.1
    )
    # Searches that found one cell are drawn together: of two cells nothing can be resampled, of three the mean varies more.
    one = measures.assign(genotype_id=["a", "a", "a", "b", "c", "a"] * 2)
    fewer = of_choices(one)
    fewer = fewer[fewer["variant"] == "pdarts"]
    assert fewer["best_possible_percent_low"].notna().tolist() == [True] + [False] * 5
    assert fewer["best_possible_percent_high"].iloc[0] > rows["best_possible_percent_high"].iloc[0]
    two = measures.assign(genotype_id=["a", "b"] * 6)
    assert of_choices(two)["best_possible_percent_low"].isna().all()


def test_a_short_training_is_a_sixth_of_the_reported_one_or_another_recipe_with_fewer_epochs(folder):
    study, _ = of(folder)
    assert short_trainings(study)[0].empty
    runs = {}

    def shorter(row):  # beside each row
        other = {"recipe": "short", "recipe_id": "short-1", "epochs": 2, "validation_accuracies": [0.1, 0.2 + 0.1 * row["seed"]]}
        runs[row["genotype_id"]] = {**row, **other, "trial_id": f"{row['trial_id']}-short"}
        return row

    change_evaluations(folder, shorter)
    for row in runs.values():
        write_rows(folder, "evaluations", row["trial_id"], [row])
    study, measures = of(folder)
    figures, words = short_trainings(study)
    assert set(figures) == {0.2 + 0.1 * next(iter(runs.values()))["seed"]}
    assert words.endswith("the last one of the recipe short-1.")
    change_evaluations(
        folder,
        lambda row: (
            row
            if row["recipe"] == "short"
            else row | {"epochs": 12, "validation_accuracies": [0.0, 0.3 + 0.1 * row["seed"], *[0.9] * 10]}
        ),
    )
    study, measures = of(folder)
    figures, words = short_trainings(study)
    assert set(figures.round(9)) == {0.35}  # mean of two evaluation seeds, after epoch 2 of 12
    assert "after epoch 2 of 12" in words
    table = of_choices(measures, figures)
    assert table["by_short_training_percent"].tolist()[:6] == pytest.approx([ERRORS.mean()] * 6)  # all tie


@pytest.mark.slow  # two times 400 studies with 10,000 resamples each: a minute
@pytest.mark.parametrize("log_normal", [False, True], ids=["normal", "log-normal"])
def test_intervals_hold_the_true_figure_about_as_often_as_the_note_says(log_normal):
    rng = np.random.default_rng(0)

    def draw(studies, searches):
        """Errors, and scores that correlate with their logarithms or themselves by 0.5."""
        own, noise = rng.normal(size=(2, studies, searches))
        return np.exp(own) if log_normal else own, -0.5 * own + math.sqrt(0.75) * noise

    errors, scores = draw(400_000, 4)
    true = {"search_accuracy": [], "best_possible": []}
    for k in range(1, 5):
        for name, by in (("search_accuracy", scores), ("best_possible", -errors)):
            best = by[:, :k].argmax(axis=1)
            true[name].append(np.take_along_axis(errors, best[:, None], axis=1).mean())
    held = {name: np.zeros(4) for name in true}
    for own, preferred in zip(*draw(400, 8), strict=True):
        measures = {"variant": "a", "status": "completed", "genotype_id": list("abcdefgh"), "error_percent": own, "accuracy": -own}
        frame = pd.DataFrame(measures | {"search_accuracy": preferred, "inherited_accuracy": np.nan})
        table = compare_choices(frame, pd.Series(dtype=float), rng).head(4)
        for name, figures in true.items():
            column = name if name == "best_possible" else f"by_{name}"
            held[name] += table[f"{column}_percent_low"].le(figures) & table[f"{column}_percent_high"].ge(figures)
    chosen, possible = (100 * held[name] / 400 for name in true)
    assert (chosen.round() >= 81 - 3).all()
    assert (chosen.round() <= 90 + 3).all()
    assert (possible.round() >= 69 - 3).all()
    assert (possible.round() <= 88 + 3).all()
