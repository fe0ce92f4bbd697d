"""Ways to spoil files and what is in them, each a function of a random generator."""

import io
import math
import pickle
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

TEXTS = [
    *("", "x", "-1", "0", "nan", "inf", "1e400", "9" * 30, "γ", "a\nb", "\x1b[2J", "../up", "{}"),
    *("--help", "a" * 5000, "\udcff", "fp32", "vgg", "cuda", "M", "None", "%s", "shapes", "/"),
]
NUMBERS = [
    *(-1, 0, 1, 2, 3, 255, 2**31, 2**63 - 1, 2**63, -(2**63), 10**10, 10**30, 2**500),
    *(-0.0, 0.5, 1e-45, 1e30, 3e38, 1e300, math.nan, math.inf, -math.inf, True, False),
]


def tensors(random: Random) -> Tensor:
    shape = random.choice([(), (0,), (1,), (3,), (10**9, 0), (2, 3), (64,), (16, 16, 3, 3)])
    kinds: list[Callable[[], Tensor]] = [
        lambda: torch.ones(shape),
        lambda: torch.zeros(shape, dtype=torch.int64),
        lambda: torch.full(shape, math.nan),
        lambda: torch.ones(shape, dtype=torch.bool),
        lambda: torch.ones(shape, dtype=torch.complex64),
        lambda: torch.ones(shape).to_sparse() if shape else torch.ones(()),
        lambda: torch.empty(10**11, device="meta"),
        lambda: torch.ones(1).expand(10**11),
    ]
    return random.choice(kinds)()


def value(random: Random, depth: int = 0) -> Any:
    """Something of any type."""
    kind = random.randrange(6 if depth < 2 else 3)
    if kind == 0:
        return random.choice(TEXTS)
    if kind == 1:
        return random.choice(NUMBERS)
    if kind == 2:
        return random.choice([None, tensors(random), tensors(random), *[[]] * 5, b"x", {1}, 1j])
    several = [value(random, depth + 1) for _ in range(random.randrange(4))]
    if kind == 3:
        return several
    if kind == 4:
        return tuple(several)
    return {random.choice([*TEXTS, 0, 5, "params"]): item for item in several}


