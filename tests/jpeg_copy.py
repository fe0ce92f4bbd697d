# ruff: noqa: E402  # the repository comes first on the path
"""How much accuracy the JPEG copy of CIFAR-10 costs: airbench94 trained on it.

    OMP_NUM_THREADS=1 python tests/jpeg_copy.py --data DIR --seeds 1 2 --csv FILE

trains airbench94 (Jordan, *94% on CIFAR-10 in 3.29 Seconds on a Single GPU*, arXiv:2404.00498;
github.com/KellerJordan/cifar10-airbench, legacy/airbench94.py) on the images that this repository's
loader finds in DIR. On the original images its mean accuracy is 94.01 % (1,000 runs, test-time
augmentation). DIR may have torchvision's files, too: they show what the differences below cost.

Differences: float32 weights and bfloat16 layers instead of float16, but a float32 whitening layer;
it is computed from random training images, as the loader's are sorted by class; loss and training
accuracy are those of a whole epoch, not of its last mini-batch. Seconds are CPU time, with tests.
"""

import argparse
import math
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.console import run
from utils.data.datasets import Dataset, ImageSet, load_dataset
from utils.device import pick_device
from utils.files import records
from utils.training.logs import commit

SIZE, CLASSES, WIDTHS, LOGIT_SCALE = 32, 10, (64, 256, 256), 1 / 9
MEAN, STD = torch.tensor([[0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]])
BN_EPS, BN_MOMENTUM = 1e-12, 1 - 0.6  # the recipe's 0.6 is the share of the old statistics
WHITENING_IMAGES, WHITENING_EPS, WHITENING_EPOCHS = 5_000, 5e-4, 3
BATCH_SIZE, TEST_BATCH_SIZE = 1024, 1000
MOMENTUM, SMOOTHING, SHIFT = 0.85, 0.2, 2
LOOKAHEAD_STEPS, LOOKAHEAD_DECAY = 5, 0.95**5
# The recipe's rates do not depend on the momentum: with a constant gradient, torch's Nesterov SGD
# makes steps GAIN times the learning rate.
GAIN = 1 + 1 / (1 - MOMENTUM)
LR, WEIGHT_DECAY = 11.5 / 1024 / GAIN, 0.0153 / GAIN  # per example; per step, whatever the LR
BIAS_LR = 64 * LR  # of batch norms
# Test-time augmentation: shift of both axes, mirrored, weight.
VIEWS = [(s, m, w / 2) for s, w in ((0, 0.5), (-1, 0.25), (1, 0.25)) for m in (False, True)]


