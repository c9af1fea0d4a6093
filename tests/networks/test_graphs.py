"""A training step that is replayed as a graph gives the bits of the step that is run operator by operator.

CPUs have no graphs. A double (`graph_double.py`) records the operators of a step and repeats them on the same memory, as a CUDA
graph does: a rate that were a Python number, or memory that moved, would show.
"""

import io
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from graph_double import GraphDouble
from pdarts_tune import EvalConfig, FirstOrder, PartialChannels, SearchConfig, SecondOrder, Snas, Stage
from pdarts_tune.config.execution import Execution
from pdarts_tune.config.methods import RandomSearch
from pdarts_tune.config.remedies import (
    AuxiliarySkip,
    BetaDecay,
    DropPath,
    FrozenOperations,
    IndependentWeights,
    PerturbedAlphas,
    StopAtSkips,
)
from pdarts_tune.evaluation.training import Evaluation
from pdarts_tune.networks import graphs
from pdarts_tune.networks.graphs import Number, StepGraphs, draw_ones
from pdarts_tune.pdarts.published import PUBLISHED
from pdarts_tune.search.loop import Search

CPU = torch.device("cpu")
PLAIN = Execution(cell_evaluation="plain")  # the double sees PyTorch's operators, and not the C library
SEARCH = SearchConfig(
    # 60 images give weights 24: two batches of 10 and a short one. Dropout falls from epoch to epoch.
    stages=(Stage(3, 3, 0.4, epochs=3, warmup_epochs=1), Stage(3, 2, 0.3, epochs=2, warmup_epochs=1)),
    data="digits",
    train_images=60,
    validation_fraction=0.2,
    channels=2,
    batch_size=10,
    alpha_learning_rate=0.01,
    execution=PLAIN,
)
METHODS = {
    "first order": FirstOrder(),
    "SNAS": Snas(penalty="mild"),
    "PC-DARTS": PartialChannels(2),
}
EVALUATION = EvalConfig(
    data="digits", train_images=34, test_images=20, cells=3, channels=4, epochs=4, batch_size=10, cutout=2, cell_evaluation="plain"
)


@pytest.fixture
def doubles(monkeypatch):
    """The graphs that were made."""
    made = []

    def make(generators, pool):
        made.append(GraphDouble(generators, pool))
        return made[-1]

    def switch(on):
        monkeypatch.setattr(graphs, "GRAPHS", {"cpu": make} if on else {})
        return made

    return switch


def figures(records):
    clock = ("seconds", "diagnostic_seconds", "images_per_second", "finished", "peak_bytes", "diagnostic_peak_bytes")
    return [{name: str(value) for name, value in vars(record).items() if name not in clock} for record in records]  # nan is nan


def same(ours, theirs):
    return all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in ours.state_dict().items())


@pytest.fixture(scope="module")
def eager_searches():
    """Without graphs, by the name of the method."""
    return {name: Search(replace(SEARCH, method=method), CPU) for name, method in METHODS.items()}


@pytest.mark.parametrize("name", METHODS)
def test_a_replayed_search_gives_the_bits_of_an_eager_one(name, doubles, eager_searches):
    """Over three epochs with falling dropout, a short batch and a change of the stage."""
    eager = eager_searches[name]
    list(eager.epochs())
    made = doubles(True)
    whole = Search(replace(SEARCH, method=METHODS[name]), CPU)
    assert whole.steps.graphs.on
    list(whole.epochs())
    # Of each stage: weights alone and both.
    assert len(made) == 4
    assert all(double.replays for double in made[:2])
    assert figures(whole.records) == figures(eager.records)
    assert same(whole.network, eager.network)


def test_a_replayed_search_that_stops_after_each_epoch_gives_the_bits_of_an_eager_one(doubles, eager_searches):
    eager = eager_searches["first order"]
    list(eager.epochs())
    doubles(True)
    resumed = Search(SEARCH, CPU)
    for _ in eager.records:
        next(resumed.epochs())
        saved = torch.load(_file(resumed.state_dict()), weights_only=True)
        resumed = Search(SEARCH, CPU)
        resumed.load_state_dict(saved)
    assert figures(resumed.records) == figures(eager.records)
    assert same(resumed.network, eager.network)


