"""Genotypes side by side: the table's figures are those of hand computation, and unlike things are not compared."""

import pytest

from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.evaluation.compare import compare_genotypes


def row(accuracy, **changes):
    row = {
        "recipe_id": "short-1",
        "data": "cifar10",
        "accuracy": accuracy,
        "top5_accuracy": 0.9,
        "params": 3_430_000,
        "seconds": 60,
    }
    return row | {"correct": [True] * 10} | changes


def cells(table, label):
    (line,) = (line for line in table.splitlines() if line.startswith(f"| {label} "))
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_means_deviations_and_relative_improvements_are_those_of_hand_computation():
    rows = {"ours": [row(0.90), row(0.94)], "random:0": [row(0.80)], "random:1": [row(0.88), row(0.92)]}
    table = compare_genotypes(rows, {"random:0", "random:1"})
    assert table.startswith("cifar10, recipe short-1, 10 test images\n")
    assert "| test error, % |" in table.replace("   ", " ").replace("  ", " ")
    # The controls' accuracies are 0.8 and 0.9, in the mean 0.85; a genotype counts once, however often it was trained.
    assert cells(table, "ours") == ["ours", "2", "8.00 ± 2.83", "10.00", "3.43", "60", "+8.24"]
    assert cells(table, "random:0") == ["random:0", "1", "20.00", "10.00", "3.43", "60", "-5.88"]


def test_without_a_random_genotype_there_is_no_relative_improvement():
    assert cells(compare_genotypes({"ours": [row(0.9)], "theirs": [row(0.8)]}, set()), "ours")[-1] == "–"


@pytest.mark.parametrize("column", ["recipe_id", "data"])
def test_results_of_two_recipes_or_data_sets_are_not_compared(column):
    with pytest.raises(ConfigError, match=f"{column}: .*other.* cannot be compared, evaluate all genotypes by one"):
        compare_genotypes({"ours": [row(0.9)], "theirs": [row(0.8, **{column: "other"})]}, set())
