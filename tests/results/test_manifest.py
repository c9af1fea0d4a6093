"""A study's tables hold the searches that it says, or are refused."""

import pytest

from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.results.manifest import check_seeds, count_difference

DEFINITION = {"seeds": {"flat": 2, "deep": 3}}
WHOLE = {"flat": {0, 1}, "deep": {0, 1, 2}}


def check(found, *, completed):
    check_seeds(DEFINITION, found, completed=completed, where="results/study")


@pytest.mark.parametrize("completed", [False, True])
def test_the_searches_of_the_study_are_taken(completed):
    check(WHOLE, completed=completed)


def test_an_unfinished_study_may_lack_searches():
    check({"deep": {1}}, completed=False)


def test_a_finished_study_that_lacks_a_search_is_refused():
    with pytest.raises(ConfigError, match=r"^results/study: by completed.json .* done with 3 seeds of deep, .* lack seed 0, 2;"):
        check(WHOLE | {"deep": {1}}, completed=True)


@pytest.mark.parametrize("completed", [False, True])
def test_a_search_with_a_seed_that_the_study_has_not_is_refused(completed):
    with pytest.raises(ConfigError, match=r"hold flat with seed 5, but by study.json the study has 2 seeds of it; take out"):
        check(WHOLE | {"flat": {0, 1, 5}}, completed=completed)


def test_a_search_of_a_variant_that_the_study_has_not_is_refused():
    with pytest.raises(ConfigError, match=r"hold wide with seed 0, but .* has no such variant, only flat, deep;"):
        check(WHOLE | {"wide": {0}}, completed=False)


def test_a_folder_that_remembers_no_seeds_is_read_as_it_is():
    check_seeds({}, {"flat": {7}}, completed=True, where="results/study")


def test_parts_of_a_study_may_have_other_seeds_or_other_variants_but_every_variant_has_as_many():
    def part(seeds):
        return {"variants": {name: {} for name in seeds}, "seeds": seeds}

    assert count_difference({"a": part({"flat": 2, "deep": 2}), "b": part({"flat": [2, 3], "deep": [2, 3]})}) is None
    assert count_difference({"a": part({"flat": 2}), "b": part({"deep": [0, 1]})}) is None
    told = count_difference({"a": part({"flat": 2, "deep": 2}), "b": part({"flat": [2, 3]})})
    assert told == "4 of flat in a and b, 2 of deep in a"
