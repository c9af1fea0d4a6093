"""What a study needs of this machine, checked: one line each, ok or what to do.

    python -m pdarts_tune.doctor
    python -m pdarts_tune.doctor --preset paper --data cifar10 --results /shared/results --address auto

Run it on the machine that will compute, with the options of the study. It exits with 1 if a study could not run.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pdarts_tune.config.command_line import parse
from pdarts_tune.config.presets import PRESETS
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.config.serialize import absolute_name

if TYPE_CHECKING:
    import torch

OPEN_FILES = 4096  # that Ray may need for tens of trials
SHARED_BYTES = 2**30  # of /dev/shm, in which Ray keeps objects
DISK_BYTES = 2 * 10**9  # for tables, the mirror and checkpoints of small studies; a dry run knows a study's own


@dataclass(frozen=True)
class Arguments:
    """What the study will be given."""

    preset: str = "laptop"
    """Whose stages are tried on each device: smoke, laptop, cifar-small or paper."""
    data: str | None = None
    """Data set, as the study gets it; without it, the preset's."""
    results: str = "results"
    """Folder of results."""
    tracking_uri: str | None = None
    """MLflow server; without it, a file in the results folder."""
    address: str | None = None
    """A running Ray cluster, e.g. auto; without it, the study starts Ray on this machine."""
    json: bool = False
    """Print a JSON list for jobs in place of lines."""


@dataclass(frozen=True)
class Finding:
    """The result of a check. A warning says what to do, but a study runs."""

    check: str
    state: Literal["ok", "warning", "problem"]
    text: str


Findings = Iterator[Finding]


