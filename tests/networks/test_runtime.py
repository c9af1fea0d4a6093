"""How a search is computed: settings reach the cells, switches are put back, and a stopped search continues to the same bits."""

import io
import os
import platform
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.meta_utils import safe_grad

from pdarts_tune import EvalConfig, SearchConfig, Stage
from pdarts_tune.config.execution import Execution
from pdarts_tune.networks import runtime
from pdarts_tune.networks.runtime import peak_bytes, switched
from pdarts_tune.search.loop import Search

CPU = torch.device("cpu")
TINY = SearchConfig(
    stages=(Stage(3, 8, 0.3, epochs=2, warmup_epochs=1),),
    data="digits",
    train_images=60,
    validation_fraction=0.2,
    channels=2,
    batch_size=12,
    alpha_learning_rate=0.01,
)
FEW = replace(TINY, stages=(Stage(3, 3, 0.3, epochs=2, warmup_epochs=1),))  # operations an edge
PLAIN = Execution(cell_evaluation="plain")
ON_CPU = {
    "recompute": Execution(recompute=True),
    "plain": PLAIN,
    "plain, channels-last": replace(PLAIN, channels_last=True),
    "plain, bf16": replace(PLAIN, precision="bf16"),
    "channels-last": Execution(channels_last=True),
    "deterministic": Execution(deterministic=True),
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def same_figures(record):
    """A record without what the clock and the machine put in."""
    clock = {"seconds": 0.0, "diagnostic_seconds": 0.0, "images_per_second": 0.0, "finished": 0.0}
    return replace(record, **clock, peak_bytes=0, diagnostic_peak_bytes=0)


@pytest.mark.parametrize("name", ON_CPU)
def test_a_resumed_search_gives_the_same_bits(name):
    config = replace(FEW, execution=ON_CPU[name])
    whole, file = Search(config, CPU), io.BytesIO()
    epochs = whole.epochs()
    next(epochs)
    torch.save(whole.state_dict(), file)
    next(epochs)
    file.seek(0)
    torch.manual_seed(1)  # a resumed process finds another global state; no draw may depend on it
    resumed = Search(config, CPU)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    list(resumed.epochs())
    assert [same_figures(record) for record in resumed.records] == [same_figures(record) for record in whole.records]
    ours = resumed.network.state_dict()
    for key, tensor in whole.network.state_dict().items():
        assert torch.equal(tensor, ours[key]), key


def first_losses(execution):
    record = next(Search(replace(FEW, execution=execution), CPU).epochs())
    return record.train_loss, record.validation_loss


def test_exact_settings_agree_within_rounding_and_bf16_roughly():
    kernels = first_losses(Execution())
    assert first_losses(ON_CPU["deterministic"]) == kernels
    assert first_losses(ON_CPU["recompute"]) == pytest.approx(kernels, rel=1e-3)
    assert first_losses(ON_CPU["plain"]) == pytest.approx(kernels, rel=1e-3)
    assert first_losses(ON_CPU["plain, channels-last"]) == pytest.approx(kernels, rel=1e-3)
    mixed = first_losses(ON_CPU["plain, bf16"])
    assert mixed != pytest.approx(kernels, rel=1e-4)
    assert mixed == pytest.approx(kernels, rel=0.1)


def test_layout_and_precision_reach_the_cells():
    seen = []

    def note(module, inputs, output):
        seen.append((inputs[0].dtype, inputs[0].is_contiguous(memory_format=torch.channels_last)))

    images = torch.randn(2, 1, 8, 8)
    for execution in (PLAIN, replace(PLAIN, channels_last=True), replace(PLAIN, precision="bf16")):
        network = Search(replace(TINY, execution=execution), CPU).network
        network.cells[1].edges[5]["sep_conv_3x3"].pointwise1.register_forward_hook(note)
        assert network(images).dtype == torch.float32
    assert seen == [(torch.float32, False), (torch.float32, True), (torch.bfloat16, False)]


def test_switches_are_set_while_it_runs_and_put_back():
    switches = {
        "deterministic": torch.are_deterministic_algorithms_enabled,
        "cudnn": lambda: torch.backends.cudnn.deterministic,
        "products": lambda: torch.backends.cuda.matmul.fp32_precision,
        "convolutions": lambda: torch.backends.cudnn.conv.fp32_precision,
        "recurrent": lambda: torch.backends.cudnn.rnn.fp32_precision,
        "benchmark": lambda: torch.backends.cudnn.benchmark,
        # PyTorch's compiler reads these older ones, which fail where they disagree with the newer ones.
        "older, convolutions": lambda: torch.backends.cudnn.allow_tf32,
        "older, products": lambda: torch.backends.cuda.matmul.allow_tf32,
        "older, precision": torch.get_float32_matmul_precision,
    }

    def read():
        return {name: switch() for name, switch in switches.items()}

    cuda = torch.device("cuda")
    before = read()
    with switched(Execution(), cuda):
        assert read() == before | dict.fromkeys(("products", "convolutions", "recurrent"), "ieee") | {"older, convolutions": False}
    with switched(EvalConfig().execution, cuda, benchmark=True):
        assert read()["convolutions"] == "ieee"
        assert read()["benchmark"]
    with switched(replace(PLAIN, tf32=True, deterministic=True), cuda, benchmark=True):
        on = {"older, convolutions": True, "older, products": True, "older, precision": "high", "benchmark": False}
        on |= dict.fromkeys(("products", "convolutions", "recurrent"), "tf32")
        assert read() == {"deterministic": True, "cudnn": True} | on
    assert read() == before
    with pytest.raises(KeyError), switched(Execution(deterministic=True), CPU):
        raise KeyError
    assert read() == before


@pytest.mark.slow  # tracing cells takes seconds each
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # of the tracer's own
def test_compiled_cells_compute_the_same_and_are_compiled_once_a_stage(monkeypatch):
    counter = CompileCounterWithBackend("eager")
    monkeypatch.setattr(runtime, "COMPILER", counter)
    stages = (Stage(3, 2, 0.4, epochs=3, warmup_epochs=1), Stage(3, 2, 0.4, epochs=3, warmup_epochs=1))
    config = replace(TINY, stages=stages, train_images=50, execution=PLAIN, diagnostics_every=1)
    plain = [same_figures(record) for record in Search(config, CPU).epochs()]
    compiled, counts = [], []
    for record in Search(replace(config, execution=replace(PLAIN, compile=True)), CPU).epochs():
        compiled.append(same_figures(record))
        counts.append(counter.frame_count)
    assert compiled == plain
    new = [after - before for before, after in zip([0, *counts], counts, strict=False)]
    assert [count > 0 for count in new] == [True, True, False, True, True, False], new


def test_what_pytorchs_compiler_warns_of_is_no_error_but_our_own_such_warning_is():
    part = torch.ones(1, requires_grad=True) * 2
    safe_grad(part)  # the compiler's look at an input
    with pytest.raises(TypeError):  # later than the warning: str has no source
        torch.jit.script_method(str)  # as in torch.utils.mkldnn, which the compiler imports
    with pytest.raises(UserWarning, match="not a leaf"):
        part.grad  # noqa: B018


@pytest.mark.parametrize("name", [None, "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"])
def test_gpu_memory_is_in_segments_that_grow_unless_the_user_has_set_something_else(name, monkeypatch):
    for known in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
        monkeypatch.setenv(known, "")
        monkeypatch.delenv(known)
    if name:
        monkeypatch.setenv(name, "max_split_size_mb:64")
    runpy.run_path(runtime.__file__)
    settings = {known: value for known, value in os.environ.items() if known.endswith("ALLOC_CONF")}
    assert settings == ({name: "max_split_size_mb:64"} if name else {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"})


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the switch is glibc's")
def test_freed_memory_is_kept_for_the_next_tensors():
    # In a process of its own: the switch is for the rest of a process.
    script = """
import resource, torch
from pdarts_tune.networks.runtime import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(2**20)  # 4 MiB: a thousand pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
freshly = faults()
keep_freed_memory()
faults()
print(freshly, faults())
"""
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    freshly, kept = map(int, said.split())
    assert kept < 100 < freshly


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the switch is glibc's")
def test_the_memory_of_a_stage_that_is_over_does_not_count_for_the_next():
    script = """
import torch
from pdarts_tune.networks.runtime import give_back_freed_memory, keep_freed_memory, peak_bytes, reset_peak_bytes
cpu = torch.device("cpu")
def peak():
    reset_peak_bytes(cpu)
    return peak_bytes(cpu)
keep_freed_memory()
before = peak()
stage = [torch.ones(2**20) for _ in range(60)]  # of 4 MiB: below the size that is asked from the system apart
del stage
kept = peak()
give_back_freed_memory(cpu)
print(kept - before, peak() - before)
"""
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    kept, given_back = map(int, said.split())
    assert given_back < 20 * 2**20 < 200 * 2**20 < kept


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel's own figure is read from Linux's /proc")
def test_peak_memory_is_the_kernels_high_water_mark_in_bytes():
    status = Path("/proc/self/status").read_text()
    kibibytes = int(status.split("VmHWM:")[1].split()[0])
    assert 1024 * kibibytes <= peak_bytes(torch.device("cpu")) < 2**44


@pytest.mark.gpu
def test_peak_memory_on_cuda_is_what_pytorch_allocated():
    device = torch.device("cuda")
    torch.cuda.reset_peak_memory_stats()
    block = torch.ones(2**20, device=device)
    assert peak_bytes(device) >= block.nbytes
