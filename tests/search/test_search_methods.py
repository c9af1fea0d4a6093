"""Every method through the one stage loop: what it leaves behind, and that a killed search continues to the same bits."""

import importlib.util
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pdarts_tune.config.methods import PartialChannels, RandomSearch, SecondOrder, Snas
from pdarts_tune.config.presets import PRESETS, PUBLISHED_SEARCHES
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.pdarts.progressive_depth import Stage
from pdarts_tune.search import loop as search_module
from pdarts_tune.search.diagnostics import look_every
from pdarts_tune.search.loop import Search
from pdarts_tune.search.records import EpochRecord, alpha_rows, epoch_row, genotype_rows
from pdarts_tune.study.plan import make_plan, stage_columns

CPU = torch.device("cpu")
TINY = SearchConfig(
    stages=(Stage(3, 8, 0.3, epochs=2, warmup_epochs=1), Stage(4, 3, 0.5, epochs=2, warmup_epochs=1)),
    data="digits",
    train_images=60,
    validation_fraction=0.2,
    channels=2,
    batch_size=12,
    alpha_learning_rate=0.01,
)
CANDIDATES = (Stage(3, 8, epochs=1, warmup_epochs=1),)
CONFIGS = {
    "first_order": replace(TINY, diagnostics_every=1, eigenvalue_every=4),
    "second_order": replace(TINY, method=SecondOrder()),
    "snas": replace(TINY, method=Snas(penalty="moderate")),
    "partial_channels": replace(TINY, method=PartialChannels(2)),
    "random_search": replace(TINY, method=RandomSearch(4), stages=CANDIDATES),
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def whole():
    """For each method a whole search and its state, as saved to a file, after each epoch."""
    found = {}
    for name, config in CONFIGS.items():
        search, states = Search(config, CPU), []
        for _ in search.epochs():
            file = io.BytesIO()
            torch.save(search.state_dict(), file)
            states.append(file.getvalue())
        found[name] = search, states
    return found


def same_figures(record):
    clock = {"seconds": 0.0, "diagnostic_seconds": 0.0, "images_per_second": 0.0, "finished": 0.0}
    return replace(record, **clock, peak_bytes=0, diagnostic_peak_bytes=0)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("epochs_done", [1, 2, 3])
def test_a_resumed_search_gives_the_same_bits(whole, name, epochs_done):
    search, states = whole[name]
    torch.manual_seed(epochs_done)  # a resumed process finds another global state; no draw may depend on it
    resumed = Search(CONFIGS[name], CPU)
    resumed.load_state_dict(torch.load(io.BytesIO(states[epochs_done - 1]), weights_only=True))
    assert len(list(resumed.epochs())) == 4 - epochs_done
    assert [same_figures(record) for record in resumed.records] == [same_figures(record) for record in search.records]
    ours = resumed.network.state_dict()
    for key, tensor in search.network.state_dict().items():
        assert torch.equal(tensor, ours[key]), key


@pytest.mark.parametrize("name", CONFIGS)
def test_every_method_leaves_complete_rows_and_a_genotype_within_its_limit(whole, name):
    search, _ = whole[name]
    rows = genotype_rows(search.records, search.config)
    last = [row for row in rows if row["stage"] == max(row["stage"] for row in rows)]
    (final,) = (row for row in last if row["max_skips"] == search.config.max_skips)
    assert final["skips"] <= 2
    assert final["inherited_accuracy"] is not None
    for record in search.records:
        counts = [value for column, value in epoch_row(record).items() if column.endswith("_count")]
        assert sum(counts) == 16
        assert {row["edge_weight"] is None for row in alpha_rows(record)} == {name != "partial_channels"}


@pytest.mark.parametrize("name", ["first_order", "second_order", "snas", "partial_channels"])
def test_alphas_stay_while_the_warm_up_lasts_and_move_after(whole, name):
    first, second, *_ = whole[name][0].records
    fresh = Search(CONFIGS[name], CPU)
    assert list(fresh._alphas_by_name()) == [first.alphas["normal"], first.alphas["reduce"]]
    assert first.edge_weights == fresh._edge_weights()
    assert second.alphas != first.alphas
    assert name != "partial_channels" or second.edge_weights != first.edge_weights


def test_methods_with_one_seed_see_the_same_images(whole):
    """The weights' batches of the first epoch come from the same draws, whatever the method."""
    states = [torch.load(io.BytesIO(states[0]), weights_only=True)["generators"] for _, states in whole.values()]
    assert all(torch.equal(states[0]["weight batches"], state["weight batches"]) for state in states)


def test_only_methods_with_alpha_images_of_their_own_draw_them(whole):
    before = Search(TINY, CPU).generators["alpha batches"].get_state()
    for name, (search, _) in whole.items():
        unused = torch.equal(before, search.generators["alpha batches"].get_state())
        assert unused == (name in ("snas", "random_search")), name


def test_first_and_second_order_differ_once_alphas_train(whole):
    first, second = whole["first_order"][0].records, whole["second_order"][0].records
    assert first[0].train_loss == second[0].train_loss
    assert first[1].alphas != second[1].alphas


def test_a_sampled_search_is_validated_as_it_was_trained_and_draws_nothing_from_training(whole):
    """With an architecture sampled for each batch, from a generator of its own."""
    search, _ = whole["snas"]
    before = search.generators["architectures"].get_state()
    draws = [search.steps.sampler(seed) for seed in (5, 5, 6)]
    first, again, other = ([draw()[0] for _ in range(2)] for draw in draws)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], other[0])
    assert not torch.allclose(first[0], search.network.mixing()[0], atol=0.1)
    assert torch.equal(before, search.generators["architectures"].get_state())
    assert whole["first_order"][0].steps.sampler(5) is None


