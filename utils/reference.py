"""What the benchmark compares with: an epoch in the structure of the released program.

A DataLoader with PIL transforms, float32, one proximal update per layer with a round trip through
the host, and a second, gradient-tracking pass over the training set for its loss.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms

from utils.data import PAD, Dataset
from utils.folder import SIZE
from utils.slimming import batch_norms


class PictureList(torch.utils.data.Dataset):
    """Training pictures as torchvision's data sets give them: PIL, transformed one by one."""

    def __init__(self, data: Dataset) -> None:
        self.images, self.labels = data.train.images.numpy(), data.train.labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(SIZE, padding=PAD),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(data.mean, data.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[i])), self.labels[i]


class Reference:
    """Trains ``model``, which is on its device; ``epoch()`` is one epoch of the whole program."""

    def __init__(
        self, model: nn.Module, data: Dataset, batch_size: int, lambda_: float, beta: float
    ) -> None:
        self.model, self.lambda_, self.beta = model, lambda_, beta
        self.device = next(model.parameters()).device
        on_gpu = self.device.type == "cuda"
        self.loader = DataLoader(
            PictureList(data),
            batch_size,
            shuffle=True,
            num_workers=int(on_gpu),
            pin_memory=on_gpu,
            persistent_workers=on_gpu,
        )
        self.optimizer = torch.optim.SGD(
            model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4
        )
        self.xi = [torch.empty(len(bn.weight)).uniform_(0.47, 0.53) for bn in batch_norms(model)]

    def epoch(self, alpha: float = 10.0) -> float:
        """Train on every picture, then compute the loss on every picture; the loss."""
        self.model.train()
        for images, labels in self._batches():
            self.optimizer.zero_grad()
            F.cross_entropy(self.model(images), labels).backward()
            self.optimizer.step()
            self._proximal_update(alpha)
        total = 0.0
        for images, labels in self._batches():
            total += F.cross_entropy(self.model(images), labels).item() * len(labels)
        return total / len(self.loader.dataset)

    def _batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for images, labels in self.loader:
            yield images.to(self.device), labels.to(self.device)

    def _proximal_update(self, alpha: float) -> None:
        beta = self.beta
        for i, bn in enumerate(batch_norms(self.model)):
            gamma, xi = bn.weight.data.cpu(), self.xi[i]
            gamma = (alpha * gamma + beta * xi) / (alpha + beta)
            mean = (alpha * xi + beta * gamma) / (alpha + beta)
            size = (mean.abs() - self.lambda_ / (alpha + beta)).clamp(min=0)
            self.xi[i] = mean.sign() * size
            bn.weight.data = gamma.to(self.device)
