"""Every GPU has work while trials wait, a trial's memory fits its share, and shares fit together."""

import json
import os
import stat
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from pdarts_tune.config.execution import Execution
from pdarts_tune.config.methods import RandomSearch
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.networks.cost import predict_stage_bytes
from pdarts_tune.pdarts.progressive_depth import PDARTS_CIFAR10
from pdarts_tune.study.shares import (
    HEADROOM,
    PROCESS_BYTES,
    SHARES,
    Grants,
    check_gpus_per_trial,
    memory_fraction,
    memory_share,
    multi_process_service,
)

GPU = 80 * 10**9
PLAIN = Execution(cell_evaluation="plain", graph="off")


def of_gpus(count):
    """A cluster with so many GPUs."""
    return Grants([{"GPU": count}], None, GPU)


def fill(shares, gpus):
    """How much of each GPU is taken when Ray gives out these shares: a GPU is full before the next one begins."""
    taken = [0.0] * gpus
    for share in shares:
        for index, used in enumerate(taken):
            if used + share <= 1:
                taken[index] += share
                break
    return taken


@pytest.mark.parametrize("ready", [1, 4, 8, 16, 17, 48, 100])
def test_as_many_gpus_have_work_as_there_are_trials(ready):
    """The paper's searches need 10 to 13 GB: by memory alone 48 of them would sit on four or five of eight GPUs."""
    share = of_gpus(8).share(7 * 10**9, ready)
    assert sum(used > 0 for used in fill([share] * ready, 8)) == min(8, ready)
    assert 48 // 8 == 6
    assert sum(used > 0 for used in fill([memory_share(7 * 10**9, GPU)] * 16, 8)) == 2


@pytest.mark.parametrize(("number", "reserved"), [(0, 18.3e9), (1, 27.6e9), (2, 27.2e9)])
def test_the_headroom_is_what_an_h200_reserved_with_graphs_and_not_much_more(number, reserved):
    """2026-11-26, PyTorch 2.11, segments that grow. Graphs held three copies of a step then: the pool and a short batch of weights
    alone, and the first step of both (test_graphs.py)."""
    stage = PDARTS_CIFAR10[number]
    alone = SearchConfig(
        stages=(replace(stage, warmup_epochs=stage.epochs, skip_dropout=0.0),), method=RandomSearch(2), execution=PLAIN
    )
    weights, both = (predict_stage_bytes(config, stage, 32, 10) for config in (alone, SearchConfig(execution=PLAIN)))
    assert 1 <= HEADROOM * (2 * weights + both) / reserved <= 1.35
    assert (2 * weights + both) / reserved == pytest.approx(0.96, abs=0.01)


def test_a_share_holds_what_its_trial_needs():
    for needed in (10**9, 7 * 10**9, 15 * 10**9, 31 * 10**9, 60 * 10**9):
        share = of_gpus(8).share(needed, 1000)
        assert share in SHARES
        assert HEADROOM * needed + PROCESS_BYTES <= share * GPU
    assert memory_share(70 * 10**9, GPU) == 1.0


def test_shares_of_any_mixture_fill_gpus_without_fragments():
    """Powers of one half, largest first as they come, leave less than the smallest share over."""
    shares = [of_gpus(2).share(needed * 10**9, 100) for needed in (30, 30, 14, 14, 6, 6, 6, 6)]
    assert Counter(shares) == {0.5: 2, 0.25: 2, 0.125: 4}
    assert sum(fill(shares, 2)) == sum(shares) == 2.0


def test_an_evaluation_has_a_gpu_unless_there_are_by_far_more_of_them():
    assert of_gpus(8).share(9 * 10**9, 32, evaluation=True) == 1.0
    assert of_gpus(8).share(9 * 10**9, 33, evaluation=True) == 0.5
    assert of_gpus(8).share(50 * 10**9, 33, evaluation=True) == 1.0


def test_a_trial_that_ran_out_of_memory_gets_a_larger_share():
    shares = [of_gpus(2).share(needed * 10**9, 100, failed=True) for needed in (7, 15, 31, 60)]
    assert shares == [0.25, 0.5, 1.0, 1.0]


@pytest.mark.parametrize("gpus", [0.3, 0.0, -1.0, 1.5, 0.0625])
def test_other_shares_are_refused_in_one_line(gpus):
    with pytest.raises(ConfigError, match=rf"^gpus_per_trial: {gpus} is wrong, it must be 1/8, 1/4, 1/2 .* or a whole number"):
        check_gpus_per_trial(gpus)
    for right in (None, *SHARES, 2.0, 8.0):
        check_gpus_per_trial(right)