def test_edge_weights_decide_which_edges_are_derived(whole):
    record = whole["partial_channels"][0].records[1]
    assert [sum(record.edge_weights["normal"][a:b]) for a, b in ((0, 2), (2, 5), (5, 9), (9, 14))] == pytest.approx(
        [1] * 4, abs=1e-6
    )
    weights = [0.0, 0.0, 0.0, 0.9, 0.1] + [0.0] * 9
    pushed = replace(record, edge_weights={"normal": weights, "reduce": record.edge_weights["reduce"]})
    assert [source for _, source in pushed.genotype(8).normal.edges[2:4]] == [1, 2]


def test_random_search_ends_with_its_most_accurate_candidate(whole):
    search, _ = whole["random_search"]
    rows = genotype_rows(search.records, search.config)
    assert [row["stage"] for row in rows] == [1, 2, 3, 4, 5]
    assert len({row["genotype_id"] for row in rows}) == 4
    accuracies = [record.validation_accuracy for record in search.records]
    assert rows[4]["genotype_id"] == rows[accuracies.index(max(accuracies))]["genotype_id"]
    assert len(genotype_rows(search.records[:3], search.config)) == 3


def test_looks_come_as_often_as_asked_and_at_the_end_of_a_stage(whole):
    looked = [record.inherited_accuracy is not None for record in whole["first_order"][0].records]
    assert looked == [True] * 4
    assert [record.inherited_accuracy is not None for record in whole["snas"][0].records] == [False, True] * 2


def test_looks_come_as_far_apart_as_their_cost_asks():
    """The paper's 261 batches of weights and of validation: 281 passes at a fifth of a step, and one step, are 4.1 % of 4 epochs
    of 348 steps."""
    assert look_every(SearchConfig(), 261, 261) == 4
    assert look_every(SearchConfig(), 261, 26) == 1  # few validation images cost little
    assert look_every(SearchConfig(), 2, 1) == 14
    assert look_every(SearchConfig(diagnostics_every=1), 261, 261) == 1


def test_looking_changes_nothing_in_the_search(whole):
    quiet = list(Search(TINY, CPU).epochs())
    for looked, alone in zip(whole["first_order"][0].records, quiet, strict=True):
        assert (looked.alphas, looked.train_loss, looked.validation_loss) == (
            alone.alphas,
            alone.train_loss,
            alone.validation_loss,
        )


