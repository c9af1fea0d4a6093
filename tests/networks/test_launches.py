"""How many operators a step launches on a GPU, which bounds a search there; a replay (test_graphs.py) launches one graph."""

import pytest
import torch

from benchmarks.supernet import operator_count
from pdarts_tune import PDARTS_CIFAR10, SearchConfig
from pdarts_tune.config.execution import Execution
from pdarts_tune.networks.build import build_network, build_optimizers
from pdarts_tune.networks.cost import even_space
from pdarts_tune.search.steps import build_steps

# By stage and phase, of the operators that launch work, at batch 96 on meta tensors. Optimizers and clipping, a few fused calls on
# a GPU, do not count. A new number needs a reason.
BUDGET = {
    (1, "weights"): 7188,
    (1, "both"): 16589,
    (2, "weights"): 10081,
    (2, "both"): 23654,
    (3, "weights"): 9238,
    (3, "both"): 21840,
}


def launches(number, phase):
    config = SearchConfig(execution=Execution(cell_evaluation="plain"))
    stage = PDARTS_CIFAR10[number - 1]
    with torch.device("meta"):
        network = build_network(config, even_space(stage.operations), stage.cells, 10, 3, seed=0).train()
        network.dropout_generator = torch.Generator()
        network.set_skip_dropout(stage.skip_dropout)
        steps = build_steps(config, stage, network, build_optimizers(config, network), 32, None)
        steps.weight_optimizer.step = steps.alpha_optimizer.step = lambda: None
        batch = torch.empty(96, 3, 32, 32), torch.zeros(96, dtype=torch.int64)
        return operator_count(lambda: steps.train(batch, batch if phase == "both" else None, phase == "both"))


@pytest.mark.slow  # ten thousand operators each
@pytest.mark.parametrize(("number", "phase"), BUDGET)
def test_a_step_launches_no_more_operators_than_its_budget(number, phase, monkeypatch):
    monkeypatch.setattr("pdarts_tune.search.steps.clip_gradients", lambda *_: None)
    assert launches(number, phase) <= BUDGET[number, phase]
