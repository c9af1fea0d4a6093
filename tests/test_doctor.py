"""The self-test says what a machine has and lacks, a line each, and exits with 1 where a study could not run."""

import json
import re
import warnings
from types import SimpleNamespace

import pytest
import torch

from pdarts_tune import ConfigError, SearchConfig, Stage, doctor
from pdarts_tune.doctor import Arguments, main
from pdarts_tune.networks.cost import predict_stage_bytes
from pdarts_tune.study.shares import HEADROOM, PROCESS_BYTES


def run(capsys, *arguments):
    """The findings by check, and the exit code."""
    with pytest.raises(SystemExit) as exit_:
        main([*arguments, "--json"])
    return {finding["check"]: finding for finding in json.loads(capsys.readouterr().out)}, exit_.value.code


def only(monkeypatch, *checks):
    monkeypatch.setattr(doctor, "CHECKS", checks)


def test_a_machine_without_a_gpu_passes_every_check(tmp_path, capsys):
    findings, code = run(capsys, "--preset", "smoke", "--results", str(tmp_path / "results"))
    assert code == 0
    assert {finding["state"] for finding in findings.values()} <= {"ok", "warning"}
    assert "240 training and 100 test images" in findings["data"]["text"]
    assert "weights and alphas" in findings["cpu, stage 3"]["text"]
    assert not (tmp_path / "results").exists()  # it leaves nothing


def test_lines_are_for_people(tmp_path, capsys, monkeypatch):
    only(monkeypatch, doctor.check_data, doctor.check_open_files)
    with pytest.raises(SystemExit):
        main(["--preset", "smoke"])
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("ok       data: digits: ")
    assert " open files: " in second


def test_what_stops_a_study_is_a_problem_and_exit_1(tmp_path, capsys, monkeypatch):
    only(monkeypatch, doctor.check_data, doctor.check_results, doctor.check_mlflow, doctor.check_cluster)

    def refuse(*_):
        raise ConfigError("address: no Ray cluster at '127.0.0.1:9'")

    monkeypatch.setattr("pdarts_tune.study.sweep.open_sweep", refuse)
    monkeypatch.setattr(doctor, "DISK_BYTES", 10**18)
    findings, code = run(
        capsys, "--data", f"folder:{tmp_path}/none", "--results", str(tmp_path), "--tracking-uri", "http://127.0.0.1:9",
        "--address", "127.0.0.1:9",
    )  # fmt: skip
    assert code == 1
    assert {name: finding["state"] for name, finding in findings.items()} == dict.fromkeys(
        ("data", "results", "mlflow", "cluster"), "problem"
    )
    assert f"{tmp_path}/none" in findings["data"]["text"]
    assert "a study needs about" in findings["results"]["text"]
    assert findings["mlflow"]["text"].startswith("no answer from http://127.0.0.1:9")
    assert "address: no Ray cluster at '127.0.0.1:9'" in findings["cluster"]["text"]
    assert all("\n" not in finding["text"] for finding in findings.values())


def test_a_driver_that_is_too_old_is_named_with_the_build(monkeypatch, capsys):
    only(monkeypatch, doctor.check_driver)
    monkeypatch.setattr(doctor, "_driver_version", lambda: "470.1")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: warnings.warn("The driver is too old", stacklevel=1))
    findings, code = run(capsys)
    assert code == 1
    assert "470.1, but PyTorch" in findings["driver"]["text"]
    assert "built for CUDA 13.0, and The driver is too old; install a newer driver" in findings["driver"]["text"]


def test_a_card_that_is_too_small_is_told_which_stage_and_what_fits(monkeypatch):
    search = SearchConfig(stages=(Stage(3, 3, 0.4),), data="digits", channels=16, batch_size=96)
    device = torch.device("cuda", 0)
    needed = predict_stage_bytes(search, search.stages[0], 8, 10, 1, device=device)
    total = PROCESS_BYTES + int(HEADROOM * needed / 2)  # for some 48 images
    monkeypatch.setattr(doctor, "_search", lambda _: search)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=total))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "tiny")
    _, finding = doctor._try_device(Arguments(), device)
    assert (finding.check, finding.state) == ("cuda:0, stage 1", "problem")
    batch = int(re.search(r"a batch of (\d+) images would fit", finding.text)[1])
    assert 24 < batch <= 48


def test_an_unknown_preset_is_exit_2(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--preset", "papr"])
    assert exit_.value.code == 2
    assert capsys.readouterr().err == "error: preset: 'papr' is unknown, known are smoke, laptop, cifar-small, paper\n"
