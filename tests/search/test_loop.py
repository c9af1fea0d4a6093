"""Every method through the one stage loop: what it leaves behind, and that a killed search continues to the same bits."""

import copy
import io
import json
import signal
import subprocess
import sys
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from images import write_folders
from pdarts_tune.config.methods import PartialChannels, RandomSearch, SecondOrder, Snas
from pdarts_tune.config.remedies import AuxiliarySkip, DropPath, FrozenOperations, PerturbedAlphas, ResourcePenalty
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.config.serialize import ConfigError, config_id, to_dict
from pdarts_tune.data import streaming
from pdarts_tune.networks.build import build_network
from pdarts_tune.pdarts.genotype import softmax
from pdarts_tune.pdarts.progressive_depth import Stage, cosine_rate, with_operations
from pdarts_tune.pdarts.regularization import skip_dropout
from pdarts_tune.pdarts.space import PRIMITIVES
from pdarts_tune.search import diagnostics, loop
from pdarts_tune.search.diagnostics import evaluate, genotype_space, look_every
from pdarts_tune.search.loop import Search
from pdarts_tune.search.records import EpochRecord, alpha_rows, epoch_row, genotype_rows

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


SHORT = SearchConfig(
    stages=(Stage(3, 4, 0.3, epochs=2, warmup_epochs=1), Stage(3, 3, 0.5, epochs=2, warmup_epochs=1)),
    data="digits",
    train_images=60,
    validation_fraction=0.2,
    channels=2,
    batch_size=12,
    alpha_learning_rate=0.01,
)
CANDIDATES = (Stage(3, 8, epochs=1, warmup_epochs=1),)
CONFIGS = {
    "first_order": replace(SHORT, diagnostics_every=1, eigenvalue_every=4),
    "second_order": replace(SHORT, method=SecondOrder()),
    "snas": replace(SHORT, method=Snas(penalty="moderate")),
    "partial_channels": replace(SHORT, method=PartialChannels(2)),
    "random_search": replace(SHORT, method=RandomSearch(4), stages=CANDIDATES),
    "penalty": replace(SHORT, penalty=ResourcePenalty("params", 5.0), space="S3", stages=with_operations(SHORT.stages, (3, 2))),
}


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
    assert untrained._choice().alphas == search.records[0].alphas
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
    assert 0.0 <= resumed._diagnose(resumed._choice().genotype(2), 0.5).inherited_accuracy <= 1.0
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

    note("evaluate", 2.0, 5, loop)
    note("inherited_accuracy", 100.0, 700, diagnostics)
    note("alpha_eigenvalue", 1000.0, 9000, diagnostics)
    for module in (loop, diagnostics):
        monkeypatch.setattr(module, "peak_bytes", lambda _: clock.peak)
        monkeypatch.setattr(module, "reset_peak_bytes", lambda _: setattr(clock, "peak", 1))
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: clock.now, time=lambda: 0.0))
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
    derived = build_network(TINY, genotype_space(genotype), search.stage.cells, 10, 1, seed=1)
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
    monkeypatch.setattr(loop, "evaluate", lambda *_: (1.0, 0.5))  # as if no validation image showed it

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


@pytest.fixture(scope="module")
def whole():
    """For each method a whole search and its state, as saved to a file, after each epoch."""
    searches = {}
    for name, config in CONFIGS.items():
        search, states = Search(config, CPU), []
        for _ in search.epochs():
            file = io.BytesIO()
            torch.save(search.state_dict(), file)
            states.append(file.getvalue())
        searches[name] = search, states
    return searches


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "first_order"])
@pytest.mark.parametrize("epochs_done", [1, 2, 3])
def test_a_resumed_search_of_another_method_gives_the_same_bits(whole, name, epochs_done):
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
    assert (fresh._choice().alphas, fresh._choice().edge_weights) == (first.alphas, first.edge_weights)
    assert second.alphas != first.alphas
    assert name != "partial_channels" or second.edge_weights != first.edge_weights


def test_methods_with_one_seed_see_the_same_images(whole):
    """The weights' batches of the first epoch come from the same draws, whatever the method."""
    states = [torch.load(io.BytesIO(states[0]), weights_only=True)["generators"] for _, states in whole.values()]
    assert all(torch.equal(states[0]["weight batches"], state["weight batches"]) for state in states)


