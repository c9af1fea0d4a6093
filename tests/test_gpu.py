"""What only a GPU can show: `make gpu-test` runs this file and the other tests marked `gpu`. A failure says what is wrong there.

On a machine without a GPU most of them run on the CPU all the same, which shows that the tests themselves hold.
"""

import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import main as measure
from pdarts_tune import PDARTS_CIFAR10, PUBLISHED, EvalConfig, FirstOrder, PartialChannels, SearchConfig, SecondOrder, Snas, Stage
from pdarts_tune.config.evaluation import RECIPES
from pdarts_tune.config.execution import Execution
from pdarts_tune.evaluation.training import Evaluation
from pdarts_tune.networks.build import build_network, build_optimizers
from pdarts_tune.networks.cost import even_space, predict_stage_bytes
from pdarts_tune.networks.evaluation_network import EvalNetwork, NetworkConfig
from pdarts_tune.networks.graphs import set_rate
from pdarts_tune.networks.runtime import cuda_problem, give_back_freed_memory, reset_peak_bytes, switched
from pdarts_tune.results.tables import read_table
from pdarts_tune.search.loop import Search
from pdarts_tune.search.steps import build_steps
from pdarts_tune.study.shares import HEADROOM, PROCESS_BYTES, memory_fraction

pytestmark = pytest.mark.gpu
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
needs_cuda = pytest.mark.skipif(not CUDA, reason="needs a GPU")
ROOT = Path(__file__).parents[1]
CELL = PUBLISHED["PDARTS_C10"].genotype
METHODS = {"first order": FirstOrder(), "second order": SecondOrder(), "SNAS": Snas(penalty="mild"), "PC-DARTS": PartialChannels(4)}
PLAIN = Execution(cell_evaluation="plain")
TINY = SearchConfig(
    stages=(Stage(3, 3, 0.4, epochs=3, warmup_epochs=1), Stage(4, 2, 0.3, epochs=2, warmup_epochs=1)),
    data="digits", train_images=60, validation_fraction=0.2, channels=4, batch_size=10, execution=PLAIN,
)  # fmt: skip
EVALUATION = EvalConfig(
    data="digits", train_images=34, test_images=20, cells=3, channels=4, epochs=4, batch_size=10, cutout=2, cell_evaluation="plain"
)


def make_steps(config, stage, device=DEVICE, dtype=torch.float32):
    """The steps of a stage, and a batch of noise that is the same on every device."""
    network = build_network(config, even_space(stage.operations), stage.cells, 10, 3, seed=0).to(device, dtype).train()
    network.dropout_generator = torch.Generator(device).manual_seed(0)
    network.set_skip_dropout(stage.skip_dropout)
    optimizers = build_optimizers(config, network)
    steps = build_steps(config, stage, network, optimizers, 32, torch.Generator(device).manual_seed(0))
    noise = torch.Generator().manual_seed(0)
    images = torch.randn(config.batch_size, 3, 32, 32, generator=noise, dtype=torch.float64).to(device, dtype)
    return steps, (images, torch.randint(10, (config.batch_size,), generator=noise).to(device))


def test_there_is_a_gpu_that_pytorch_can_use():
    assert cuda_problem() is None, cuda_problem()