def test_the_processes_of_a_gpu_take_no_more_than_its_memory():
    for share in SHARES[:-1]:
        taken = memory_fraction(share, GPU) * GPU + PROCESS_BYTES
        assert round(1 / share) * taken == pytest.approx(GPU)
    assert memory_fraction(1.0, GPU) == 1.0
    assert memory_fraction(0.125, 10**9) == 0.0


@pytest.fixture
def service(tmp_path, monkeypatch):
    """A program in the place of NVIDIA's, which notes how it is called."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_MPS_PIPE_DIRECTORY", raising=False)

    def write(script):
        program = tmp_path / "nvidia-cuda-mps-control"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    write(f'if [ "$1" = -d ]; then echo "start $CUDA_MPS_PIPE_DIRECTORY" >> {tmp_path}/calls; else cat >> {tmp_path}/calls; fi')
    return write


def test_mps_starts_and_stops_with_the_study(service, tmp_path):
    def stop():
        raise KeyError(os.environ["CUDA_MPS_PIPE_DIRECTORY"])

    with pytest.raises(KeyError) as caught, multi_process_service():
        stop()
    (pipes,) = caught.value.args
    assert (tmp_path / "calls").read_text() == f"start {pipes}\nquit\n"
    assert "CUDA_MPS_PIPE_DIRECTORY" not in os.environ


def test_mps_that_is_not_there_or_not_allowed_is_one_line(service, monkeypatch):
    service("echo 'An instance of this daemon is already running' >&2; exit 1")
    with (
        pytest.raises(ConfigError, match=r"^mps: nvidia-cuda-mps-control does not start \(An instance of this"),
        multi_process_service(),
    ):
        pass
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match=r"^mps: nvidia-cuda-mps-control is not there"), multi_process_service():
        pass


@pytest.mark.slow  # three Ray nodes and sixteen processes
def test_eight_trials_have_eight_gpus_and_mixed_shares_all_finish(tmp_path, monkeypatch):
    """On real Ray, two nodes of four GPUs each, which are only declared."""
    from ray import init, nodes, shutdown, tune
    from ray.cluster_utils import Cluster

    from pdarts_tune.study.sweep import tune_request

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def occupy(settings):
        """A trial that notes its GPU and holds it until all that should run at the same time have noted theirs."""
        import ray
        from ray import tune

        spec = settings["trial"]
        folder, place = Path(spec["folder"]), [ray.get_runtime_context().get_node_id(), *ray.get_gpu_ids()]
        (folder / f"{spec['trial_id']}.json").write_text(json.dumps([place, spec["gpus"]]))
        deadline = time.monotonic() + 120
        while len(list(folder.iterdir())) < spec["together"] and time.monotonic() < deadline:
            time.sleep(0.1)
        tune.report({"finished": True})

    def run(name, needs, ready):
        folder = tmp_path / name
        folder.mkdir()
        grants = Grants([node["Resources"] for node in nodes() if node["Alive"]], None, GPU)
        shares = [grants.share(needed, ready) for needed in needs]
        together = min(len(needs), 8)
        trials = [
            {"trial_id": f"{name}{n}", "gpus": share, "folder": str(folder), "together": together} for n, share in enumerate(shares)
        ]
        results = tune.Tuner(
            tune.with_resources(occupy, partial(tune_request, grants)),
            param_space={"trial": tune.grid_search(trials)},
            run_config=tune.RunConfig(name=name, storage_path=str(tmp_path / "ray"), verbose=0),
        ).fit()
        assert not results.errors
        assert len(results) == len(needs)
        return [json.loads(file.read_text()) for file in folder.iterdir()]

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "num_gpus": 0})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=16, num_gpus=4)
        init(cluster.address, log_to_driver=False, logging_level="ERROR")
        alone = run("alone", [7 * 10**9] * 8, ready=8)
        assert len({tuple(place) for place, _ in alone}) == 8
        mixed = run("mixed", [needed * 10**9 for needed in (30, 14, 6, 30, 14, 6, 6, 6)], ready=100)
        assert Counter(share for _, share in mixed) == {0.5: 2, 0.25: 2, 0.125: 4}
    finally:
        shutdown()
        cluster.shutdown()
