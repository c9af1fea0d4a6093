"""RQ3b's report on a synthetic study: each variant is compared with the one without a remedy in its own space."""

from dataclasses import replace

import pytest

from analysis import remedies
from common.section import to_text
from pdarts_tune.config.presets import PUBLISHED_SEARCHES
from pdarts_tune.config.remedies import AuxiliarySkip, BetaDecay
from pdarts_tune.pdarts.progressive_depth import with_operations, with_skip_dropout
from synthetic import make_study

PDARTS = PUBLISHED_SEARCHES["pdarts"]
NONE = replace(PDARTS, stages=with_skip_dropout(PDARTS.stages, (0.0, 0.0, 0.0)), max_skips=8)
S2 = replace(NONE, space="S2", stages=with_operations(NONE.stages, (2, 2, 2)))
VARIANTS = {
    "none": NONE,
    "pdarts": PDARTS,
    "beta_decay": replace(NONE, remedies=(BetaDecay(),)),
    "none_S2": S2,
    "auxiliary_skip_S2": replace(S2, remedies=(AuxiliarySkip(),)),
    "auxiliary_skip_S3": replace(S2, space="S3", stages=with_operations(NONE.stages, (3, 3, 3)), remedies=(AuxiliarySkip(),)),
}


@pytest.fixture(scope="module")
def section(tmp_path_factory):
    root = tmp_path_factory.mktemp("remedies")
    accuracy = dict.fromkeys(VARIANTS, 0.95) | {"beta_decay": 0.97, "auxiliary_skip_S2": 0.93, "none_S2": 0.91}
    make_study(root, "remedies", VARIANTS, range(8), epochs=2, evaluation_seeds=(0,), test_images=2000, accuracy=accuracy)
    return remedies.build(root)


def test_planted_differences_are_found_within_each_space_as_one_family(section):
    errors = section.tables["error_differences"].set_index("variant")
    assert list(errors.index) == ["pdarts", "beta_decay", "auxiliary_skip_S2"]
    assert errors["difference"].to_dict() == pytest.approx({"pdarts": 0.0, "beta_decay": -2.0, "auxiliary_skip_S2": -2.0}, abs=0.6)
    assert dict(errors["claimed"]) == {"pdarts": False, "beta_decay": True, "auxiliary_skip_S2": True}
    assert (errors["p_holm"] >= errors["p"]).all()
    assert errors["p_holm"]["beta_decay"] > errors["p"]["beta_decay"]
    assert "beta_decay −" in section.conclusion[0]


def test_variants_are_shown_with_space_remedies_and_dropout(section):
    table = section.tables["variants"].set_index("variant")
    assert table["space"].to_dict() | {"none": "full"} == {name: config.space for name, config in VARIANTS.items()}
    assert table.loc["beta_decay", "remedies"] == "beta_decay"
    assert dict(table["dropout"]) == {name: name == "pdarts" for name in VARIANTS}


def test_a_space_without_a_reference_is_named_and_published_figures_stand_apart(section):
    assert "space S3: no variant without any remedy, so its variants are compared with nothing" in section.missing
    assert section.tables["published"]["S2_error_percent"].tolist() == [4.85, 3.26, 2.63]
    assert "Zela et al." in to_text(section)
