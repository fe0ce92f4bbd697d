"""What the benchmark compares with: an epoch in the structure of the released program.

A DataLoader with PIL transforms, float32, selection layers that gather even when they pass on all
channels, one proximal update per layer with a round trip through the host, and a second,
gradient-tracking pass over the training set for its loss.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms

from models import SIZE, build_model
from models.channel_selection import ChannelSelection
from utils.data.batches import PAD
from utils.data.datasets import Dataset
from utils.methods.base import batch_norms
from utils.paper.settings import LEARNING_RATE, recipe


class PictureList(torch.utils.data.Dataset):
    """Training pictures as torchvision's data sets give them: PIL, transformed one by one."""

    def __init__(self, data: Dataset) -> None:
        self.images, self.labels = data.train.images.numpy(), data.train.labels.tolist()
        augment = [transforms.RandomCrop(SIZE, padding=PAD), transforms.RandomHorizontalFlip()]
        self.transform = transforms.Compose(
            [
                *(augment if data.augment else []),
                transforms.ToTensor(),
                transforms.Normalize(data.mean, data.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[i])), self.labels[i]


def gather(layer: ChannelSelection) -> None:
    """Make ``layer`` gather all its channels, after asking on the host which they are."""
    layer.register_buffer("ones", torch.ones(layer.channels), persistent=False)

    def select(layer: nn.Module, _: object, x: Tensor) -> Tensor:
        return x[:, np.flatnonzero(layer.ones.cpu().numpy())]

    layer.register_forward_hook(select)


class Reference:
    """The program that is compared with; :meth:`epoch` is a training epoch of it."""

    def __init__(
        self, arch: str, depth: int, data: Dataset, batch_size: int, device: torch.device
    ) -> None:
        self.model = build_model(arch, depth, len(data.classes))
        for layer in self.model.modules():
            if isinstance(layer, ChannelSelection):
                gather(layer)
        self.model.to(device)
        self.paper, self.device = recipe(arch, depth), device
        on_gpu = device.type == "cuda"
        torch.backends.cudnn.allow_tf32 = True  # as torch has it unless told otherwise
        self.loader = DataLoader(
            PictureList(data),
            batch_size,
            shuffle=True,
            num_workers=int(on_gpu),
            pin_memory=on_gpu,
            persistent_workers=on_gpu,
        )
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), LEARNING_RATE, momentum=0.9, weight_decay=1e-4
        )
        norms = batch_norms(self.model)
        self.xi = [torch.empty(len(bn.weight)).uniform_(0.47, 0.53) for bn in norms]
        self.loss = math.nan

    def epoch(self) -> None:
        """Train on every picture, then compute the loss on every picture."""
        self.model.train()
        for images, labels in self._batches():
            self.optimizer.zero_grad()
            F.cross_entropy(self.model(images), labels).backward()
            self.optimizer.step()
            self._proximal_update(1 / LEARNING_RATE)
        total = 0.0
        for images, labels in self._batches():
            total += F.cross_entropy(self.model(images), labels).item() * len(labels)
        self.loss = total / len(self.loader.dataset)

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in self.loader:
            yield images.to(self.device), labels.to(self.device)

    def _proximal_update(self, alpha: float) -> None:
        beta = self.paper.beta
        for i, bn in enumerate(batch_norms(self.model)):
            gamma, xi = bn.weight.data.cpu(), self.xi[i]
            gamma = (alpha * gamma + beta * xi) / (alpha + beta)
            mean = (alpha * xi + beta * gamma) / (alpha + beta)
            size = (mean.abs() - self.paper.lambda_ / (alpha + beta)).clamp(min=0)
            self.xi[i] = mean.sign() * size
            bn.weight.data = gamma.to(self.device)