class Memory:
    """What PyTorch reserves: freed memory stays with its stream until it is given back, a graph's stays in the graphs' pool."""

    def __init__(self):
        self.stream, self.kept, self.pool, self.peak = "default", Counter(), 0, 0

    @contextmanager
    def on(self, stream):
        before, self.stream = self.stream, stream
        yield
        self.stream = before

    def graph(self, _, pool, stream, **_options):
        assert stream.number in self.kept, "captured on another stream than it was warmed up on"
        self.kept.clear()
        return self.on(pool)

    def step(self, images):
        if self.stream == "pool":
            self.pool = max(self.pool, len(images))
        else:
            self.kept[self.stream] = max(self.kept[self.stream], len(images))
        self.peak = max(self.peak, self.pool + self.kept.total())
        return (images,)


def test_no_more_than_two_copies_of_a_step_are_held_at_any_time(monkeypatch):
    """On stubs of PyTorch's functions. There were three on an H200: the pool, a short batch's, and the next kind's first step's.

    Nor is a stream made for each graph: cuBLAS would keep a workspace for each.
    """
    memory, streams = Memory(), []
    stubs = {
        "current_device": lambda: 0,
        "Stream": lambda _: streams.append(SimpleNamespace(number=len(streams), wait_stream=str)) or streams[-1],
        "current_stream": lambda: SimpleNamespace(wait_stream=str),
        "stream": lambda stream: memory.on(stream.number),
        "empty_cache": memory.kept.clear,
        "graph_pool_handle": lambda: "pool",
        "graph": memory.graph,
        "CUDAGraph": lambda: SimpleNamespace(replay=lambda: None),
    }
    for name, stub in stubs.items():
        monkeypatch.setattr(torch.cuda, name, stub)
    monkeypatch.setattr(graphs, "GRAPHS", {"cpu": graphs.CudaGraph})
    graphs._side_stream.cache_clear()
    steps = StepGraphs(CPU, 10, [], torch.optim.SGD([torch.zeros(1, requires_grad=True)]), on=True)
    for kind in ("weights", "both"):
        for batch in (10, 10, 10, 9):
            steps.run(kind, memory.step, torch.zeros(batch))
    graphs._side_stream.cache_clear()
    assert (memory.pool, memory.peak, len(streams)) == (10, 20, 1)


def test_a_checkpoint_of_an_eager_search_continues_with_graphs(doubles):
    doubles(False)
    eager = Search(SEARCH, CPU)
    next(eager.epochs())
    saved = torch.load(_file(eager.state_dict()), weights_only=True)
    doubles(True)
    replayed = Search(SEARCH, CPU)
    replayed.load_state_dict(saved)
    next(replayed.epochs())
    next(eager.epochs())
    assert figures(replayed.records) == figures(eager.records)


def test_each_candidate_of_a_random_search_has_a_graph(doubles):
    made = doubles(True)
    list(Search(replace(SEARCH, method=RandomSearch(2), stages=(Stage(3, 8, epochs=1, warmup_epochs=1),)), CPU).epochs())
    assert len(made) == 2


REMEDIES = [
    AuxiliarySkip(),
    BetaDecay(),
    IndependentWeights(),
    PerturbedAlphas(),
    PerturbedAlphas("adversarial", ascents=1),
    FrozenOperations(threshold=0.5, steps=1),
    StopAtSkips(8),
    DropPath(),
]


EAGER = [{"method": SecondOrder()}, *({"remedies": (remedy,)} for remedy in REMEDIES)]


@pytest.mark.parametrize("settings", EAGER, ids=lambda settings: str(*settings.values()))
def test_second_order_and_searches_with_a_remedy_stay_eager(settings, doubles):
    made = doubles(True)
    search = Search(replace(SEARCH, stages=(Stage(3, 3, 0.4, epochs=2, warmup_epochs=0),), **settings), CPU)
    next(search.epochs())
    assert made == []
    assert not isinstance(search.weight_optimizer.param_groups[0]["lr"], torch.Tensor)


def test_a_replayed_evaluation_gives_the_bits_of_an_eager_one(doubles):
    """Over a rising drop path (off in the first epoch, so two graphs), a falling rate, a short batch and a stop."""
    genotype = PUBLISHED["PDARTS_C10"].genotype
    doubles(False)
    eager = Evaluation(genotype, EVALUATION, CPU)
    list(eager.epochs())
    made = doubles(True)
    whole = Evaluation(genotype, EVALUATION, CPU)
    epochs = whole.epochs()
    next(epochs)
    next(epochs)
    saved = torch.load(_file(whole.state_dict()), weights_only=True)
    list(epochs)
    resumed = Evaluation(genotype, EVALUATION, CPU)
    resumed.load_state_dict(saved)
    list(resumed.epochs())
    assert len(made) == 3
    assert all(double.replays > 1 for double in made)
    for replayed in (whole, resumed):
        assert figures(replayed.records) == figures(eager.records)
        assert same(replayed.network, eager.network)
    assert whole.test().correct == eager.test().correct


