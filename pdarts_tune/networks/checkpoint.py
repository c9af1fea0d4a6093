"""Checkpoints: nested states of thousands of tensors, in few pieces, since they are saved after every epoch."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from pdarts_tune.results.storage import Storage

_FLAT, _STATE, _TENSOR = "flat tensors", "state", "kind, shape and strides of a tensor"


def save_checkpoint(state: Mapping[str, Any], storage: Storage, name: str) -> None:
    """Replaces the whole checkpoint, so that no process ever reads half a file.

    `torch.save` spends some 40 microseconds on each tensor, and a search network has up to 7,000. So all tensors of a type and
    device are saved as one, and the state holds their shapes and strides. Strides matter: a fused optimizer goes through a weight
    and its momentum in the order of memory.
    """
    parts: dict[str, list[Tensor]] = {}

    def strip(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        kind, value = f"{value.dtype} {value.device}", value.detach()
        if torch.empty_like(value, device="meta").stride() != value.stride():  # there are gaps in its memory, or overlaps
            value = value.contiguous()
        parts.setdefault(kind, []).append(value.as_strided((value.numel(),), (1,)))
        return {_TENSOR: [kind, list(value.shape), list(value.stride())]}

    stripped = tree_map(strip, state)
    save_whole({_STATE: stripped, _FLAT: {kind: torch.cat(tensors) for kind, tensors in parts.items()}}, storage, name)


def save_whole(state: Mapping[str, Any], storage: Storage, name: str) -> None:
    """Writes a state as `torch.save` does, for others to read."""
    content = io.BytesIO()
    torch.save(state, content)
    storage.write(name, content.getbuffer())


def save_weights(network: nn.Module, about: Mapping[str, Any], storage: Storage, name: str) -> None:
    """Saves a network's weights for others to read, beside what tells how to use them: at least `mean` and `std` of its images."""
    save_whole({"state_dict": network.state_dict(), **about}, storage, name)


def load_checkpoint(storage: Storage, name: str, device: torch.device) -> dict[str, Any] | None:
    """The last state saved, each tensor with memory of its own on `device`; None if there is no file."""
    try:
        content = storage.read(name)
    except FileNotFoundError:
        return None
    saved: dict[str, Any] = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
    if _FLAT not in saved:
        return saved  # by plain `torch.save`
    flat, start = saved[_FLAT], dict.fromkeys(saved[_FLAT], 0)

    def restore(value: Any) -> Any:
        if not _is_stripped(value):
            return value
        kind, shape, strides = value[_TENSOR]
        count = torch.Size(shape).numel()
        values = flat[kind][start[kind] : start[kind] + count]
        start[kind] += count
        return values.clone().as_strided(shape, strides)

    return tree_map(restore, saved[_STATE], is_leaf=_is_stripped)


def _is_stripped(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {_TENSOR}


def restore_generators(generators: Mapping[str, torch.Generator], states: Mapping[str, Tensor]) -> None:
    """Puts generators into the states that a checkpoint has of them, by purpose.

    Raises:
        ValueError: the checkpoint was made on another kind of device, whose generators have other states.
    """
    for purpose, generator in generators.items():
        state = states[purpose].cpu()
        if len(state) != len(generator.get_state()):
            raise ValueError(
                f"the checkpoint was made on another kind of device than {generator.device.type}, whose random numbers are others; "
                "continue it on such a device, or start anew in another results folder"
            )
        generator.set_state(state)
