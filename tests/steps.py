"""A training step on random images."""

from collections.abc import Callable

import torch

from netslim.graph import Graph
from utils.data.batches import Batches
from utils.data.datasets import Dataset, ImageSet
from utils.device import Execution
from utils.methods.base import Method
from utils.methods.slimming import ProximalSlimming
from utils.network import fresh
from utils.training.step import Step

CPU = torch.device("cpu")


def proximal(graph: Graph) -> Method:
    return ProximalSlimming(graph, lambda_=0.01, beta=100)


def make_step(seed: int = 0, method: Callable[[Graph], Method] = proximal) -> Step:
    torch.manual_seed(seed)
    pictures = ImageSet(
        torch.randint(256, (30, 32, 32, 3), dtype=torch.uint8), torch.randint(10, (30,))
    )
    data = Dataset("own", tuple("0123456789"), pictures, pictures, (0.5,) * 3, (0.2,) * 3, True)
    network = fresh("resnet", 11, 10, 32)
    optimizer = torch.optim.SGD(
        network.model.parameters(), 0.1, 0.9, weight_decay=1e-4, nesterov=True, fused=True
    )
    batches = Batches(data, "train", 8, CPU, seed)
    step = Step(network.model, batches, optimizer, method(network.graph), Execution(CPU))
    step.start_epoch(0.1)
    return step