def _compare(check: str, enough: bool, text: str, advice: str, otherwise: Literal["warning", "problem"] = "warning") -> Finding:
    return Finding(check, "ok" if enough else otherwise, text if enough else f"{text}; {advice}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Exits with 0, 1 (a study could not run) or 2 (a wrong command line)."""
    settings = parse(Arguments, arguments, prog="python -m pdarts_tune.doctor", description=__doc__ or "")
    if settings.preset not in PRESETS:
        print(f"error: preset: {settings.preset!r} is unknown, known are {', '.join(PRESETS)}", file=sys.stderr)
        sys.exit(2)
    findings = []
    for check in CHECKS:
        with redirect_stdout(sys.stderr):  # what libraries print is no part of the answer
            new = list(_guarded(check, settings))
        findings += new
        for finding in new if not settings.json else ():
            print(f"{finding.state:8} {finding.check}: {finding.text}", flush=True)
    if settings.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    sys.exit(any(finding.state == "problem" for finding in findings))


def _guarded(check: Callable[[Arguments], Findings], settings: Arguments) -> Findings:
    """The findings of a check; what it raises is a problem in one line."""
    try:
        yield from check(settings)
    except Exception as error:  # a check meets whatever a machine has
        lines = str(error).splitlines() or [type(error).__name__]
        yield Finding(check.__name__.removeprefix("check_").replace("_", " "), "problem", lines[0])


def check_libraries(settings: Arguments) -> Findings:  # noqa: ARG001
    import mlflow
    import ray
    import torch

    versions = f"PyTorch {torch.__version__}, Ray {ray.__version__}, MLflow {mlflow.__version__}"
    yield Finding("libraries", "ok", f"Python {sys.version.split()[0]}, {versions}")


def check_driver(settings: Arguments) -> Findings:  # noqa: ARG001
    """The driver against the CUDA build. A machine without GPUs computes on its CPU."""
    import torch

    from pdarts_tune.networks.runtime import cuda_problem

    driver = _driver_version()
    problem = cuda_problem()
    if problem is None:
        yield Finding("driver", "ok", f"{driver or 'unknown'}, PyTorch is built for CUDA {torch.version.cuda}")
    elif driver is None:
        yield Finding("driver", "ok", "no NVIDIA driver, so trials run on the CPU")
    else:
        yield Finding("driver", "problem", f"{driver}, but {problem}; install a newer driver or a PyTorch for its CUDA")


def _driver_version() -> str | None:
    """As the kernel module says it; None where there is none."""
    file = Path("/proc/driver/nvidia/version")
    words = file.read_text().split() if file.exists() else []
    return next((word for word in words if word[0].isdigit() and "." in word), "unknown") if words else None


def check_devices(settings: Arguments) -> Findings:
    """Real steps of each stage's shape on every GPU, or on one core of the CPU: time, and memory against the prediction."""
    import torch

    from pdarts_tune.networks.runtime import cuda_problem

    if cuda_problem() is None:
        for index in range(torch.cuda.device_count()):
            yield from _try_device(settings, torch.device("cuda", index))
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield from _try_device(settings, torch.device("cpu"))
    torch.set_num_threads(threads)


def _try_device(settings: Arguments, device: torch.device) -> Findings:
    import torch

    from pdarts_tune.data.datasets import check_dataset
    from pdarts_tune.evaluation.job import describe_device
    from pdarts_tune.networks.cost import predict_stage_bytes
    from pdarts_tune.networks.runtime import give_back_freed_memory, is_out_of_memory, reset_peak_bytes
    from pdarts_tune.study.forecast import probe_stage, show_bytes, show_fitting_batch
    from pdarts_tune.study.shares import trials_that_fit

    config = _search(settings)
    info, name = check_dataset(config), f"{device}"
    total = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    yield Finding(name, "ok", describe_device(device) + (f", {show_bytes(total)}" if total else ""))
    for number, stage in enumerate(config.stages, start=1):
        what = f"{name}, stage {number}"
        needed = predict_stage_bytes(config, stage, info.image_size, info.num_classes, info.in_channels, device=device)
        if total and not trials_that_fit(needed, total):
            remedy = show_fitting_batch(config, stage, info, total)
            text = f"takes {show_bytes(needed)} by prediction, the GPU has {show_bytes(total)}; {remedy}"
            yield Finding(what, "problem", text)
            continue
        give_back_freed_memory(device)  # of the stage before
        reset_peak_bytes(device)
        try:
            times = probe_stage(config, stage, info, device)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            yield Finding(what, "problem", f"ran out of memory, {show_bytes(needed)} predicted: {str(error).splitlines()[0]}")
            continue
        reserved = f"reserved {show_bytes(torch.cuda.max_memory_reserved(device))}, " if total else ""
        seconds = f"weights {1000 * times.weights:.0f} ms, weights and alphas {1000 * times.both:.0f} ms a step"
        yield Finding(what, "ok", f"batch {config.batch_size}: {seconds}; {reserved}predicted {show_bytes(needed)}")


def _search(settings: Arguments) -> SearchConfig:
    search = PRESETS[settings.preset].search
    return search if settings.data is None else replace(search, data=absolute_name(settings.data.split(",")[0]))


def check_compiler(settings: Arguments) -> Findings:  # noqa: ARG001
    from pdarts_tune.networks.kernels.build import missing

    reason = missing()
    if reason is None:
        yield Finding("compiler", "ok", "the C kernels for CPUs are compiled")
    else:
        yield Finding("compiler", "warning", f"searches on CPUs take several times longer; {reason}")


def check_shared_memory(settings: Arguments) -> Findings:  # noqa: ARG001
    place = Path("/dev/shm")  # noqa: S108  (nothing is written there)
    if not place.exists():
        yield Finding("shared memory", "ok", "this system has no /dev/shm")
        return
    free = shutil.disk_usage(place).free
    advice = "Ray then uses the disk, which is slow: start the container with --shm-size=4g"
    yield _compare("shared memory", free >= SHARED_BYTES, f"{free / 1e9:.1f} GB free in {place}", advice)


def check_open_files(settings: Arguments) -> Findings:  # noqa: ARG001
    import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    enough = limit == resource.RLIM_INFINITY or limit >= OPEN_FILES
    yield _compare("open files", enough, f"{limit} at a time", f"`ulimit -n {OPEN_FILES}` before a large study")


def check_results(settings: Arguments) -> Findings:
    """Whether the folder can be written, and how much room it has."""
    from pdarts_tune.results.storage import Storage, is_remote

    if is_remote(settings.results):
        storage = Storage(settings.results)
        storage.write(".doctor", b"x")
        storage.remove(".doctor")
        yield Finding("results", "ok", f"{settings.results} can be written")
        return
    folder = Path(settings.results).absolute()
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        yield Finding("results", "problem", f"{place} cannot be written ({error.strerror}); give --results a folder of your own")
        return
    free = shutil.disk_usage(place).free
    advice = f"a study needs about {DISK_BYTES / 1e9:.0f} GB, --dry-run says how much"
    yield _compare("results", free >= DISK_BYTES, f"{free / 1e9:.1f} GB free for {folder}", advice, "problem")


def check_data(settings: Arguments) -> Findings:
    from pdarts_tune.data.datasets import check_dataset

    config = _search(settings)
    info = check_dataset(config)
    shape = f"test images of {info.image_size} pixels, {info.num_classes} classes"
    yield Finding("data", "ok", f"{config.data}: {info.train_images} training and {info.test_images} {shape}")


def check_mlflow(settings: Arguments) -> Findings:
    """Whether a server answers. A file is made by the study itself."""
    if settings.tracking_uri is None:
        from pdarts_tune.study.mlflow_mirror import default_tracking_uri

        yield Finding("mlflow", "ok", f"the study makes {default_tracking_uri(settings.results)}")
        return
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    from mlflow import MlflowClient

    try:
        MlflowClient(settings.tracking_uri).search_experiments(max_results=1)
    except Exception as error:  # MLflow's, requests' and sqlalchemy's
        text = f"no answer from {settings.tracking_uri} ({(str(error).splitlines() or ['no reason given'])[0]:.120})"
        yield Finding("mlflow", "problem", f"{text}; start it, or leave --tracking-uri out")
        return
    yield Finding("mlflow", "ok", f"{settings.tracking_uri} answers")


def check_cluster(settings: Arguments) -> Findings:
    """Connects to the cluster and asks every node with GPUs whether PyTorch can use them."""
    if settings.address is None:
        yield Finding("cluster", "ok", "none asked for; the study starts Ray on this machine")
        return
    from pdarts_tune.study.plan import Arguments as StudyArguments
    from pdarts_tune.study.sweep import open_sweep

    with tempfile.TemporaryDirectory() as folder:
        from pdarts_tune.results.storage import Storage

        with open_sweep(Storage(folder), StudyArguments(address=settings.address), "doctor") as sweep:
            grants = sweep.grants
            cpus, gpus = (sum(node.get(kind, 0) for node in grants.nodes) for kind in ("CPU", "GPU"))
            smallest = f", the smallest of {grants.gpu_bytes / 1e9:.0f} GB" if grants.gpu_bytes else ""
            yield Finding("cluster", "ok", f"{len(grants.nodes)} nodes, {cpus:g} CPUs, {gpus:g} GPUs{smallest}")


CHECKS = (
    check_libraries,
    check_driver,
    check_data,
    check_devices,
    check_compiler,
    check_shared_memory,
    check_open_files,
    check_results,
    check_mlflow,
    check_cluster,
)

if __name__ == "__main__":
    main()