@pytest.mark.parametrize("graph", ["auto", "off"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_no_step_of_a_search_waits_for_the_host(number, method, graph):
    """Its third step: the first makes the optimizers' state, the second may be a capture."""
    config = SearchConfig(batch_size=8, method=METHODS[method], execution=replace(PLAIN, graph=graph))
    steps, batch = make_steps(config, PDARTS_CIFAR10[number])
    alphas = batch if steps.trains_alphas_apart else None
    for _ in range(2):
        steps.train(batch, alphas, True)
    before = torch.cuda.get_sync_debug_mode() if CUDA else None
    try:
        if CUDA:
            torch.cuda.set_sync_debug_mode("error")
        loss, _ = steps.train(batch, alphas, True)
    finally:
        if CUDA:
            torch.cuda.set_sync_debug_mode(before)
    assert loss.isfinite()


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_step_computes_what_a_cpu_does(number):
    """In float64, where rounding is far below a wrong operator; without dropout, whose masks differ between devices."""
    stage = replace(PDARTS_CIFAR10[number], skip_dropout=0.0)
    config = SearchConfig(batch_size=4, channels=8, execution=replace(PLAIN, graph="off"))
    results = []
    for device in (DEVICE, torch.device("cpu")):
        steps, batch = make_steps(config, stage, device, torch.float64)
        loss, logits = steps.train(batch, batch, True)
        results.append([loss.cpu(), logits.cpu(), *(alphas.detach().cpu() for alphas in steps.alphas)])
    for here, there in zip(*results, strict=True):
        torch.testing.assert_close(here, there, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("method", ["first order", "SNAS", "PC-DARTS"])
def test_fifty_replayed_steps_across_rate_changes_are_the_eager_ones(method):
    ends = []
    for graph in ("auto", "off"):
        execution = replace(PLAIN, graph=graph, deterministic=True)
        config = SearchConfig(batch_size=8, channels=4, method=METHODS[method], execution=execution)
        with switched(execution, DEVICE):
            steps, batch = make_steps(config, Stage(3, 3, 0.4))
            for step in range(50):
                if step % 10 == 0:
                    set_rate(steps.weight_optimizer, 0.025 / (1 + step))
                    steps.network.set_skip_dropout(0.4 / (1 + step))
                    steps.start_epoch(step // 2)
                steps.train(batch, batch if steps.trains_alphas_apart else None, True)
        ends.append({name: tensor.cpu() for name, tensor in steps.network.state_dict().items()})
    for name, tensor in ends[0].items():
        torch.testing.assert_close(tensor, ends[1][name], rtol=1e-3, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def continued(make, epochs):
    """The state at the end of a run that is stopped after each epoch."""
    run = make()
    for _ in range(epochs):
        next(run.epochs())
        file = io.BytesIO()
        torch.save(run.state_dict(), file)
        file.seek(0)
        run = make()
        run.load_state_dict(torch.load(file, weights_only=True))
    return run.network.state_dict()


def test_deterministic_searches_repeat_and_continue_to_the_same_bits():
    """As graphs: captured anew after each stop."""
    config = replace(TINY, execution=replace(PLAIN, deterministic=True))
    whole = [Search(config, DEVICE) for _ in range(2)]
    for search in whole:
        list(search.epochs())
    stopped = continued(lambda: Search(config, DEVICE), len(whole[0].records))
    for name, tensor in whole[0].network.state_dict().items():
        assert torch.equal(tensor, whole[1].network.state_dict()[name]), f"not repeated: {name}"
        assert torch.equal(tensor, stopped[name]), f"not continued: {name}"


def test_an_evaluation_continues_within_rounding():
    whole = Evaluation(CELL, EVALUATION, DEVICE)
    losses = [record.train_loss for record in whole.epochs()]
    stopped = Evaluation(CELL, EVALUATION, DEVICE)
    next(stopped.epochs())
    again = Evaluation(CELL, EVALUATION, DEVICE)
    again.load_state_dict(stopped.state_dict())
    assert [record.train_loss for record in again.epochs()] == pytest.approx(losses[1:], rel=0.02)
    assert whole.test().loss > 0


@needs_cuda
@pytest.mark.parametrize("graph", ["auto", "off"])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_stage_takes_no_more_memory_than_packing_counts_on(number, graph):
    config, stage = SearchConfig(execution=replace(PLAIN, graph=graph)), PDARTS_CIFAR10[number]
    give_back_freed_memory(DEVICE)
    reset_peak_bytes(DEVICE)
    steps, batch = make_steps(config, stage)
    short = tuple(part[: config.batch_size - 1] for part in batch)
    for both in (False, True):
        for part in (batch, batch, batch, short):
            steps.train(part, part if both else None, both)
    torch.cuda.synchronize()
    predicted = predict_stage_bytes(config, stage, 32, 10, space=even_space(stage.operations), device=DEVICE)
    reserved = torch.cuda.max_memory_reserved(DEVICE)
    assert reserved <= HEADROOM * predicted, f"reserved {reserved:,}, predicted {predicted:,}"


PACKED = """
import sys, torch
share, hungry = float(sys.argv[1]), sys.argv[2] == "hungry"
torch.cuda.set_per_process_memory_fraction(share)
block = torch.ones(2**28 // 4, device="cuda")
if hungry:
    try:
        more = [torch.ones(2**28 // 4, device="cuda") for _ in range(10_000)]
    except torch.OutOfMemoryError:
        sys.exit(7)
for _ in range(200):
    block = (block * 1.0001).clamp(0, 10)
torch.cuda.synchronize()
"""


@needs_cuda
def test_packed_trials_finish_and_one_that_runs_out_of_memory_spares_its_neighbours():
    total = torch.cuda.get_device_properties(0).total_memory
    part = memory_fraction(0.25, total)
    processes = [
        subprocess.Popen([sys.executable, "-c", PACKED, str(part), kind]) for kind in ("modest", "hungry", "modest", "modest")
    ]
    assert [process.wait(timeout=300) for process in processes] == [0, 7, 0, 0]
    assert 0.25 * total > PROCESS_BYTES, "a quarter of this card holds not even a process"


def test_the_bf16_recipes_cells_compile_without_breaks():
    recipe = RECIPES["cifar-bf16"]
    shape = NetworkConfig(8, 3, 10, 16, "cifar")
    network = EvalNetwork(CELL, shape, auxiliary=False).to(DEVICE, memory_format=torch.channels_last).train()
    network.set_drop_path(0.2)
    images = torch.randn(4, 3, 16, 16, device=DEVICE).contiguous(memory_format=torch.channels_last)
    assert recipe.compile
    assert recipe.channels_last
    with switched(recipe.execution, DEVICE), torch.autocast(DEVICE.type, torch.bfloat16):
        states = network.stem(images)
        factors = network._drop_path_factors(images)
        explained = torch._dynamo.explain(network.cells[0])(states, states, factors[0])
    assert explained.graph_break_count == 0, explained.break_reasons


@needs_cuda
def test_the_bf16_recipe_trains_as_a_graph():
    config = replace(
        RECIPES["cifar-bf16"],
        data="digits",
        train_images=40,
        test_images=20,
        cells=3,
        channels=4,
        epochs=4,
        batch_size=10,
        cutout=2,
    )
    evaluation = Evaluation(CELL, config, DEVICE)
    assert all(torch.isfinite(torch.tensor(record.train_loss)) for record in evaluation.epochs())
    assert evaluation.graphs.on


@needs_cuda
def test_a_checkpoint_of_a_cpu_is_refused_in_one_line():
    saved = Search(TINY, torch.device("cpu")).state_dict()
    with pytest.raises(ValueError, match="made on another kind of device"):
        Search(TINY, DEVICE).load_state_dict(saved)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_train_the_network_that_one_trains(tmp_path):
    losses = []
    for devices in (1, 2):
        arguments = ["--genotype", "PDARTS_C10", "--data", "digits", "--recipe", "cifar-short", "--epochs", "2", "--cells", "3"]
        arguments += ["--cutout", "2", "--devices", str(devices), "--results", str(tmp_path / str(devices))]
        subprocess.run([sys.executable, "-m", "pdarts_tune.evaluation", *arguments], check=True, cwd=ROOT)
        losses += read_table(tmp_path / str(devices) / "trainings", "evaluations").loss.tolist()
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_the_ways_of_computing_are_measured(tmp_path):
    sizes = [] if CUDA else ["--channels", "4", "--batch", "3", "--size", "8", "--cells", "3"]
    variants = ["plain", "graph", "recompute", *(["compile", "compile, graph"] if CUDA else [])]
    table = measure([*sizes, "--variants", *variants, "--csv", str(tmp_path / "gpu.csv")])
    assert len(table) == 6 * len(variants) - 3
    if CUDA:
        times = table.set_index(["network", "variant"]).both_ms
        slower = [name for name in ("stage 1", "stage 2", "stage 3") if times[name, "graph"] > times[name, "plain"]]
        assert not slower, f"graphs are slower than single operators in {slower}:\n{table}"


@needs_cuda
def test_a_whole_study_runs_on_the_gpu_and_its_rows_say_so(tmp_path):
    command = [sys.executable, "studies/depth_gap.py", "--preset", "smoke", "--seeds", "1", "--results", str(tmp_path)]
    subprocess.run(command, check=True, cwd=ROOT)
    for table in ("trials", "evaluations"):
        rows = read_table(tmp_path / "depth_gap", table)
        trained = rows[rows.seconds > 0]
        assert set(trained.device) == {torch.cuda.get_device_name()}
        assert trained.graph.all()
