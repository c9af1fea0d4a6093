"""Estimates come from the cell's codes or from the table's rows, and what has none is refused in one line."""

import csv
import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from onnx import TensorProto
from scipy.stats import percentileofscore

from benchmark import ENCODING, expected, write_benchmark
from pdarts_tune.cell import main as show_cell
from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.evaluation.__main__ import main
from pdarts_tune.evaluation.estimates import CATEGORIES, describe_estimates, encode, open_estimator, outside_benchmark
from pdarts_tune.evaluation.genotype_source import find_genotypes
from pdarts_tune.pdarts.genotype import CellGenotype, Genotype
from pdarts_tune.pdarts.published import PUBLISHED

PDARTS, DARTS = (PUBLISHED[name].genotype for name in ("PDARTS_C10", "DARTS_V2"))
# Written by hand from the cell: skip 0, dil3 1 | skip 0, sep3 1 | sep3 1, sep3 3 | sep3 0, dil5 4; then its reduction cell.
PDARTS_CODES = [7, 2, 7, 5, 0, 0, 5, 0, 5, 5, 0, 0, 0, 3, 1, 6, 5, 0, 3, 4, 2, 0, 0, 0, 2, 0, 3, 0, 1, 5, 4, 2, 1, 6]


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    return write_benchmark(tmp_path_factory.mktemp("nb301"))


def reversed_nodes(genotype):
    edges = genotype.normal.edges
    swapped = tuple(edge for index in range(0, len(edges), 2) for edge in (edges[index + 1], edges[index]))
    return replace(genotype, normal=CellGenotype(swapped, genotype.normal.concat))


def table(tmp_path, rows, name="cells.csv"):
    frame = pd.DataFrame(rows)
    frame.to_parquet(tmp_path / name) if name.endswith("parquet") else frame.to_csv(tmp_path / name, index=False)
    return f"table:{tmp_path / name}"


def refused(*names, genotype=PDARTS, match):
    with pytest.raises(ConfigError, match=match) as error:
        describe_estimates({"cell": genotype}, names)
    assert "\n" not in str(error.value)


def test_the_codes_of_the_papers_cell_are_those_written_by_hand_whatever_the_order_of_a_nodes_edges():
    assert encode(PDARTS, ENCODING) == encode(reversed_nodes(PDARTS), ENCODING) == PDARTS_CODES


def test_an_estimate_is_what_the_model_gives_for_the_codes_and_the_epoch(benchmark):
    for name, epoch in ((benchmark, 98), (f"{benchmark}@1", 1), (f"{benchmark}@50", 50)):
        one, other = open_estimator(name).estimate([PDARTS, DARTS])
        accuracy, seconds = expected(PDARTS_CODES, epoch)
        assert (one.accuracy, one.training_seconds) == (pytest.approx(accuracy), pytest.approx(seconds))
        assert other.accuracy == pytest.approx(expected(encode(DARTS, ENCODING), epoch)[0]) != one.accuracy
    estimator = open_estimator(f"{benchmark}@50")
    assert estimator.recipe_id != open_estimator(benchmark).recipe_id
    copy = pickle.loads(pickle.dumps(estimator))  # as Ray Tune saves a study's state
    assert (copy.recipe_id, copy.estimate([PDARTS])) == (estimator.recipe_id, estimator.estimate([PDARTS]))


def test_a_table_knows_its_cells_exactly_and_no_other(tmp_path):
    rows = [{"genotype": str(reversed_nodes(PDARTS)), "accuracy": value} for value in (97.1, 97.3)]
    for name in ("cells.csv", "cells.parquet"):
        known = open_estimator(table(tmp_path, [*rows, {"genotype": str(DARTS), "accuracy": 96.0}], name))
        assert [estimate.accuracy for estimate in known.estimate([PDARTS, DARTS])] == pytest.approx([0.972, 0.96])
        (other,) = find_genotypes("random:0").values()
        assert "has no row of it" in known.why_not(other)
    fractions = open_estimator(table(tmp_path, [{"genotype": str(DARTS), "accuracy": 0.96}]))
    assert fractions.estimate([DARTS])[0].accuracy == 0.96


def test_with_a_table_the_estimate_is_ranked_among_the_estimates_of_its_cells(benchmark, tmp_path):
    cells = [genotype for seed in range(9) for genotype in find_genotypes(f"random:{seed}").values()]
    names = benchmark, table(tmp_path, [{"genotype": str(cell), "accuracy": 90 + n / 10} for n, cell in enumerate(cells)])
    texts = describe_estimates({"cell": PDARTS, "known": cells[3]}, names)
    values = [expected(encode(cell, ENCODING))[0] for cell in cells]
    model, own = (open_estimator(name).recipe_id for name in names)
    rank = texts["cell"][f"{model}: percentile of 9 cells"]
    assert rank == f"{percentileofscore(values, expected(PDARTS_CODES)[0], kind='mean'):.0f}"
    assert texts["cell"][f"{own}: accuracy, %"] == texts["cell"][f"{own}: percentile of 9 cells"] == "–"
    assert texts["known"][f"{own}: accuracy, %"] == "90.30"
    assert texts["known"][f"{own}: percentile of 9 cells"] == "39"  # three below, one equal, of nine


