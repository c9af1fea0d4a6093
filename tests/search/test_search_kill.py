"""A real SIGKILL in the middle of an epoch, for each method: the search that goes on is the one that was never killed."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_search_methods import CONFIGS

from pdarts_tune.config.serialize import to_dict

ROOT = Path(__file__).parents[2]

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
print(digest.hexdigest(), hashlib.sha256(json.dumps(figures).encode()).hexdigest(), len(figures))
"""


def run(settings, checkpoint, killed_in):
    command = [sys.executable, "-c", SCRIPT, settings, str(checkpoint), str(killed_in)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


@pytest.mark.slow  # three processes that import torch, and two searches, for each method
@pytest.mark.parametrize("name", ["first_order", "second_order", "snas", "partial_channels", "random_search"])
def test_a_search_that_was_killed_in_an_epoch_goes_on_to_the_same_bits(tmp_path, name):
    settings = json.dumps(to_dict(CONFIGS[name]))
    whole = run(settings, tmp_path / "whole.pt", -1)
    assert whole.returncode == 0, whole.stderr
    killed = run(settings, tmp_path / "killed.pt", 3)
    assert killed.returncode == -signal.SIGKILL
    assert killed.stdout == ""
    continued = run(settings, tmp_path / "killed.pt", -1)
    assert continued.returncode == 0, continued.stderr
    assert continued.stdout == whole.stdout
    assert whole.stdout.endswith(" 4\n")
