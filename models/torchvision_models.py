"""torchvision's networks by their names there."""

from torch import nn

# And how many layers they have.
DEPTHS = {
    **{f"resnet{depth}": depth for depth in (18, 34, 50, 101, 152)},
    **{f"vgg{depth}_bn": depth for depth in (11, 13, 16, 19)},
    "mobilenet_v2": 53,
    "alexnet": 8,
}

SIZE = 224  # pixels of an image's side
SMALLEST = {"alexnet": 63}  # where that is not 32


def build(name: str, num_classes: int) -> nn.Module:
    """Network ``name``, with torchvision's initial values."""
    from torchvision.models import get_model  # here: its import takes as long as that of all else

    return get_model(name, weights=None, num_classes=num_classes)
