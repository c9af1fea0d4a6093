"""A setting of how a search is computed is refused where it would do nothing."""

from dataclasses import asdict, fields, replace

import pytest

from pdarts_tune.config.execution import Execution, allows_graphs, cell_evaluation
from pdarts_tune.config.methods import FirstOrder, PartialChannels, SecondOrder
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.config.serialize import ConfigError, config_id, content, from_dict, to_dict
from pdarts_tune.pdarts.progressive_depth import Stage

TINY = SearchConfig(stages=(Stage(3, 8, 0.3, epochs=2, warmup_epochs=1),), data="digits", channels=2)
PLAIN = Execution(cell_evaluation="plain")


@pytest.mark.parametrize(
    ("execution", "message"),
    [
        ({"precision": "fp8"}, "execution.precision: 'fp8' is wrong, it must be 'fp32' or 'bf16'"),
        ({"cell_evaluation": "slow"}, "execution.cell_evaluation: 'slow' is wrong, it must be 'auto', 'kernels' or 'plain'"),
        ({"compile": 1}, "execution.compile: 1 is wrong, it must be True or False"),
        ({"tf23": True}, "execution.tf23: unknown setting of Execution, known are cell_evaluation"),
        ({"precision": "bf16", "cell_evaluation": "kernels"}, "execution.precision: 'bf16' needs plain cells"),
        ({"tf32": True, "cell_evaluation": "kernels"}, "execution.tf32: True needs plain cells"),
        ({"compile": True, "cell_evaluation": "kernels"}, "execution.compile: True needs plain cells"),
    ],
)
def test_a_setting_that_would_do_nothing_is_refused_in_one_line(execution, message):
    with pytest.raises(ConfigError) as caught:
        from_dict(SearchConfig, {"execution": execution})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_partial_channels_have_plain_cells_so_they_take_what_those_take():
    partial = replace(TINY, method=PartialChannels(2))
    assert replace(partial, execution=Execution(precision="bf16", tf32=True, compile=True)).execution.compile
    with pytest.raises(ConfigError, match=r"execution\.cell_evaluation: method partial_channels has no kernels"):
        replace(partial, execution=Execution(cell_evaluation="kernels"))


def test_auto_is_plain_where_a_setting_has_no_kernels():
    first = FirstOrder()
    assert cell_evaluation(Execution(), first) == "auto"
    assert cell_evaluation(Execution(), PartialChannels(2)) == "plain"
    for setting in (Execution(precision="bf16"), Execution(tf32=True), Execution(compile=True)):
        assert cell_evaluation(setting, first) == "plain"


def test_a_configuration_of_earlier_code_is_read_and_keeps_its_id():
    """What is `auto` now was called `fast`: ids go on to count that name."""
    older = to_dict(replace(TINY, execution=Execution(recompute=True)))
    older["execution"]["cell_evaluation"] = "fast"
    read = from_dict(SearchConfig, older)
    assert read.execution == Execution(recompute=True)
    assert content(read)["execution"]["cell_evaluation"] == "fast"
    assert config_id(read) == config_id(replace(TINY, execution=Execution(recompute=True)))


def test_second_derivatives_of_compiled_cells_are_refused():
    with pytest.raises(ConfigError, match="eigenvalue_every: compiled cells have no second derivatives"):
        replace(TINY, eigenvalue_every=1, execution=replace(PLAIN, compile=True))


def test_every_setting_counts_in_the_id_and_the_default_in_none():
    """All change rounding at least, and rounding alone makes a search end with another cell."""
    plain = replace(TINY, execution=PLAIN)
    ids = {config_id(TINY), config_id(plain), config_id(replace(TINY, execution=Execution(recompute=True)))}
    for setting in ("precision", "tf32", "compile", "channels_last", "deterministic"):
        ids.add(config_id(replace(plain, execution=replace(PLAIN, **{setting: "bf16" if setting == "precision" else True}))))
    ids.add(config_id(replace(TINY, execution=Execution(graph="off"))))
    assert len(ids) == 3 + 6
    assert {field.name for field in fields(Execution)} == {*asdict(PLAIN)}
    older = to_dict(TINY)
    del older["execution"]
    assert config_id(from_dict(SearchConfig, older)) == config_id(TINY)
    assert "graph" not in content(plain)["execution"]  # it joined later


def test_every_method_but_second_order_may_run_as_graphs():
    assert allows_graphs(Execution())
    assert allows_graphs(Execution(), PartialChannels(2))
    assert not allows_graphs(Execution(graph="off"))
    assert not allows_graphs(Execution(), SecondOrder())