def test_a_cell_outside_the_benchmark_has_no_estimate(benchmark):
    once = PDARTS.normal.edges
    refused(benchmark, genotype=PUBLISHED["NASNET_A"].genotype, match="four nodes that are all joined")
    twice = replace(PDARTS, normal=CellGenotype((once[0], (once[1][0], 0), *once[2:])))
    refused(benchmark, genotype=twice, match="node 0 of its normal cell uses one edge twice")
    large = replace(PDARTS, reduce=CellGenotype((("sep_conv_7x7", 0), *PDARTS.reduce.edges[1:])))
    refused(benchmark, genotype=large, match="reduction cell has sep_conv_7x7")


def test_a_wrong_estimator_is_refused_in_one_line(benchmark, tmp_path):
    refused("nb302:x", match="must be nb301:FOLDER")
    refused("nb301:", match="must be nb301:FOLDER")
    for epoch in (0, 99, -1):
        refused(f"{benchmark}@{epoch}", match=f"epoch {epoch} is wrong, NAS-Bench-301 has epochs 1 to 98")
    refused(f"nb301:{tmp_path / 'absent'}", match=r"model.onnx: cannot be read \(No such file")
    refused(write_benchmark(tmp_path / "narrow", categories=33), match=r"is another model.*tensor\(int32\) \['n', 33\]")
    refused(write_benchmark(tmp_path / "float", kind=TensorProto.FLOAT), match="is another model")
    refused(write_benchmark(tmp_path / "large", scale=100), match="other figures than a percentage")
    for content, match in ((b"junk", "cannot be read as ONNX"), (b"", "cannot be read as ONNX")):
        write_benchmark(tmp_path / "junk")
        (tmp_path / "junk" / "model.onnx").write_bytes(content)
        refused(f"nb301:{tmp_path / 'junk'}", match=match)
    for encoding, match in (("{", "is not JSON"), ("[]", "edge_normal_0"), (json.dumps({CATEGORIES[0]: {}}), "edge_normal_0")):
        write_benchmark(tmp_path / "codes")
        (tmp_path / "codes" / "encoding.json").write_text(encoding)
        refused(f"nb301:{tmp_path / 'codes'}", match=match)


def test_a_wrong_table_is_refused_in_one_line(tmp_path):
    refused(f"table:{tmp_path / 'absent.csv'}", match="cannot be read")
    cell = {"genotype": str(PDARTS), "accuracy": 97.0}
    refused(table(tmp_path, [{"accuracy": 97.0}]), match=r"has no column genotype \(nor normal and reduce\), it has accuracy")
    refused(table(tmp_path, [{"genotype": str(PDARTS)}]), match="has no column accuracy")
    refused(table(tmp_path, [cell, cell | {"accuracy": 101}]), match="row 2 has no accuracy between 0 and 100")
    refused(table(tmp_path, [cell, cell | {"accuracy": "high"}]), match="row 2 has no accuracy")
    refused(table(tmp_path, [cell, cell | {"genotype": "Genotype("}]), match="row 2: ")
    refused(table(tmp_path, [cell]), genotype=DARTS, match="has no row of it")
    (tmp_path / "junk.parquet").write_bytes(b"junk")
    refused(f"table:{tmp_path / 'junk.parquet'}", match="cannot be read as a table")


def test_the_evaluation_command_prints_estimates_as_a_table_without_data(benchmark, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["--genotype", "PDARTS_C10", "DARTS_V2", "--estimator", benchmark])
    lines = capsys.readouterr().out.splitlines()
    assert f"{100 * expected(PDARTS_CODES)[0]:.2f}" in next(line for line in lines if line.startswith("| PDARTS_C10"))
    assert not list(tmp_path.iterdir())
    for words, match in (
        (["--genotype", "NASNET_A", "--estimator", benchmark], "NASNET_A has no estimate"),
        (["--estimator", benchmark], "genotype: is missing"),
        (["--genotype", "PDARTS_C10", "--estimator", benchmark, "--epochs", "3"], "epochs: has no effect beside --estimator"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(words)
        assert match in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        show_cell(["NASNET_A", "--estimator", benchmark])
    assert "NASNET_A has no estimate" in capsys.readouterr().err


@pytest.mark.skipif("PDARTS_TUNE_REAL_DATA" not in os.environ, reason="PDARTS_TUNE_REAL_DATA names no folder with nas/")
def test_every_trained_cell_is_encoded_within_the_benchmarks_conditions_and_looked_up_exactly():
    folder = Path(os.environ["PDARTS_TUNE_REAL_DATA"]) / "nas"
    encoding = json.loads((folder / "yahpo_nb301_encoding.json").read_text())
    assert encoding == ENCODING
    space = json.loads((folder / "yahpo_nb301_config_space.json").read_text())
    conditions = {condition["child"]: condition for condition in space["conditions"]}
    choices = {item["name"]: item.get("choices") for item in space["hyperparameters"]}
    known = open_estimator(f"table:{folder / '214_darts_random_600epochs.csv'}")
    rows = list(csv.DictReader((folder / "214_darts_random_600epochs.csv").read_text().splitlines()))
    assert len(rows) == 214
    for row in rows:
        genotype = Genotype.parse(f"Genotype(normal={row['normal']}, reduce={row['reduce']})")
        assert outside_benchmark(genotype) is None
        values = {
            name: {code: value for value, code in encoding[name].items()}[code]
            for name, code in zip(CATEGORIES, encode(genotype, encoding), strict=True)
        }
        for name, value in values.items():
            condition = conditions.get(name)
            allowed = condition is None or values[condition["parent"]] in condition["values"]
            assert (value != "#na#") == allowed, name
            assert value in (*choices[name], "#na#")
        assert known.estimate([genotype])[0].accuracy == pytest.approx(float(row["pickled_accuracy"]) / 100)
