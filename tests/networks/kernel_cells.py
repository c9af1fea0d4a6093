"""Networks whose cells are evaluated by kernels, for tests and benchmarks."""

import torch
from torch import Tensor

from pdarts_tune.networks.evaluation_network import EvalNetwork
from pdarts_tune.networks.kernels.function import Plan, Settings, evaluate, evaluation_plan, search_plan
from pdarts_tune.networks.supernet import Cell, Supernet, as_nodes, joined


def plan_of_search(cell: Cell) -> Plan:
    return search_plan((cell.preprocess0, cell.preprocess1), list(cell.edges), cell.channels, cell.reduction, cell.skip_edges)


def search_cell(cell: Cell, before2: Tensor, before1: Tensor, weights: Tensor, masks: Tensor | None, kept: float) -> Tensor:
    if not hasattr(cell, "plan"):
        cell.plan = plan_of_search(cell)
    return evaluate(cell.plan, Settings(cell.training, cell.recompute, kept), before2, before1, weights, masks)


class KernelSupernet(Supernet):
    def _logits(self, images, mixing):
        mixing = self.mixing() if mixing is None else mixing
        before2 = before1 = as_nodes(self.stem(images.contiguous(memory_format=torch.channels_last)))
        for cell, weights in zip(self._cells(), mixing if isinstance(mixing, list) else self.spread(mixing), strict=True):
            masks = self._skip_masks(cell, before1[0].permute(0, 3, 1, 2))
            out = search_cell(cell, before2, before1, weights, masks, 1.0 - self.skip_dropout)
            before2, before1 = before1, out
        return self.classifier(before1.mean(dim=(2, 3)).transpose(0, 1).flatten(1))


class KernelEvalNetwork(EvalNetwork):
    recompute = False

    def plan(self, index):
        cell = self.cells[index]
        if not hasattr(cell, "plan"):
            channels, reduction = cell.preprocess1.conv.out_channels, cell.genotype is self.genotype.reduce
            preprocess = cell.preprocess0, cell.preprocess1
            cell.plan = evaluation_plan(preprocess, list(cell.operations), cell.genotype, channels, reduction)
        return cell.plan

    def forward(self, images):
        images = images.contiguous(memory_format=torch.channels_last)
        if self.config.stem == "cifar":
            before2 = before1 = as_nodes(self.stem(images))
        else:
            first = self.stem0(images)
            before2, before1 = as_nodes(first), as_nodes(self.stem1(first))
        factors = self._drop_path_factors(images)
        auxiliary = None
        settings = Settings(self.training, self.recompute)
        for index, cell in enumerate(self.cells):
            of_cell = None if factors is None else factors[index].flatten(1)
            nodes = evaluate(self.plan(index), settings, before2, before1, factors=of_cell)
            concat = [state - 2 for state in cell.genotype.concat]
            before2, before1 = before1, nodes if concat == list(range(len(nodes))) else nodes[concat]
            if self.training and self.auxiliary_head is not None and self._is_last_reduction(index):
                auxiliary = self.auxiliary_head(joined(before1))
        return self.classifier(before1.mean(dim=(2, 3)).transpose(0, 1).flatten(1)), auxiliary

    def _is_last_reduction(self, index):
        return index == 2 * len(self.cells) // 3