def test_an_early_stop_ends_the_stage_and_takes_the_alphas_from_before_the_rise(monkeypatch):
    """With the eigenvalue given: 1 for six epochs, then 3. Means of five pass the ratio 1.3 at epoch 10, where the earlier one is
    over epochs 1 to 5; the second stage starts its window anew."""
    values = iter([1.0] * 9 + [3.0] * 60)

    def examine(*arguments, **settings):
        return search_module.Examination(hessian_eigenvalue=next(values))

    def train(search, both):
        """In place of an epoch of training: alphas go anywhere."""
        for alphas in search.network.arch_parameters():
            alphas.data.copy_(torch.randn(alphas.shape, generator=search.generators["architectures"]))
        return 1.0, 0.5, 24

    monkeypatch.setattr(search_module, "examine", examine)
    monkeypatch.setattr(Search, "_train", train)
    stages = (Stage(3, 8, epochs=13, warmup_epochs=1), Stage(3, 2, epochs=11, warmup_epochs=0))
    config = replace(TINY, stages=stages, train_images=40, eigenvalue_every=1, early_stop_ratio=1.3)
    search = Search(config, CPU)
    list(search.epochs())
    ends = [record for record in search.records if record.derived_epoch is not None]
    assert [(end.stage, end.epoch, end.derived_epoch) for end in ends] == [(1, 10, 5), (2, 10, 10)]
    kept = next(record for record in search.records if (record.stage, record.epoch) == (1, 5))
    first = genotype_rows(search.records, config)[0]
    assert first["genotype_id"] == kept.genotype(8).genotype_id
    for edge, names in zip(kept.probabilities["normal"], search.network.space.normal, strict=True):
        assert min(edge[name] for name in names) >= sorted(edge.values())[-2]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"early_stop_ratio": 1.3}, "early_stop_ratio: needs an eigenvalue every epoch, set eigenvalue_every to 1"),
        ({"early_stop_ratio": 1.0, "eigenvalue_every": 1}, "early_stop_ratio: 1.0 is wrong, it must be more than 1"),
        ({"eigenvalue_every": -1}, "eigenvalue_every: -1 is wrong"),
        ({"diagnostics_every": 0}, "diagnostics_every: 0 is wrong"),
        ({"eigenvalue_every": 1, "method": RandomSearch(2), "stages": CANDIDATES}, "method random_search has no alphas"),
    ],
)
def test_wrong_diagnostics_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        replace(TINY, **values)


def load_study():
    path = Path(__file__).parents[2] / "studies" / "baselines.py"
    spec = importlib.util.spec_from_file_location("baselines", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def paper_arms(**options):
    plan = make_plan(load_study().STUDY, "paper", **options)
    return {variant.name: variant.search for variant in plan.variants}


def test_the_paper_preset_is_what_the_authors_ran():
    """The numbers of the resolved plan, against those in the papers that `config/presets.py` names."""
    arms = paper_arms()
    assert arms == PUBLISHED_SEARCHES
    for name, method, cells, epochs, warmup, batch, rate, alpha_rate in (
        ("pdarts", "first_order", "5-11-17", "25-25-25", [10, 10, 10], 96, 0.025, 6e-4),
        ("darts_first", "first_order", "8", "50", [0], 64, 0.025, 3e-4),
        ("darts_second", "second_order", "8", "50", [0], 64, 0.025, 3e-4),
        ("snas_mild", "snas", "8", "150", [0], 64, 0.025, 3e-4),
        ("snas_moderate", "snas", "8", "150", [0], 64, 0.025, 3e-4),
        ("snas_aggressive", "snas", "8", "150", [0], 64, 0.025, 3e-4),
        ("pc_darts", "partial_channels", "8", "50", [15], 256, 0.1, 6e-4),
        ("random_search", "random_search", "8", "100", [100], 64, 0.025, 3e-4),
    ):
        arm, columns = arms[name], stage_columns(arms[name])
        assert (arm.method.name, columns["depths"], columns["epochs"]) == (method, cells, epochs), name
        assert [stage.warmup_epochs for stage in arm.stages] == warmup, name
        assert (arm.batch_size, arm.learning_rate, arm.alpha_learning_rate) == (batch, rate, alpha_rate), name
        assert (arm.channels, arm.momentum, arm.weight_decay, arm.data) == (16, 0.9, 3e-4, "cifar10"), name
    for name in ("mild", "moderate", "aggressive"):
        assert arms[f"snas_{name}"].method == Snas(1.0, 0.03, name)
    assert arms["pc_darts"].method == PartialChannels(k=4, edge_normalization=True)
    assert arms["random_search"].method.candidates == 24
    assert arms["darts_second"].method.finite_difference == 0.01


def test_what_the_command_line_changes_leaves_the_authors_settings_as_they_are():
    arms = paper_arms(data="cifar100", memory_limit=10**10, image_size=32, skip_bad_images=True)
    for name, published in PUBLISHED_SEARCHES.items():
        assert arms[name] == replace(published, data="cifar100", memory_limit=10**10, image_size=32, skip_bad_images=True)


def test_the_smaller_presets_have_every_method_once():
    study = load_study()
    for preset in ("smoke", "laptop"):
        arms = {variant.name: variant.search for variant in study.variants(PRESETS[preset].search)}
        assert list(arms) == list(PUBLISHED_SEARCHES)
        assert [arm.method.name for arm in arms.values()] == [arm.method.name for arm in PUBLISHED_SEARCHES.values()]
        assert all(arm.data == "digits" for arm in arms.values())


def test_records_survive_a_checkpoint(whole):
    for search, states in whole.values():
        saved = torch.load(io.BytesIO(states[-1]), weights_only=True)["records"]
        assert [EpochRecord(**json.loads(record)) for record in saved] == search.records
