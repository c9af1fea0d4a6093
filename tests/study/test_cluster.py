"""The files of cluster/: against Ray's own checks, and the SLURM script with a SLURM that is not there."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"


def test_ray_accepts_the_cluster_launchers_configuration():
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((CLUSTER / "aws.yaml").read_text())
    validate_config(prepare_config(config))
    assert config["available_node_types"]["head"]["resources"]["CPU"] == 0, "a trial must not run beside the driver"
    assert any(target.endswith("/.ray/auth_token") for target in config["file_mounts"])


def test_the_kuberay_job_mounts_and_refers_only_to_what_it_declares():
    job = yaml.safe_load((CLUSTER / "kuberay.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    locked = re.search(r"^ray==(.+)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert locked is not None
    assert cluster["rayVersion"] == locked[1]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    (worker,) = cluster["workerGroupSpecs"]
    assert worker["minReplicas"] <= worker["replicas"] <= worker["maxReplicas"]
    for group in (cluster["headGroupSpec"], worker):
        pod = group["template"]["spec"]
        names = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"] + pod["initContainers"]:
            assert container["image"]
            assert {mount["name"] for mount in container["volumeMounts"]} <= names
    script = job["spec"]["entrypoint"].split()[1]
    assert (ROOT / script.removeprefix("/pdarts_tune/")).exists()


SRUN = """#!{python}
# Runs the command once, in place of once on every node.
import os, sys
command = [word for word in sys.argv[1:]]
while command[0].startswith("--"):
    command.pop(0)
os.execvp(command[0], command)
"""
SCONTROL = """#!/bin/sh
echo "scontrol $*" >>"$LOG"
if [ "$1" = show ]; then echo first; echo second; fi
"""
# On a drained node `ray start --block` waits for ever, until it is killed.
PKILL = """#!/bin/sh
echo "pkill $*" >>"$LOG"
touch "$LOG.killed"
"""
# A node whose Ray does not start ends `ray symmetric-run` with 0, and without a study: RAY_FAILS.
# As the real command it starts Ray by its own name, so the script must put its folder on the path.
RAY = """#!{python}
import os, subprocess, sys, time
with open(os.environ["LOG"], "a") as log:
    print("ray", *sys.argv[1:], os.environ["RAY_AUTH_MODE"], file=log)
if sys.argv[1] == "symmetric-run":
    subprocess.run(["ray", "start"], check=True)
    os.makedirs(os.environ["RAY_TMPDIR"])
if sys.argv[1] == "symmetric-run" and not os.environ.get("RAY_FAILS"):
    code = subprocess.run(sys.argv[sys.argv.index("--") + 1 :]).returncode
    while code == 130 and not os.path.exists(os.environ["LOG"] + ".killed"):
        time.sleep(0.05)
    sys.exit(code)
"""
STUDY = """
import os, pathlib, signal, sys, time
results = pathlib.Path(sys.argv[sys.argv.index("--results") + 1])
(results / "example").mkdir(parents=True, exist_ok=True)
(results / "arguments").write_text(" ".join(sys.argv[1:]))
(results / "data").write_text((pathlib.Path(os.environ["PDARTS_TUNE_DATA"]) / "image").read_text())
signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
while "--long" in sys.argv:
    time.sleep(0.05)
(results / "example" / "completed.json").write_text("{}")
"""


@pytest.fixture
def job(tmp_path):
    """Starts the script as SLURM does, in a checkout with the study example.py, and returns the process and its log."""
    tools, environment = tmp_path / "tools", tmp_path / "environment"
    for folder, name, text in (
        (tools, "srun", SRUN),
        (tools, "scontrol", SCONTROL),
        (tools, "pkill", PKILL),
        (environment, "ray", RAY),
    ):
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(text.replace("{python}", sys.executable))
        (folder / name).chmod(0o755)
    (environment / "python").symlink_to(sys.executable)
    (tmp_path / "example.py").write_text(STUDY)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "image").write_text("pixels")
    log = tmp_path / "log"
    log.touch()
    started = []

    def start(*arguments, **further):
        env = os.environ | {
            "PATH": f"{tools}:/usr/bin:/bin",
            "PYTHON": f"{environment}/python",
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
            "LOG": str(log),
            "SLURM_JOB_ID": "12345",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_JOB_NODELIST": "first,second",
            "SLURM_SUBMIT_DIR": str(tmp_path),
            "RESULTS": str(tmp_path / "results"),
            "DATA": str(tmp_path / "data"),
            "SCRATCH": str(tmp_path / "scratch"),
            **further,
        }
        command = ["bash", str(CLUSTER / "slurm.sh"), "example.py", *arguments]
        process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        started.append(process)
        return process, log

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_the_slurm_script_stages_data_runs_the_study_and_looks_for_its_marker(job, tmp_path):
    process, log = job("--preset", "smoke")
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "the study is complete" in said
    assert (tmp_path / "results" / "arguments").read_text() == f"--results {tmp_path}/results --address auto --preset smoke"
    assert (tmp_path / "results" / "data").read_text() == "pixels"
    assert "ray symmetric-run --address first:32345 --min-nodes 2 -- bash" in log.read_text()
    assert " token\n" in log.read_text()
    assert not list(tmp_path.glob(".slurm-*")), "the token must not stay behind"
    assert not list((tmp_path / "scratch").iterdir()), "nor must data and Ray's files"


def test_the_slurm_script_does_not_take_an_exit_code_for_success_nor_an_old_marker(job, tmp_path):
    (tmp_path / "results" / "example").mkdir(parents=True)
    (tmp_path / "results" / "example" / "completed.json").write_text("{}")
    process, _ = job(RAY_FAILS="yes")
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1, said
    assert "the study is not complete" in said


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_preempted_slurm_job_drains_its_nodes_stops_the_study_and_goes_back_into_the_queue(job, tmp_path, number):
    process, log = job("--long")
    deadline = time.monotonic() + 60
    while not (tmp_path / "results" / "data").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    lines = log.read_text().splitlines()
    assert any("drain-node --address first:32345 --reason DRAIN_NODE_REASON_PREEMPTION" in line for line in lines)
    assert "pkill -f [s]tart --address first:32345 --block" in lines
    assert lines[-1] == "scontrol requeue 12345"
    assert not (tmp_path / "results" / "example" / "completed.json").exists()


def test_the_slurm_script_is_valid_bash():
    subprocess.run(["bash", "-n", CLUSTER / "slurm.sh"], check=True)
