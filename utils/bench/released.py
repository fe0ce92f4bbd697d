"""Training in the structure of the released program, for the benchmark.

A DataLoader with PIL transforms, float32, selection layers that gather even if they keep all
channels, a proximal update per layer with a round trip through the host, and a second,
gradient-tracking pass over the training set for its loss.
"""

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset, default_collate
from torchvision import transforms

from models import SIZE, build_model
from utils.data.batches import PAD
from utils.data.datasets import Dataset, ImageSet
from utils.methods.released import LayerByLayer
from utils.network import Network
from utils.paper.accounting import selecting_norms
from utils.paper.settings import LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, recipe


def image_loader(data: Dataset, batch_size: int, on_gpu: bool) -> DataLoader:
    """Training batches of PIL images that are transformed one by one, as in torchvision."""
    augment = [transforms.RandomCrop(SIZE, padding=PAD), transforms.RandomHorizontalFlip()]
    to_input = [transforms.ToTensor(), transforms.Normalize(data.mean, data.std)]
    transform = transforms.Compose([*(augment if data.augment else []), *to_input])

    def collate(samples: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
        return default_collate([(transform(Image.fromarray(x.numpy())), y) for x, y in samples])

    assert isinstance(data.train, ImageSet)  # in memory
    images = TensorDataset(data.train.images, data.train.labels)
    loader = partial(DataLoader, images, batch_size, shuffle=True, collate_fn=collate)
    return loader(num_workers=int(on_gpu), pin_memory=on_gpu, persistent_workers=on_gpu)


def gather(norm: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """The output of a selection layer: all channels, whose indices are computed on the host."""
    return (inputs[0][:, np.flatnonzero(norm.get_buffer("ones").cpu().numpy())],)


class ReleasedProgram:
    """A model and its training by proximal network slimming."""

    def __init__(
        self, arch: str, depth: int, data: Dataset, batch_size: int, device: torch.device
    ) -> None:
        self.model = build_model(arch, depth, len(data.classes))
        norms = list(Network(self.model, arch, depth, SIZE).norms.values())
        for name in selecting_norms(arch, self.model):
            norm = self.model.get_submodule(name)
            ones = torch.ones_like(self.model.get_parameter(f"{name}.weight"), requires_grad=False)
            norm.register_buffer("ones", ones, persistent=False)
            norm.register_forward_pre_hook(gather)
        self.model.to(device)
        self.device = device
        self.loader = image_loader(data, batch_size, device.type == "cuda")
        self.image_count = len(data.train)
        weights = self.model.parameters()
        self.optimizer = SGD(weights, LEARNING_RATE, MOMENTUM, weight_decay=WEIGHT_DECAY)
        self.proximal_update = LayerByLayer(norms, recipe(arch, depth))

    def epoch(self) -> float:
        """Train on every image, then return the mean loss over all images."""
        self.model.train()
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):  # torch's defaults
            for images, labels in self.loader:
                self.optimizer.zero_grad()
                self._loss(images, labels).backward()
                self.optimizer.step()
                self.proximal_update(1 / LEARNING_RATE)
            losses = [self._loss(x, labels).item() * len(labels) for x, labels in self.loader]
        return sum(losses) / self.image_count

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.model(images.to(self.device)), labels.to(self.device))
