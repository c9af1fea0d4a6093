from dataclasses import replace

import pytest

from pdarts_tune.config.methods import PartialChannels, RandomSampling, RandomSearch, SecondOrder, Snas
from pdarts_tune.config.remedies import (
    AuxiliarySkip,
    BetaDecay,
    DropPath,
    FrozenOperations,
    IndependentWeights,
    PerturbedAlphas,
    StopAtSkips,
)
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.config.serialize import ConfigError, config_id, from_dict, to_dict
from pdarts_tune.pdarts.progressive_depth import PDARTS_CIFAR10, Stage, with_operations
from pdarts_tune.pdarts.space import SPACES

ALL = (AuxiliarySkip(), DropPath(), FrozenOperations(), PerturbedAlphas(), BetaDecay(), StopAtSkips())


def test_no_remedy_leaves_the_id_and_the_order_of_remedies_has_none():
    assert config_id(SearchConfig()) == config_id(replace(SearchConfig(), remedies=())) == "b192a474a937"
    assert config_id(SearchConfig(remedies=ALL)) == config_id(SearchConfig(remedies=ALL[::-1])) != config_id(SearchConfig())


def test_remedies_are_read_as_they_were_written():
    config = SearchConfig(remedies=ALL)
    assert from_dict(SearchConfig, to_dict(config)) == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"remedies": (BetaDecay(), BetaDecay(end=25.0))}, "remedies[0]: beta_decay is there twice, each remedy is given once"),
        (
            {"remedies": (IndependentWeights(), PerturbedAlphas())},
            "remedies[1]: perturbed_alphas is about a distribution, independent_weights have none; leave out one of the two",
        ),
        (
            {"remedies": (AuxiliarySkip(),), "method": Snas()},
            "remedies[0]: auxiliary_skip is defined for method first_order, not for snas; leave it out",
        ),
        (
            {"remedies": (FrozenOperations(),), "method": SecondOrder()},
            "remedies[0]: frozen_operations is defined for method first_order, not for second_order; leave it out",
        ),
        (
            {"remedies": (DropPath(),), "method": PartialChannels()},
            "remedies[0]: drop_path is defined for method first_order, not for partial_channels; leave it out",
        ),
        (
            {"remedies": (StopAtSkips(),), "method": RandomSearch(), "stages": (Stage(5, 8, epochs=2, warmup_epochs=2),)},
            "remedies[0]: stop_at_skips is for alphas, method random_search has none; leave it out",
        ),
        (
            {"remedies": (DropPath(),), "stages": (Stage(5, 8), Stage(5, 4, epochs=1, warmup_epochs=0))},
            "remedies[0]: drop_path has a schedule over epochs, stages[1].epochs is 1; it must be at least 2",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(settings, message):
    with pytest.raises(ConfigError) as error:
        SearchConfig(**settings)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("remedy", "message"),
    [
        ({"name": "frozen_operations", "threshold": 1.5}, "remedies[0].threshold: 1.5 is wrong, it must be a number from -1 to 1"),
        ({"name": "drop_path", "rate": 1.0}, "remedies[0].rate: 1.0 is wrong, it must be a number in [0, 1)"),
        ({"name": "stop_at_skips", "skips": 0}, "remedies[0].skips: 0 is wrong, it must be a whole number from 1 to 8"),
        ({"name": "perturbed_alphas", "end": -0.1}, "remedies[0].end: -0.1 is wrong, it must be a number from 0 to 1"),
        (
            {"name": "vitamins"},
            "remedies[0]: {'name': 'vitamins'} is wrong, it must be settings with a name, one of auxiliary_skip,",
        ),
    ],
)
def test_a_value_out_of_range_is_refused_in_one_line(remedy, message):
    with pytest.raises(ConfigError) as error:
        from_dict(SearchConfig, {"remedies": [remedy]})
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_every_method_with_alphas_can_stop_at_skips_and_those_that_train_nothing_ignore_remedies():
    for method in (SecondOrder(), Snas(), PartialChannels()):
        assert SearchConfig(remedies=(StopAtSkips(),), method=method).remedies == (StopAtSkips(),)
    assert SearchConfig(remedies=ALL, method=RandomSampling()).method == RandomSampling()


def test_spaces_are_read_by_name_or_by_edge_and_the_full_one_leaves_the_id():
    two = with_operations(PDARTS_CIFAR10, (2, 2, 2))
    named, own = SearchConfig(space="S2", stages=two), SearchConfig(space=SPACES["S2"], stages=two)
    assert named.start == own.start == SPACES["S2"]
    assert config_id(SearchConfig(space="full")) == config_id(SearchConfig())
    for config in (named, own):
        assert from_dict(SearchConfig, to_dict(config)) == config
        assert config_id(config) != config_id(SearchConfig(stages=two))


EDGES_OF_S1 = "normal 0 (2), normal 1 (2), "


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"space": "S9"}, "space: 'S9' is wrong, it must be one of full, S1, S2, S3, no_skip, or the operations of each edge"),
        ({"space": "S1"}, f"stages[0].operations: 8 is more than these edges of the space have: {EDGES_OF_S1}"),
        ({"space": "no_skip"}, "stages[0].operations: 8 is more than these edges of the space have: normal 0 (7), "),
        (
            {"space": {"normal": [["none"]] + [["skip_connect", "sep_conv_3x3"]] * 13, "reduce": [["max_pool_3x3"]] * 14}},
            "space.normal cell, edge 0: none alone is no choice, it needs another operation",
        ),
        (
            {"space": {"normal": [["none", "skip_connect"]] * 14, "reduce": [["none", "max_pool_3x3"]] * 14}},
            "space.normal cell, node 0: fewer than two of its edges have an operation other than none and skip_connect, so",
        ),
        ({"space": {"normal": [["max"]] * 14, "reduce": [["max"]] * 14}}, "space.normal cell, edge 0: unknown operation 'max'"),
        (
            {"space": "no_skip", "max_skips": 1, "method": {"name": "random", "exactly": True}},
            "max_skips: 1 is wrong, a normal cell of this space has at most 0 skip-connects",
        ),
    ],
)
def test_a_space_without_a_choice_and_plans_that_keep_more_than_an_edge_has_are_refused(settings, message):
    with pytest.raises(ConfigError) as error:
        from_dict(SearchConfig, settings)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
