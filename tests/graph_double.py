"""A CUDA graph's double on a CPU: it records a step's operators with their memory and Python numbers, and repeats them."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class GraphDouble(TorchDispatchMode):
    """Like a CUDA graph it repeats the same operators on the same memory, and refuses a number that is read from the device."""

    def __init__(self, generators, pool):
        super().__init__()
        self.generators = list(generators)
        self.pool = pool or object()
        self.calls = []
        self.replays = 0
        self.fresh = False

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if operator is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("a captured step reads a number from the device")
        results = operator(*args, **(kwargs or {}))
        self.calls.append((operator, args, kwargs or {}, results))  # held, so that no other tensor takes the memory
        return results

    def warm_up(self, step):
        return step()

    def capture(self, step):
        """A capture on a GPU computes nothing. This one does, so the replay that follows must not."""
        with self:
            results = step()
        self.fresh = True
        return results

    def replay(self):
        self.replays += 1
        if self.fresh:
            self.fresh = False
            return
        with torch.no_grad():
            for operator, args, kwargs, results in self.calls:
                again = operator(*args, **kwargs)
                for old, new in zip(tree_leaves(results), tree_leaves(again), strict=True):
                    if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)

    def signature(self):
        """The operators, with the shapes of tensors and all else as it is."""
        return [
            (str(operator), [_described(leaf) for leaf in tree_leaves((args, kwargs))]) for operator, args, kwargs, _ in self.calls
        ]


def _described(leaf):
    return tuple(leaf.shape) if isinstance(leaf, torch.Tensor) else str(leaf)
