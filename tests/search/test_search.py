import copy
import io
import json
import warnings
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch

from images import write_folders
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.config.serialize import config_id
from pdarts_tune.data import streaming
from pdarts_tune.networks.build import build_network
from pdarts_tune.pdarts.genotype import softmax
from pdarts_tune.pdarts.progressive_depth import Stage, cosine_rate
from pdarts_tune.pdarts.regularization import skip_dropout
from pdarts_tune.pdarts.space import PRIMITIVES
from pdarts_tune.search import diagnostics
from pdarts_tune.search import loop as search_module
from pdarts_tune.search.diagnostics import evaluate, only
from pdarts_tune.search.loop import Search

CPU = torch.device("cpu")
TINY = SearchConfig(
    stages=(
        Stage(3, 8, 0.1, epochs=2, warmup_epochs=1),
        Stage(3, 5, 0.4, epochs=2, warmup_epochs=1),
        Stage(4, 3, 0.7, epochs=2, warmup_epochs=1),
    ),
    data="digits",
    train_images=120,
    validation_fraction=0.2,
    channels=2,
    batch_size=24,
    alpha_learning_rate=0.01,
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def uninterrupted():
    """A whole search, and its state as saved to a file after each epoch."""
    search = Search(TINY, CPU)
    states = []
    for _ in search.epochs():
        file = io.BytesIO()
        torch.save(search.state_dict(), file)
        states.append(file.getvalue())
    return search, states


def same_figures(record):
    """A record without what the clock and the machine put in."""
    clock = {"seconds": 0.0, "diagnostic_seconds": 0.0, "images_per_second": 0.0, "finished": 0.0}
    return replace(record, **clock, peak_bytes=0, diagnostic_peak_bytes=0)


def test_a_search_runs_its_stages_and_keeps_fewer_operations_in_each(uninterrupted):
    search, _ = uninterrupted
    assert [(r.stage, r.epoch, r.phase) for r in search.records] == [
        (stage, epoch, "both" if epoch else "weights") for stage in (1, 2, 3) for epoch in (0, 1)
    ]
    for record in search.records:
        stage = TINY.stages[record.stage - 1]
        for cell in ("normal", "reduce"):
            assert [len(edge) for edge in record.alphas[cell]] == [stage.operations] * 14
            for edge, probabilities in zip(record.alphas[cell], record.probabilities[cell], strict=True):
                assert sum(probabilities.values()) == pytest.approx(1.0, abs=1e-9)
                assert probabilities == pytest.approx(softmax(edge), rel=1e-6)
        assert record.learning_rate == cosine_rate(0.025, record.epoch, 2)
        assert record.skip_dropout == skip_dropout(stage, record.epoch)
        assert 0.0 <= record.validation_accuracy <= 1.0
        assert (record.inherited_accuracy is None) == (record.epoch == 0)


def test_alphas_are_frozen_until_the_warm_up_is_over(uninterrupted):
    search, _ = uninterrupted
    untrained = Search(TINY, CPU)
    assert list(untrained._alphas_by_name()) == [search.records[0].alphas["normal"], search.records[0].alphas["reduce"]]
    assert search.records[1].alphas != search.records[0].alphas


def test_each_stage_keeps_the_most_probable_operations_of_the_one_before(uninterrupted):
    search, _ = uninterrupted
    for before, after in ((1, 2), (3, 4)):
        for cell in ("normal", "reduce"):
            pairs = zip(search.records[before].probabilities[cell], search.records[after].probabilities[cell], strict=True)
            for edge, kept in pairs:
                ranked = sorted(edge, key=lambda name, edge=edge: (edge[name], PRIMITIVES.index(name)))
                assert set(kept) == set(ranked[-len(kept) :])


@pytest.mark.parametrize("epochs_done", range(1, 7))
def test_a_resumed_search_gives_the_same_bits_as_an_uninterrupted_one(uninterrupted, epochs_done):
    """Epochs 2 and 4 are stage boundaries, 6 is the end."""
    whole, states = uninterrupted
    torch.manual_seed(epochs_done)  # a resumed process finds another global state; no draw may depend on it
    resumed = Search(TINY, CPU)
    resumed.load_state_dict(torch.load(io.BytesIO(states[epochs_done - 1]), weights_only=True))
    remaining = list(resumed.epochs())
    assert len(remaining) == 6 - epochs_done
    assert [same_figures(record) for record in resumed.records] == [same_figures(record) for record in whole.records]
    ours = resumed.network.state_dict()
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(tensor, ours[name]), name


def test_another_seed_searches_differently_and_the_same_seed_alike(uninterrupted):
    whole, _ = uninterrupted
    again = next(Search(TINY, CPU).epochs())
    other = next(Search(replace(TINY, seed=1), CPU).epochs())
    assert same_figures(again) == same_figures(whole.records[0])
    assert other.train_loss != again.train_loss


def test_depth_changes_neither_the_batches_nor_their_augmentation():
    """Variants with one seed are compared as pairs, so they must see the same images in the same order."""

    def seen(config):
        search = Search(config, CPU)
        next(search.epochs())
        return search.generators["weight batches"].get_state()

    deeper = replace(TINY, stages=(replace(TINY.stages[0], cells=5, warmup_epochs=0), *TINY.stages[1:]))
    assert torch.equal(seen(TINY), seen(deeper))


def test_a_state_of_another_configuration_is_refused(uninterrupted):
    _, states = uninterrupted
    other = Search(replace(TINY, seed=3), CPU)
    with pytest.raises(ValueError, match=f"is of configuration {config_id(TINY)}"):
        other.load_state_dict(torch.load(io.BytesIO(states[0]), weights_only=True))


def test_looking_leaves_the_network_and_the_generators_as_they_were(uninterrupted):
    _, states = uninterrupted
    resumed = Search(TINY, CPU)
    resumed.load_state_dict(torch.load(io.BytesIO(states[4]), weights_only=True))
    before = copy.deepcopy(resumed.network.state_dict())
    generators = {purpose: generator.get_state() for purpose, generator in resumed.generators.items()}
    accuracy = evaluate(resumed.network, resumed.validation_batches)
    resumed.epoch = resumed.stage.epochs - 1
    found = resumed._examine(resumed.records[-1], 0.5)
    assert 0.0 <= found.inherited_accuracy <= 1.0
    assert all(torch.equal(before[name], tensor) for name, tensor in resumed.network.state_dict().items())
    assert all(torch.equal(state, resumed.generators[purpose].get_state()) for purpose, state in generators.items())
    assert evaluate(resumed.network, resumed.validation_batches) == accuracy


def test_seconds_and_peak_of_an_epoch_are_of_training_alone(monkeypatch):
    """A clock that the diagnostics move on by 100 s, and a device whose peak they raise: both have columns of their own."""
    clock = SimpleNamespace(now=0.0, peak=0)

    def note(name, seconds, peak, module):
        function = getattr(module, name)

        def called(*arguments, **named):
            clock.now, clock.peak = clock.now + seconds, max(clock.peak, peak)
            return function(*arguments, **named)

        monkeypatch.setattr(module, name, called)

    note("evaluate", 2.0, 5, search_module)
    note("inherited_accuracy", 100.0, 700, diagnostics)
    note("alpha_eigenvalue", 1000.0, 9000, diagnostics)
    for module in (search_module, diagnostics):
        monkeypatch.setattr(module, "peak_bytes", lambda _: clock.peak)
        monkeypatch.setattr(module, "reset_peak_bytes", lambda _: setattr(clock, "peak", 1))
    monkeypatch.setattr(search_module, "time", SimpleNamespace(perf_counter=lambda: clock.now, time=lambda: 0.0))
    config = replace(TINY, stages=(Stage(3, 3, epochs=4, warmup_epochs=0),), diagnostics_every=2, eigenvalue_every=4)
    note("_train", 1.0, 4, Search)
    search = Search(config, torch.device("cpu"))
    list(search.epochs())
    assert [record.seconds for record in search.records] == [3.0] * 4
    assert [record.peak_bytes for record in search.records] == [5] * 4
    assert [record.diagnostic_seconds for record in search.records] == [0.0, 100.0, 0.0, 1100.0]
    assert [record.diagnostic_peak_bytes for record in search.records] == [None, 700, None, 9000]


def test_a_search_that_an_older_release_began_continues_with_seconds_of_training_alone(uninterrupted):
    search = uninterrupted[0]
    state = search.state_dict()
    old = [
        {name: value for name, value in asdict(record).items() if name != "diagnostic_peak_bytes"}
        | {"seconds": record.seconds + record.diagnostic_seconds}
        for record in search.records
    ]
    resumed = Search(search.config, torch.device("cpu"))
    resumed.load_state_dict(state | {"records": [json.dumps(record) for record in old]})
    assert [record.seconds for record in resumed.records] == pytest.approx([record.seconds for record in search.records])
    assert {record.diagnostic_peak_bytes for record in resumed.records} == {None}


def test_the_derived_network_computes_what_the_search_network_does_with_one_hot_mixing(uninterrupted):
    """In training mode, where both norms see the batch: the operations that were left out had weight 0."""
    search, _ = uninterrupted
    genotype = search.records[-1].genotype(max_skips=2)
    derived = build_network(TINY, only(genotype), search.stage.cells, 10, 1, seed=1)
    weights = search.network.state_dict()
    derived.load_state_dict({name: weights[name] for name in derived.state_dict() if "alphas" not in name}, strict=False)
    images, _ = next(search.validation_batches.in_order())
    networks = search.network.train(), derived.train()
    search.network.set_skip_dropout(0.0)
    with torch.no_grad():
        mixed, alone = (network(images, network.one_hot_mixing(genotype)) for network in networks)
    assert torch.allclose(mixed, alone, atol=1e-4)


def test_a_loss_that_is_not_finite_stops_the_search_with_its_place():
    search = Search(replace(TINY, learning_rate=1e30), CPU)
    with pytest.raises(FloatingPointError, match=r"stage 1, epoch [01]: training loss is (nan|inf)"):
        list(search.epochs())


@pytest.mark.parametrize("name", ["classifier.weight", "alphas_reduce"])
def test_a_search_whose_last_step_leaves_weights_that_are_not_finite_ends_in_an_error(monkeypatch, name):
    search = Search(TINY, CPU)
    monkeypatch.setattr(search_module, "evaluate", lambda *_: (1.0, 0.5))  # as if no validation image showed it

    def train_badly(_):
        search.network.state_dict()[name].view(-1)[-1] = float("nan")
        return 1.0, 0.5, 24

    monkeypatch.setattr(search, "_train", train_badly)
    with pytest.raises(FloatingPointError, match=f"stage 1, epoch 0: {name} is not finite after the last step"):
        list(search.epochs())


def test_a_derived_cell_whose_loss_is_not_finite_has_no_accuracy(uninterrupted, monkeypatch):
    search, _ = copy.deepcopy(uninterrupted)
    monkeypatch.setattr(diagnostics, "evaluate", lambda *_: (float("nan"), 0.1))
    search.epoch = 1  # a stage's last is always looked at
    with pytest.raises(FloatingPointError, match="the validation loss of the derived cell in the search network's weights is nan"):
        search._run_epoch()


def test_a_search_streams_larger_images_at_its_resolution_and_counts_those_it_leaves_out(tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "MAX_WORKERS", 0)
    name = write_folders(tmp_path / "set", train=40, size=20)
    (tmp_path / "set" / "train" / "ant" / "004.png").write_bytes(b"not an image")
    config = replace(TINY, data=name, train_images=None, image_size=8, skip_bad_images=True, batch_size=8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one for each time that the bad image is come upon
        search = Search(config, CPU)
        shapes = {tuple(images.shape[1:]) for images, _ in search.alpha_batches.epoch(torch.Generator().manual_seed(0))}
        assert shapes == {(3, 8, 8)}
        epochs = search.epochs()
        next(epochs)
        next(epochs)  # the first that trains alphas
        (line,) = search.dataset.left_out
        again = Search(config, CPU)
        again.load_state_dict(search.state_dict())
        assert same_figures(next(again.epochs())) == same_figures(next(epochs))
    assert "ant/004.png" in line
    assert again.dataset.left_out == {line}
