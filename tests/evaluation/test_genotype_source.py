"""A source stands for each of its genotypes once, at the skip limits, and random ones are a fair control."""

import re

import pytest

from pdarts_tune.config.search import SearchConfig
from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.evaluation.genotype_source import find_genotypes, named_genotypes, parse_limits
from pdarts_tune.pdarts.published import PUBLISHED
from pdarts_tune.results.tables import write_rows
from pdarts_tune.search.records import genotype_row
from synthetic import START
from synthetic_rows import trial_row

PDARTS = PUBLISHED["PDARTS_C10"].genotype
(RANDOM,) = find_genotypes("random:0").values()


def test_every_distinct_genotype_of_a_results_folder_is_found_once_with_its_skip_limits(tmp_path):
    limits = {"one": {0: "DARTS_V1", 1: "PDARTS_C10", 2: "PDARTS_C10"}, "two": {0: "PDARTS_C10", 1: "DARTS_V2", 2: "DARTS_V2"}}
    limits["under-way"] = {2: "SNAS_MILD"}
    for trial, found in limits.items():
        rows = [genotype_row(PUBLISHED[name].genotype, 3, limit, None) for limit, name in found.items()]
        earlier = [genotype_row(PUBLISHED["SNAS_MILD"].genotype, 2, limit, None) for limit in found]
        write_rows(tmp_path / "study", "genotypes", trial, [{"trial_id": trial} | row for row in [*earlier, *rows]])
        row = trial_row("study", "a", trial, SearchConfig(), "running" if trial == "under-way" else "completed", START, START, None)
        write_rows(tmp_path / "study", "trials", trial, [row])
    every = find_genotypes(str(tmp_path / "study"), "0..8")
    assert every == {
        "one M=0": PUBLISHED["DARTS_V1"].genotype,
        "one M=1,2; two M=0": PDARTS,
        "two M=1,2": PUBLISHED["DARTS_V2"].genotype,
    }
    assert set(find_genotypes(str(tmp_path / "study"))) == {"one M=2", "two M=2"}
    with pytest.raises(ConfigError, match=r"no genotype of a finished search with skip limits \[8\]"):
        find_genotypes(str(tmp_path / "study"), "8")


def test_a_genotype_is_a_name_a_text_a_file_or_a_seed(tmp_path):
    file = tmp_path / "log.txt"
    file.write_text(f"11/24 genotype = {PDARTS}\n")
    for source in ("PDARTS_C10", str(PDARTS), PDARTS.to_json(), str(file)):
        assert list(find_genotypes(source).values()) == [PDARTS]
    (first,), (again,), (other,) = (find_genotypes(f"random:{seed}").values() for seed in (1, 1, 2))
    assert first == again != other
    assert first.normal.skips <= 2


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("PDARTS", "PDARTS_C10"),
        ("P-DARTS", "PDARTS_C10"),
        ("DARTS", "DARTS_V2"),
        ("darts_v1", "DARTS_V1"),
        ("PC_DARTS_cifar", "PC_DARTS_C10"),
        ("PC_DARTS_image", "PC_DARTS_IMAGENET"),
        ("AmoebaNet", "AMOEBANET_A"),
    ],
)
def test_names_that_people_type_are_aliases_of_the_published_cells(typed, name):
    assert find_genotypes(typed) == {name: PUBLISHED[name].genotype}
    assert named_genotypes(typed) == named_genotypes(name)


def test_a_file_comes_before_an_alias(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "darts").write_text(str(PDARTS))
    assert find_genotypes("darts") == {"darts": PDARTS}


def test_a_file_with_several_genotypes_needs_a_choice(tmp_path):
    file = tmp_path / "log (1): all.txt"
    other = PUBLISHED["DARTS_V1"].genotype
    file.write_text(f"epoch 0 {other}\nepoch 1 {PDARTS}\n", encoding="utf-16")
    with pytest.raises(ConfigError, match=rf"^{re.escape(str(file))}: 2 genotypes; choose one by :last.*\n  line 1, .*: epoch 0\n"):
        find_genotypes(str(file))
    assert find_genotypes(f"{file}:last") == {f"{file.name}:last": PDARTS}
    assert find_genotypes(f"{file}:1") == {f"{file.name}:1": other}
    with pytest.raises(ConfigError, match="'BEST' is no line or variable with a genotype"):
        find_genotypes(f"{file}:BEST")


def test_a_long_text_is_never_taken_for_a_file_s_name():
    spaced = str(PDARTS).replace("Genotype(", "Genotype (")
    assert list(find_genotypes(spaced).values()) == [PDARTS]
    with pytest.raises(ConfigError, match=r"genotype: .normal=\[.{52}. is neither a file nor a published name"):
        find_genotypes(str(PDARTS).removeprefix("Genotype("))


def test_pasted_texts_and_names_are_separated_by_commas_outside_their_brackets(tmp_path):
    file = tmp_path / "a=b.txt"
    file.write_text(str(PDARTS))
    v1, snas, pc_darts = (PUBLISHED[name].genotype for name in ("DARTS_V1", "SNAS_MILD", "PC_DARTS_C10"))
    variants = named_genotypes(f"mine={PDARTS},DARTS_V2,{v1.to_json()},json={snas.to_json()},BEST = {pc_darts},{file}")
    assert [origin for origin, _ in variants.values()] == ["a text", "DARTS_V2", *["a text"] * 3, f"{file}: a=b.txt"]
    named = {"mine": PDARTS, "DARTS_V2": PUBLISHED["DARTS_V2"].genotype, v1.genotype_id: v1, "json": snas, "BEST": pc_darts}
    assert {name: genotype for name, (_, genotype) in variants.items()} == named | {"a_b.txt": PDARTS}


def test_random_genotypes_are_drawn_under_the_limits_that_searched_ones_are_evaluated_at(tmp_path):
    for limit in (0, 1, 3):
        assert find_genotypes("random:3", str(limit))[f"random:3 M={limit}"].normal.skips <= limit
    assert find_genotypes("random:3", "2")["random:3 M=2"] == find_genotypes("random:3")["random:3"]


def test_skip_limits_are_a_number_a_list_or_a_range():
    assert parse_limits("2") == [2]
    assert parse_limits("0,2") == [0, 2]
    assert parse_limits("0..8") == list(range(9))
