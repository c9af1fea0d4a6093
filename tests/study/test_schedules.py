import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdarts_tune.config.presets import PRESETS
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.study.schedule_search import DepthRange, depth_range, point_of, suggest_schedule


class Fixed:
    """Answers with the values of a point, and knows which were asked for."""

    def __init__(self, point):
        self.point, self.asked = point, []

    def suggest_int(self, name, low, high):
        return self._answer(name, low, high)

    suggest_float = suggest_int

    def _answer(self, name, low, high):
        self.asked.append(name)
        assert low <= self.point[name] <= high, name
        return self.point[name]


class Drawn(Fixed):
    def __init__(self, data):
        self.data, self.asked = data, []

    def suggest_int(self, name, low, high):
        self.asked.append(name)
        return self.data.draw(st.integers(low, high), name)

    def suggest_float(self, name, low, high):
        self.asked.append(name)
        return self.data.draw(st.floats(low, high), name)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_base_is_a_point_of_the_space(preset):
    base = PRESETS[preset].search
    trial = Fixed(point_of(base))
    assert suggest_schedule(trial, base) == base
    assert set(trial.asked) == set(trial.point)


@given(data=st.data())
def test_every_point_is_a_schedule_and_only_its_own_stages_are_asked_for(data):
    base = SearchConfig()
    trial = Drawn(data)
    config = suggest_schedule(trial, base)  # SearchConfig refuses stages that make no search
    assert 2 <= len(config.stages) <= 4
    assert {name for name in trial.asked if name.startswith("depth_")} == {f"depth_{n + 1}" for n in range(len(config.stages))}
    assert len(trial.asked) == len(set(trial.asked)) == 1 + 3 * len(config.stages)
    assert trial.asked[-1] == "max_skips"
    kept = [stage.operations for stage in config.stages]
    assert kept[0] == 8
    assert kept == sorted(kept, reverse=True)
    assert kept[-1] >= 2


def test_depths_reach_from_the_shallowest_stage_to_beyond_the_deepest():
    assert depth_range(SearchConfig().stages) == DepthRange(5, 18)
