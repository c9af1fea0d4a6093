import json
from dataclasses import replace

import pytest

from pdarts_tune.config.methods import FirstOrder, PartialChannels, RandomSampling, RandomSearch, SecondOrder, Snas
from pdarts_tune.config.remedies import IndependentWeights, ResourcePenalty
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.config.serialize import ConfigError, config_id, from_dict, to_dict
from pdarts_tune.pdarts.progressive_depth import Stage

ROW = ["sep_conv_3x3", 16, 1, 32, 1e-4]
TABLE = {"device": "a device", "torch": "2.14", "threads": 1, "batch": 1, "seconds": [ROW]}


def test_no_penalty_leaves_the_id():
    assert config_id(SearchConfig()) == config_id(SearchConfig(penalty=ResourcePenalty())) == "b192a474a937"
    assert config_id(SearchConfig(penalty=ResourcePenalty("macs", 0.5))) != "b192a474a937"


def test_the_content_of_a_latency_file_counts_in_the_id_and_its_name_does_not(tmp_path):
    ids = []
    for name, table in (("one", TABLE), ("same", TABLE), ("other", TABLE | {"threads": 2})):
        (tmp_path / f"{name}.json").write_text(json.dumps(table))
        config = SearchConfig(penalty=ResourcePenalty("latency", 0.5, str(tmp_path / f"{name}.json")))
        (tmp_path / f"{name}.json").unlink()  # a trial on another machine does not have it
        assert from_dict(SearchConfig, to_dict(config)) == config
        ids.append(config_id(config))
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file or directory"),
        ("{", "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        (TABLE | {"batch": 0}, "batch: 0 is wrong, it must be a whole number of at least 1"),
        (TABLE | {"seconds": [ROW[:4]]}, "seconds[0][4]: is missing"),
        (TABLE | {"seconds": [[*ROW, 1]]}, "seconds[0]: ['sep_conv_3x3', 16, 1, 32, 0.0001, 1] is wrong, it must be 5 values"),
        (TABLE | {"seconds": [[*ROW[:4], "x"]]}, "seconds[0][4]: 'x' is wrong, it must be a number of at least 0"),
        (
            TABLE | {"seconds": [["none", 16, 3, 32, 0.1]]},
            "seconds[0][2]: 3 is wrong, it must be a whole number from 1 to 2",
        ),
        (
            TABLE | {"seconds": [ROW, ROW]},
            "seconds: ('sep_conv_3x3', 16, 1, 32) is there twice, each operation and shape is given once",
        ),
    ],
)
def test_a_file_that_holds_no_latencies_is_refused_with_its_name_and_the_place(tmp_path, monkeypatch, content, reason):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "l.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ConfigError) as error:
        from_dict(SearchConfig, {"penalty": {"resource": "latency", "weight": 1.0, "latencies": "l.json"}})
    assert str(error.value) == (
        f"penalty.latencies: 'l.json' is wrong, it must be a file that benchmarks/latency.py writes ({reason})"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resource": "time"}, "penalty.resource: 'time' is wrong, it must be 'params', 'macs' or 'latency'"),
        ({"weight": -1}, "penalty.weight: -1 is wrong, it must be a number of at least 0"),
        ({"resource": "latency"}, "penalty.latencies: is missing, resource latency needs a file that benchmarks/latency.py writes"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigError) as error:
        from_dict(SearchConfig, {"penalty": settings})
    assert str(error.value) == message


def test_the_penalty_goes_with_every_method_whose_weights_are_learnt_probabilities():
    penalty = ResourcePenalty("params", 1.0)
    for method in (FirstOrder(), SecondOrder(), PartialChannels(), RandomSampling()):  # the last one trains nothing
        assert SearchConfig(method=method, penalty=penalty).penalty == penalty
    alone = (Stage(5, 8, epochs=2, warmup_epochs=2),)
    for settings, reason in (
        ({"method": Snas()}, "method snas has its own, method.penalty"),
        ({"method": RandomSearch(), "stages": alone}, "is for alphas, method random_search has none"),
        ({"remedies": (IndependentWeights(),)}, "is about a distribution, independent_weights have none"),
    ):
        with pytest.raises(ConfigError) as error:
            SearchConfig(**settings, penalty=penalty)
        assert str(error.value) == f"penalty: {reason}; weight must be 0"
        assert SearchConfig(**settings, penalty=replace(penalty, weight=0.0))
