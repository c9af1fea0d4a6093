import pytest
import torch

from pdarts_tune.networks.checkpoint import load_checkpoint, restore_generators, save_checkpoint
from pdarts_tune.results.storage import Storage

CPU = torch.device("cpu")


def test_a_nested_state_comes_back_with_every_bit_type_and_shape(tmp_path):
    state = {
        "network": {"a.weight": torch.randn(2, 3), "steps": torch.tensor(7), "none": torch.empty(0, 4)},
        "optimizer": {"state": {0: {"momentum": torch.randn(3).double()}, 1: {}}, "groups": [{"lr": 0.1, "betas": (0.5, 0.9)}]},
        "generator": torch.Generator().manual_seed(1).get_state(),
        "records": ["text"],
    }
    save_checkpoint(state, Storage(tmp_path), "c.pt")
    loaded = load_checkpoint(Storage(tmp_path), "c.pt", CPU)
    assert loaded["optimizer"]["groups"] == state["optimizer"]["groups"]
    assert (loaded["records"], loaded["optimizer"]["state"][1]) == (["text"], {})
    for before, after in (
        *((state["network"][name], loaded["network"][name]) for name in state["network"]),
        (state["optimizer"]["state"][0]["momentum"], loaded["optimizer"]["state"][0]["momentum"]),
        (state["generator"], loaded["generator"]),
    ):
        assert (before.dtype, before.shape) == (after.dtype, after.shape)
        assert torch.equal(before, after)
        assert after.untyped_storage().nbytes() == after.nbytes  # shares no memory with the others


def test_thousands_of_tensors_are_few_records_of_the_file(tmp_path):
    save_checkpoint({"many": [torch.full((2,), float(index)) for index in range(1000)]}, Storage(tmp_path), "c.pt")
    stored = torch.load(tmp_path / "c.pt", weights_only=True)
    assert len(stored["flat tensors"]) == 1


def test_a_checkpoint_of_an_earlier_release_still_loads(tmp_path):
    torch.save({"epoch": 3, "network": {"weight": torch.ones(2)}}, tmp_path / "c.pt")
    loaded = load_checkpoint(Storage(tmp_path), "c.pt", CPU)
    assert loaded["epoch"] == 3
    assert torch.equal(loaded["network"]["weight"], torch.ones(2))


def test_tensors_come_back_in_the_order_of_memory_they_had(tmp_path):
    channels_last = torch.randn(4, 3, 5, 5).contiguous(memory_format=torch.channels_last)
    odd = torch.randn(4, 6)[:, ::2]  # fills no block: comes back as one
    broadcast = torch.ones(1).expand(3, 2)
    save_checkpoint({"all": [channels_last, odd, broadcast, torch.tensor(2.0)]}, Storage(tmp_path), "c.pt")
    loaded = load_checkpoint(Storage(tmp_path), "c.pt", CPU)["all"]
    assert [tensor.stride() for tensor in loaded] == [channels_last.stride(), (3, 1), (2, 1), ()]
    for before, after in zip((channels_last, odd, broadcast, torch.tensor(2.0)), loaded, strict=True):
        assert torch.equal(before, after)


def test_a_checkpoint_of_another_kind_of_device_is_refused_in_one_line():
    """A CUDA generator's state has 16 bytes, a CPU's 5,056."""
    own = torch.Generator()
    restore_generators({"batches": own}, {"batches": torch.Generator().manual_seed(3).get_state()})
    assert own.initial_seed() == 3
    with pytest.raises(ValueError, match="made on another kind of device than cpu") as caught:
        restore_generators({"batches": own}, {"batches": torch.zeros(16, dtype=torch.uint8)})
    assert "\n" not in str(caught.value)