def tensor(random: Random, x: Tensor) -> Tensor:
    """``x`` with other numbers, of another type or in another shape."""
    if x.layout is not torch.strided or x.is_meta or x.numel() > 10**6:  # spoilt already
        return x
    some = torch.zeros(x.numel(), dtype=torch.bool)
    some[random.randrange(x.numel() + 1) :][:1] = True
    some = some.view(x.shape)
    number = random.choice([math.nan, math.inf, -1.0, 0.0, 1e30, 3e38, -3e38, 1e-45])
    kinds: list[Callable[[], Tensor]] = [
        lambda: x.float().masked_fill(some, number),
        lambda: torch.full_like(x, number) if x.is_floating_point() else x - 5,
        lambda: x * -1,
        lambda: x * random.choice([0, 1e-30, 1e10, 1e30]),
        lambda: x.to(random.choice([torch.float64, torch.float16, torch.int64, torch.uint8])),
        lambda: x.to(random.choice([torch.bfloat16, torch.bool, torch.complex64])),
        lambda: x.flatten(),
        lambda: x[None],
        lambda: x.flatten()[: x.numel() // 2],
        lambda: torch.cat([x, x]) if x.dim() else x,
        lambda: x.flatten()[:1].expand(x.shape) if x.numel() else x,
        lambda: x.transpose(0, 1) if x.dim() > 1 else x,
        lambda: x.to_sparse() if x.dim() else x,
        lambda: torch.empty(x.shape, device="meta"),
    ]
    while True:
        with suppress(RuntimeError):  # not of this tensor
            return random.choice(kinds)()


def checkpoint(random: Random, x: dict[str, Any]) -> Any:
    """A copy of a checkpoint's content, changed in one place, which often is within the weights."""
    key = random.choice(
        ["state_dict", "state_dict", "state_dict", "optimizer", "settings", "method"]
    )
    if (
        not isinstance(x, dict)
        or random.random() < 0.4
        or not isinstance(x.get(key), dict | Tensor)
    ):
        return content(random, x)
    return {**x, key: content(random, x[key])}


def content(random: Random, x: Any) -> Any:
    """A copy of nested content, changed in one place."""
    if isinstance(x, dict | list | tuple) and x and random.random() < 0.97:
        keys = list(x) if isinstance(x, dict) else range(len(x))
        key = random.choice(list(keys))
        if isinstance(x, dict):
            kind = random.random()
            if kind < 0.08:
                return {k: v for k, v in x.items() if k != key}
            if kind < 0.14:
                return {**x, random.choice([*TEXTS, 7, f"{key}x"]): value(random)}
            return {**x, key: content(random, x[key])}
        several = list(x)
        if random.random() < 0.2:
            several = random.choice([several[:-1], several + several[-1:], several[::-1]])
        else:
            several[key] = content(random, several[key])
        return several if isinstance(x, list) else tuple(several)
    if isinstance(x, Tensor) and random.random() < 0.7:
        return tensor(random, x)
    return value(random)


def data(random: Random, x: bytes) -> bytes:
    """Bytes flipped, cut, doubled, filled with zeros, or replaced."""
    x = bytearray(x)
    at, to = sorted(random.randrange(len(x) + 1) for _ in range(2))
    kind = random.randrange(8)
    if kind <= 2:
        for _ in range(random.choice([1, 1, 2, 10, 100])):
            if x:
                x[random.randrange(len(x))] = random.randrange(256)
    elif kind == 3:
        x = x[:at]
    elif kind == 4:
        x = x[at:]
    elif kind == 5:
        to = min(to, at + 2000)
        x[at:to] = bytes(to - at)
    elif kind == 6:
        x = x[:at] + x[random.randrange(len(x) + 1) :][:5000] + x[at:]
    else:
        x[at : at + 20] = random.randbytes(20)
    return bytes(x)


def zipped(random: Random, x: bytes) -> bytes:
    """A zip whose checksums are right and one of whose files is spoilt, dropped or renamed."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(x)) as old, zipfile.ZipFile(out, "w") as new:
        names = old.namelist()
        pickled = [name for name in names if name.endswith("data.pkl")]
        chosen = random.choice(names if random.random() < 0.4 else pickled or names)
        for name in names:
            stuff, how = old.read(name), zipfile.ZIP_STORED
            if name == chosen:
                kind = random.random()
                if kind < 0.05:
                    continue
                if kind < 0.1:
                    name = random.choice(["x", f"{name}x", name.upper()])
                elif kind < 0.15:
                    how = zipfile.ZIP_DEFLATED
                else:
                    stuff = data(random, stuff)
            new.writestr(name, stuff, how)
    return out.getvalue()


def text(random: Random, x: bytes) -> bytes:
    """A CSV file with cells, lines or bytes changed."""
    if random.random() < 0.3 or not x:
        return data(random, x)
    lines = x.split(b"\r\n")
    at = random.randrange(len(lines))
    cells = lines[at].split(b",")
    cells[random.randrange(len(cells))] = random.choice([*TEXTS, *map(str, NUMBERS)]).encode(
        errors="replace"
    )
    kind = random.random()
    if kind < 0.6:
        lines[at] = b",".join(cells)
    elif kind < 0.8:
        lines[at : at + 1] = [b",".join(cells[:-1]), lines[at]]
    else:
        random.shuffle(lines)
    return random.choice([b"\r\n", b"\n", b"\r\n", b"\r"]).join(lines)


def old_format(path: Path, x: Any) -> None:
    """Save as torch did before 1.6."""
    torch.save(x, path, _use_new_zipfile_serialization=False, pickle_module=pickle)
