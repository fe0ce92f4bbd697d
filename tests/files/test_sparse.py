"""Sparse checkpoints keep every weight; damaged ones are refused before memory is allocated."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from models import build_model
from utils.console import InputError
from utils.files import checkpoint, sparse
from utils.methods.masks import zero_smallest


@given(st.integers(1, 40), st.integers(0, 40), st.integers(0, 2**31))
def test_packed_weights_are_unpacked(size, zeros, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv1d(1, size, 1), nn.Linear(3, 2))
    model[0].weight.data.flatten()[:zeros] = 0
    packed = sparse.content(model, {})["sparse"]
    assert len(packed["mask"]) == -(-(size + 6) // 8)
    for name, weight in sparse.unpack(packed).items():
        assert torch.equal(weight, model.state_dict()[name])


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    model = build_model("resnet-basic", 8, 2)
    zero_smallest(model, 0.85)
    return model


def test_a_sparse_checkpoint_is_loaded(model, tmp_path):
    torch.save(sparse.content(model, {}), tmp_path / "x.sparse")
    state = checkpoint.load(tmp_path / "x.sparse").network.model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


def flip_bit(packed: dict[str, Any]) -> None:
    packed["mask"][100] ^= 1


def set_last_bits(packed: dict[str, Any]) -> None:
    """Sets bits behind the last weight."""
    mask = torch.ones(2, dtype=torch.uint8) * 255
    packed.update(shapes={"linear.weight": [3, 3]}, mask=mask, values=torch.ones(16))


def shape(name: str, sizes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda packed: packed["shapes"].__setitem__(name, sizes)


def values(tensor: torch.Tensor) -> Callable[[dict[str, Any]], None]:
    return lambda packed: packed.update(values=tensor)


DAMAGED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a flipped bit": (flip_bit, "its mask keeps"),
    "bits behind the last weight": (set_last_bits, "its mask keeps"),
    "ten billion weights": (shape("linear.weight", [10**5, 10**5]), "its mask has"),
    "a longer mask": (lambda packed: packed.update(mask=packed["mask"].repeat(2)), "its mask has"),
    "transposed": (shape("linear.weight", [64, 2]), "does not fit"),
    "negative sizes": (shape("linear.weight", [-1, -1]), "damaged"),
    "sizes are a word": (shape("linear.weight", "much"), "damaged"),
    "unknown layer": (shape("other.weight", [1]), "its mask has"),
    "integer values": (values(torch.ones(5, dtype=torch.int64)), "damaged"),
    "one value": (values(torch.ones(1)), "its mask keeps"),
    "nan": (lambda packed: packed["values"].fill_(float("nan")), "finite tensors"),
    "no values": (lambda packed: packed.pop("values"), "damaged"),
}


@pytest.mark.parametrize(("damage", "reason"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_sparse_checkpoints_are_refused(damage, reason, model, tmp_path):
    content = sparse.content(model, {})
    damage(content["sparse"])
    torch.save(content, tmp_path / "x.sparse")
    with pytest.raises(InputError, match=reason):
        checkpoint.load(tmp_path / "x.sparse")