def view(images: Tensor, shift: Tensor | int = 0, mirror: Tensor | bool = False) -> Tensor:
    """Returns uint8 ``images`` [n, SIZE, SIZE, 3] as normalised float32 [n, 3, SIZE, SIZE].

    They are translated by ``shift``, int64 [n, 2], with reflected borders, and then mirrored where
    ``mirror``, bool [n].
    """
    n, last = len(images), SIZE - 1
    shifts = torch.as_tensor(shift).expand(n, 2).T[:, :, None]
    rows, columns = last - (last - (shifts + torch.arange(SIZE)).abs()).abs()
    columns = torch.where(torch.as_tensor(mirror).expand(n)[:, None], columns.flip(1), columns)
    pixels = images[torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return ((pixels / 255 - MEAN) / STD).permute(0, 3, 1, 2)


def whitening_filters(images: Tensor) -> Tensor:
    """Returns 2×2 filters with uncorrelated outputs on ``images``, and their negatives."""
    patches = F.unfold(view(images), 2).transpose(1, 2).flatten(0, 1)
    eigenvalues, eigenvectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    filters = (eigenvectors / (eigenvalues + WHITENING_EPS).sqrt()).T
    return torch.cat([filters, -filters]).view(-1, 3, 2, 2)


def block(inputs: int, outputs: int) -> nn.Sequential:
    convs = [nn.Conv2d(n, outputs, 3, padding=1, bias=False) for n in (inputs, outputs)]
    norms = [nn.BatchNorm2d(outputs, BN_EPS, BN_MOMENTUM) for _ in convs]
    for conv, norm in zip(convs, norms, strict=True):
        nn.init.dirac_(conv.weight.data[: conv.in_channels])  # inputs pass; others stay random
        norm.weight.requires_grad_(False)
    first = convs[0], nn.MaxPool2d(2), norms[0], nn.GELU()
    return nn.Sequential(*first, convs[1], norms[1], nn.GELU())


class Model(nn.Module):
    def __init__(self, filters: Tensor) -> None:
        super().__init__()
        self.whitening = nn.Conv2d(3, len(filters), 2)
        self.whitening.weight = nn.Parameter(filters, requires_grad=False)
        self.whitening.bias.data.zero_()
        widths = (len(filters), *WIDTHS)
        head = nn.MaxPool2d(3), nn.Flatten(), nn.Linear(WIDTHS[-1], CLASSES, bias=False)
        self.layers = nn.Sequential(nn.GELU(), *map(block, widths[:-1], WIDTHS), *head)

    def forward(self, x: Tensor) -> Tensor:
        x = self.whitening(x).bfloat16()  # before it, filters would amplify the rounding of pixels
        with torch.autocast("cpu", torch.bfloat16):
            return self.layers(x).float() * LOGIT_SCALE


@torch.no_grad()
def accuracy(model: Model, data: ImageSet, augmented: bool = False) -> float:
    """Returns the share of correct predictions in %, with test-time augmentation if wanted."""
    model.eval()
    correct, views = 0, VIEWS if augmented else [(0, False, 1.0)]
    for indices in torch.arange(len(data)).split(TEST_BATCH_SIZE):
        images, labels = data.images[indices], data.labels[indices]
        logits = sum(weight * model(view(images, s, m)) for s, m, weight in views)
        correct += int((logits.argmax(1) == labels).sum())
    return 100 * correct / len(data)


@torch.no_grad()
def look_ahead(slow: list[Tensor], fast: list[Tensor], decay: float) -> None:
    """Moves the average ``slow`` towards ``fast``, which continues from there."""
    for average, x in zip(slow, fast, strict=True):
        x.copy_(average.lerp_(x, 1 - decay))


def train(data: Dataset, epochs: float) -> Model:
    images, labels, n = data.train.images, data.train.labels, len(data.train)
    model = Model(whitening_filters(images[torch.randperm(n)[:WHITENING_IMAGES]]))
    model.to(memory_format=torch.channels_last)
    fast = [x for x in model.state_dict().values() if x.is_floating_point()]  # statistics, too
    slow = [x.clone() for x in fast]
    biases = [m.bias for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    weights = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    groups = (biases, BIAS_LR), ([model.whitening.bias, *weights], LR)
    # torch multiplies the decay by the learning rate.
    rates = [{"params": p, "lr": lr, "weight_decay": WEIGHT_DECAY / lr} for p, lr in groups]
    optimizer = torch.optim.SGD(rates, momentum=MOMENTUM, nesterov=True)
    batches = n // BATCH_SIZE  # the rest of an epoch is left out
    steps = math.ceil(epochs * batches)
    corners = [0, int(0.23 * steps), steps], [0.2, 1, 0.07]
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: np.interp(i, *corners))
    mirror = torch.rand(n) < 0.5  # in every other epoch; in those between them, the other images
    for step in range(1, steps + 1):
        epoch, batch = divmod(step - 1, batches)
        if batch == 0:
            begin, losses, correct = time.process_time(), 0.0, 0
            order = torch.randperm(n).split(BATCH_SIZE)
            model.train().whitening.bias.requires_grad_(epoch < WHITENING_EPOCHS)
        chosen, shift = order[batch], torch.randint(-SHIFT, SHIFT + 1, (BATCH_SIZE, 2))
        logits = model(view(images[chosen], shift, mirror[chosen] ^ (epoch % 2 == 1)))
        target = labels[chosen]
        loss = F.cross_entropy(logits, target, reduction="sum", label_smoothing=SMOOTHING)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        if step % LOOKAHEAD_STEPS == 0:
            look_ahead(slow, fast, LOOKAHEAD_DECAY * (step / steps) ** 3)
        losses, correct = losses + loss.item(), correct + int((logits.argmax(1) == target).sum())
        if step == steps:
            look_ahead(slow, fast, 1.0)  # the model is the average
        if step == steps or batch == batches - 1:
            seen = (batch + 1) * BATCH_SIZE
            text = f"loss {losses / seen:.4f}, training accuracy {100 * correct / seen:.2f} %"
            text += f", test accuracy {accuracy(model, data.test):.2f} %"
            print(f"epoch {epoch + 1}: {text}, {time.process_time() - begin:.0f} s", flush=True)
    return model


def main(argv: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--data", type=Path, required=True, help="DIR/{train,test}/<class>/*")
    p.add_argument("--seeds", type=int, nargs="+", default=[1])
    p.add_argument("--epochs", type=float, default=9.9)
    p.add_argument("--csv", type=Path, required=True, help="a row per seed is appended")
    args = p.parse_args(argv)
    pick_device(no_cuda=True)  # has freed memory kept
    data, program = load_dataset("cifar10", args.data), commit()
    for seed in args.seeds:
        begin = time.process_time()
        torch.manual_seed(seed)
        model = train(data, args.epochs)
        plain, augmented = (accuracy(model, data.test, tta) for tta in (False, True))
        text = f"{plain:.2f} / {augmented:.2f} % without / with test-time augmentation"
        print(f"seed {seed}: accuracy {text}", flush=True)
        row = {"seed": seed, "epochs": args.epochs, "accuracy": plain, "accuracy_tta": augmented}
        row |= {"seconds": round(time.process_time() - begin), "torch": torch.__version__}
        records.append(args.csv, row | {"commit": program})


if __name__ == "__main__":
    sys.exit(run(main))