def test_only_methods_with_alpha_images_of_their_own_draw_them(whole):
    before = Search(SHORT, CPU).generators["alpha batches"].get_state()
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
    quiet = list(Search(SHORT, CPU).epochs())
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

    def diagnose(*arguments, **settings):
        return loop.Diagnostics(hessian_eigenvalue=next(values))

    def train(search, both):
        """In place of an epoch of training: alphas go anywhere."""
        for alphas in search.network.arch_parameters():
            alphas.data.copy_(torch.randn(alphas.shape, generator=search.generators["architectures"]))
        return 1.0, 0.5, 24

    monkeypatch.setattr(loop, "diagnose", diagnose)
    monkeypatch.setattr(Search, "_train", train)
    stages = (Stage(3, 8, epochs=13, warmup_epochs=1), Stage(3, 2, epochs=11, warmup_epochs=0))
    config = replace(SHORT, stages=stages, train_images=40, eigenvalue_every=1, early_stop_ratio=1.3)
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
        ({"eigenvalue_every": 1, "method": RandomSearch(2), "stages": CANDIDATES}, "method random_search has no alphas"),
    ],
)
def test_diagnostics_that_the_search_cannot_have_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        replace(SHORT, **values)


def test_records_survive_a_checkpoint(whole):
    for search, states in whole.values():
        saved = torch.load(io.BytesIO(states[-1]), weights_only=True)["records"]
        assert [EpochRecord(**json.loads(record)) for record in saved] == search.records


SCRIPT = """
import hashlib, json, os, signal, sys
from pathlib import Path
import torch
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.config.serialize import from_dict
from pdarts_tune.networks.checkpoint import load_checkpoint, save_checkpoint
from pdarts_tune.search.loop import Search
from pdarts_tune.results.storage import Storage

settings, checkpoint, killed_in = json.loads(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
search = Search(from_dict(SearchConfig, settings), torch.device("cpu"))
saved = load_checkpoint(Storage(checkpoint.parent), checkpoint.name, torch.device("cpu"))
if saved is not None:
    search.load_state_dict(saved)
steps = 0
class Killing(type(search.steps)):
    def train_weights(self, batch, both):
        global steps
        steps += len(search.records) == killed_in
        if steps == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().train_weights(batch, both)
start = search._start_stage
def start_stage(*arguments):
    start(*arguments)
    search.steps.__class__ = Killing
search._start_stage = start_stage
search.steps.__class__ = Killing
for record in search.epochs():
    save_checkpoint(search.state_dict(), Storage(checkpoint.parent), checkpoint.name)
digest = hashlib.sha256()
for name, tensor in sorted(search.network.state_dict().items()):
    digest.update(name.encode() + tensor.numpy().tobytes())
kept = ('stage', 'epoch', 'train_loss', 'validation_loss', 'inherited_accuracy', 'alphas', 'edge_weights')
figures = [[getattr(record, name) for name in kept] for record in search.records]
frozen = search.steps.state_dict().get('frozen', ())
print(len(frozen), *frozen, digest.hexdigest(), hashlib.sha256(json.dumps(figures).encode()).hexdigest(), len(figures))
"""


def run_script(settings, checkpoint, killed_in):
    command = [sys.executable, "-c", SCRIPT, settings, str(checkpoint), str(killed_in)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])


KILLED = CONFIGS | {
    "remedies": replace(
        SHORT,
        stages=tuple(replace(stage, warmup_epochs=0) for stage in SHORT.stages),
        remedies=(FrozenOperations(threshold=0.5, steps=2), PerturbedAlphas(), AuxiliarySkip(), DropPath()),
    )
}


@pytest.mark.slow  # three processes that import torch, and two searches, for each method
@pytest.mark.parametrize(("name", "epoch"), [*((name, 3) for name in KILLED), ("remedies", 1)])
def test_a_search_that_was_killed_in_an_epoch_goes_on_to_the_same_bits(tmp_path, name, epoch):
    settings = json.dumps(to_dict(KILLED[name]))
    whole = run_script(settings, tmp_path / "whole.pt", -1)
    assert whole.returncode == 0, whole.stderr
    killed = run_script(settings, tmp_path / "killed.pt", epoch)
    assert killed.returncode == -signal.SIGKILL
    assert killed.stdout == ""
    continued = run_script(settings, tmp_path / "killed.pt", -1)
    assert continued.returncode == 0, continued.stderr
    assert continued.stdout == whole.stdout
    assert whole.stdout.endswith(" 4\n")
    assert whole.stdout.startswith("0 ") == (name != "remedies")  # operations were frozen
