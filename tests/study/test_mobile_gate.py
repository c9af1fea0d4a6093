from dataclasses import replace

import pytest

from pdarts_tune.config.evaluation import RECIPES
from pdarts_tune.data.datasets import DatasetInfo
from pdarts_tune.pdarts.published import PUBLISHED
from pdarts_tune.results.storage import Storage
from pdarts_tune.results.tables import read_rows, read_table
from pdarts_tune.study import forecast
from pdarts_tune.study.forecast import refuse_large
from pdarts_tune.study.plan import EvalTrial

MOBILE = RECIPES["imagenet-mobile"]


@pytest.fixture(autouse=True)
def imagenet(monkeypatch):
    monkeypatch.setattr(forecast, "check_dataset", lambda *_, **__: DatasetInfo(3, 224, 1000, 1_281_167, 50_000))


def test_a_network_over_the_mobile_limit_is_not_trained_and_its_row_says_why(tmp_path):
    text = str(PUBLISHED["PDARTS_C10"].genotype)
    fits, large = EvalTrial("fits", text, MOBILE), EvalTrial("large", text, replace(MOBILE, channels=60))
    assert refuse_large([fits, large], Storage(tmp_path)) == [fits]
    (row,) = read_rows(tmp_path, "evaluations", "large")
    assert row["status"] == "failed"
    assert row["failure"].startswith("refused: genotype ")
    assert "multiply-adds at 60 channels, the mobile setting allows 600M" in row["failure"]
    assert len(read_table(tmp_path, "evaluations")) == 1


def test_other_recipes_have_no_limit(tmp_path):
    large = EvalTrial("large", str(PUBLISHED["PDARTS_C10"].genotype), RECIPES["cifar-large"])
    assert refuse_large([large], Storage(tmp_path)) == [large]
    assert not list(tmp_path.iterdir())
