"""torchvision's models by their names there."""

from torch import nn

DEPTHS = {
    **{f"resnet{depth}": depth for depth in (18, 34, 50, 101, 152)},
    **{f"vgg{depth}_bn": depth for depth in (11, 13, 16, 19)},
    "mobilenet_v2": 53,
    "alexnet": 8,
}
STREAMS = {  # models with residual streams, each written by several layers
    name for name in DEPTHS if name.startswith(("resnet", "mobilenet"))
}
SIZE = 224  # default side of an image in pixels
SMALLEST = {"alexnet": 63}  # smallest side in pixels, where it is not 32


def build(name: str, num_classes: int) -> nn.Module:
    """Builds a model with torchvision's initial values."""
    from torchvision.models import get_model  # here: it takes as long as all other imports

    return get_model(name, weights=None, num_classes=num_classes)
