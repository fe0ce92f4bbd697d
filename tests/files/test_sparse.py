"""Sparse files: bit for bit, and refused before memory is taken where they lie."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from models import build_model
from utils.console import InputError
from utils.files import checkpoint, sparse
from utils.files.sparse import pack, unpack
from utils.methods.masks import zero_smallest


@given(st.integers(1, 40), st.integers(0, 40), st.integers(0, 2**31))
def test_what_is_packed_comes_back(size, zeros, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv1d(1, size, 1), nn.Linear(3, 2))
    model[0].weight.data.flatten()[:zeros] = 0
    packed = pack(model)
    assert len(packed["mask"]) == -(-(size + 6) // 8)
    for name, weight in unpack(packed).items():
        assert torch.equal(weight, model.state_dict()[name])


def written(path: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    model = build_model("resnet-basic", 8, 2)
    zero_smallest(model, 0.85)
    content = sparse.content(model, {})
    torch.save(content, path)
    assert torch.equal(
        checkpoint.load(path).network.model.layer1[0].conv1.weight, model.layer1[0].conv1.weight
    )
    return copy.deepcopy(content)


def flip(x: dict[str, Any]) -> None:
    x["sparse"]["mask"][100] ^= 1


def beyond(x: dict[str, Any]) -> None:
    """Within the last byte, behind the last weight."""
    mask = torch.ones(2, dtype=torch.uint8) * 255
    x["sparse"] = {"shapes": {"linear.weight": [3, 3]}, "mask": mask, "values": torch.ones(16)}


def shape(name: str, sizes: Any) -> Any:
    return lambda x: x["sparse"]["shapes"].__setitem__(name, sizes)


def part(name: str, value: Any) -> Any:
    return lambda x: x["sparse"].__setitem__(name, value)


LIES = {
    "a bit flipped": (flip, "its mask keeps"),
    "a bit behind the last weight": (beyond, "its mask keeps"),
    "ten billion weights": (shape("linear.weight", [10**5, 10**5]), "its mask is of"),
    "another shape": (shape("linear.weight", [2, 65]), "its mask is of"),
    "a shape that is turned": (shape("linear.weight", [64, 2]), "does not fit"),
    "a shape below 0": (shape("linear.weight", [-1, -1]), "damaged"),
    "a shape of words": (shape("linear.weight", "much"), "damaged"),
    "an unknown layer": (shape("other.weight", [1]), "its mask is of"),
    "values of another type": (part("values", torch.ones(5, dtype=torch.int64)), "damaged"),
    "one value": (part("values", torch.ones(1)), "its mask keeps"),
    "values in a square": (part("values", torch.ones(2, 2)), "damaged"),
    "nan": (lambda x: x["sparse"]["values"].fill_(float("nan")), "finite tensors"),
    "no values": (lambda x: x["sparse"].pop("values"), "has not shapes"),
    "no parts": (lambda x: x.update(sparse=7), "has not shapes"),
}


@pytest.mark.parametrize("lie", LIES)
def test_what_does_not_fit_is_refused(lie, tmp_path):
    spoil, word = LIES[lie]
    content = written(tmp_path / "good.sparse")
    spoil(content)
    torch.save(content, tmp_path / "bad.sparse")
    with pytest.raises(InputError, match=word):
        checkpoint.load(tmp_path / "bad.sparse")
