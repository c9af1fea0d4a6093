"""The process that computes a network: PyTorch's switches, and its memory."""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pdarts_tune.config.execution import Execution

# A GPU's memory in segments that grow has far fewer fragments. PyTorch reads this when CUDA starts; 2.9 ignores the newer name.
if not {"PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"} & os.environ.keys():
    os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"

COMPILER: str | Callable[..., Any] = "inductor"

# A network has up to a dozen shapes of cells. Each is compiled for steps of weights, steps of alphas and evaluation, for the
# smaller last batch, and with and without dropout.
MOST_VERSIONS = 512


@contextmanager
def switched(execution: Execution, device: torch.device, *, benchmark: bool = False) -> Iterator[None]:
    """PyTorch computes on the device as the settings say; the earlier switches come back at the end.

    Deterministic cuBLAS needs an environment variable. It stays set, because the library reads it once.

    Args:
        benchmark: cuDNN times its algorithms for each shape and takes the fastest, unless `deterministic`.
    """
    with ExitStack() as stack:
        if device.type == "cuda":
            _set_tf32(stack, execution.tf32)
            _set(stack, torch.backends.cudnn, "benchmark", benchmark)
        if execution.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            _set(stack, torch.backends.cudnn, "benchmark", False)
            _set(stack, torch.backends.cudnn, "deterministic", True)
            warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
            stack.callback(torch.use_deterministic_algorithms, torch.are_deterministic_algorithms_enabled(), warn_only=warn_only)
            torch.use_deterministic_algorithms(True)
        if execution.compile:
            # Code that generalises over shapes depends on the order of the shapes, so a continued search would run other code
            # than an uninterrupted one. Here each shape has code of its own.
            stack.enter_context(
                torch._dynamo.config.patch(
                    automatic_dynamic_shapes=False,
                    recompile_limit=MOST_VERSIONS,
                    accumulated_recompile_limit=MOST_VERSIONS,
                    fail_on_recompile_limit_hit=True,  # an error in place of silent uncompiled code
                )
            )
        yield


def _set_tf32(stack: ExitStack, on: bool) -> None:
    """Sets PyTorch's older and newer switches alike, since its compiler reads the older ones, which fail where the two disagree."""
    cudnn: Any = torch.backends.cudnn
    matmul = torch.backends.cuda.matmul
    older, newer = (cudnn, matmul), (cudnn.conv, cudnn.rnn, matmul)
    # Setting an older one changes newer ones, so those are set last, here and at the end.
    for switch in newer:
        stack.callback(setattr, switch, "fp32_precision", switch.fp32_precision)
    for switch in older:
        _set(stack, switch, "allow_tf32", on)
    for switch in newer:
        switch.fp32_precision = "tf32" if on else "ieee"


def _set(stack: ExitStack, switch: Any, name: str, value: object) -> None:
    stack.callback(setattr, switch, name, getattr(switch, name))
    setattr(switch, name, value)


def cuda_problem() -> str | None:
    """Why PyTorch can use no GPU, in one line; None if it can."""
    if torch.version.cuda is None:
        return f"PyTorch {torch.__version__} is built without CUDA; install a build with it"
    with warnings.catch_warnings(record=True) as reasons:
        warnings.simplefilter("always")
        if torch.cuda.is_available() and torch.cuda.device_count():
            return None
    why = " ".join(str(reasons[0].message).split()) if reasons else "the driver shows none"
    return f"PyTorch {torch.__version__} is built for CUDA {torch.version.cuda}, and {why}"


def compile_cells(cells: Iterable[nn.Module]) -> None:
    """Compiles the cells of a new stage when they first run, and drops the code of earlier stages."""
    torch._dynamo.reset()
    for cell in cells:
        cell.compile(backend=COMPILER)


def keep_freed_memory() -> None:
    """The C library keeps the memory of freed tensors for the next ones, for the rest of the process.

    By default it returns large blocks to the system, which clears each page at its next use: 7 to 9 % of a search step on a CPU.
    The peak does not change. Only glibc has this switch; elsewhere nothing happens.
    """
    trim_threshold, mmap_threshold = -1, -3  # names of the settings, from malloc.h
    mallopt = _c_function("mallopt")
    if mallopt is not None:
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_threshold, 2**25)


def give_back_freed_memory(device: torch.device) -> None:
    """Returns freed memory: on a CPU to the system, so that it does not count in the next peak; on a GPU to its other processes."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return
    malloc_trim = _c_function("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def _c_function(name: str) -> Callable[..., int] | None:
    """A function of the C library; None where it has none of that name."""
    try:
        function: Callable[..., int] = getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):
        return None
    return function


def reset_peak_bytes(device: torch.device) -> None:
    """Starts a new peak, so that a process that runs several trials measures each of them."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif Path("/proc/self/clear_refs").exists():  # Linux: 5 sets the peak to the present resident set
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: torch.device) -> int:
    """The largest memory since `reset_peak_bytes`, in bytes.

    On CUDA it is PyTorch's allocated memory. On a CPU it is the resident set of this process, libraries included; without /proc it
    counts from the start of the process.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # macOS gives bytes, others kibibytes


# PyTorch's CPU allocator and CUDA's libraries raise a plain RuntimeError.
_GPU_MESSAGES = ("CUDA out of memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error reports a failed allocation, on a device or on the host."""
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or "DefaultCPUAllocator" in str(error) or lacks_gpu_memory(str(error))


def lacks_gpu_memory(error: str) -> bool:
    """Whether the text of an error reports that a GPU's memory ran out, and not the machine's."""
    return any(message in error for message in _GPU_MESSAGES)