def _file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


def one_stage(search, epoch):
    """The search's steps at an epoch's rates."""
    search.network.train()
    search.network.set_skip_dropout(0.4 - 0.1 * epoch)
    search.steps.start_epoch(epoch)
    graphs.set_rate(search.weight_optimizer, 0.01 / (1 + epoch))
    return search.steps


def step_graphs():
    return StepGraphs(CPU, 2, (), torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.1), on=True)


def batches(search):
    return next(search.weight_batches.epoch(torch.Generator())), next(search.alpha_batches.epoch(torch.Generator()))


@pytest.mark.parametrize("name", METHODS)
def test_nothing_that_changes_is_part_of_a_graph(name, doubles):
    """The second step's operators, Python numbers and shapes are those of a step at other rates, images and random numbers."""
    signatures = []
    for epoch in (0, 2):
        made = doubles(True)
        search = Search(replace(SEARCH, method=METHODS[name]), CPU)
        for _ in range(2):
            weights, alphas = batches(search)
            one_stage(search, epoch).train(weights, alphas if search.steps.trains_alphas_apart else None, True)
        signatures.append([line for line in made[-1].signature() if "Generator" not in str(line)])
    assert signatures[0] == signatures[1]
    assert len(signatures[0]) > 1000


def test_images_weights_gradients_and_momenta_stay_in_their_memory(doubles):
    doubles(True)
    search = Search(SEARCH, CPU)
    weights, alphas = batches(search)

    def places():
        optimizers = search.weight_optimizer, search.alpha_optimizer
        tensors = [*search.network.parameters(), *search.network.buffers()]
        tensors += [parameter.grad for parameter in search.network.parameters()]
        tensors += [value for optimizer in optimizers for state in optimizer.state.values() for value in state.values()]
        tensors += [group["lr"] for group in search.weight_optimizer.param_groups]
        return [tensor.data_ptr() for tensor in tensors if tensor is not None]

    one_stage(search, 0).train(weights, alphas, True)
    one_stage(search, 0).train(weights, alphas, True)
    before = places()
    results = [result.data_ptr() for result in one_stage(search, 1).train(weights, alphas, True)]
    assert [result.data_ptr() for result in one_stage(search, 2).train(alphas, weights, True)] == results
    assert places() == before


def test_a_replay_is_one_call_from_the_host(doubles, monkeypatch):
    """No loop over parameters: Python runs neither the step nor an optimizer."""
    doubles(True)
    search = Search(SEARCH, CPU)
    weights, alphas = batches(search)
    for _ in range(2):
        search.steps.train(weights, alphas, True)
    monkeypatch.setattr(search.network, "forward", None)
    monkeypatch.setattr(search.steps, "train_weights", None)
    monkeypatch.setattr(search.weight_optimizer, "step", None)
    search.steps.train(weights, alphas, True)


def test_a_step_that_reads_a_number_from_the_device_is_refused(doubles):
    doubles(True)
    steps = step_graphs()
    steps.run("kind", lambda x: (x * x.sum().item(),), torch.ones(2))
    with pytest.raises(RuntimeError, match="reads a number"):
        steps.run("kind", lambda x: (x * x.sum().item(),), torch.ones(2))


def test_a_rate_that_is_a_python_number_would_show_in_a_replay(doubles):
    """The double must be able to fail: it repeats the captured number, as a CUDA graph does."""
    doubles(True)
    for rate, expected in ((Number(1.0), 3.0), (1.0, 1.0)):
        steps = step_graphs()
        for value in (1.0, 1.0, 3.0):
            if isinstance(rate, Number):
                rate.set(value)
            else:
                rate = value
            (result,) = steps.run("kind", lambda x, r=rate: (x * (r.on(CPU) if isinstance(r, Number) else r),), torch.ones(2))
        assert result[0] == expected


def test_masks_are_those_that_pytorch_draws():
    for share in (0.3, 0.7777777):
        ours = draw_ones(torch.empty(1000, dtype=torch.bool), Number(share).on(CPU), torch.Generator().manual_seed(5))
        theirs = torch.empty(1000, dtype=torch.bool).bernoulli_(share, generator=torch.Generator().manual_seed(5))
        assert torch.equal(ours, theirs)
