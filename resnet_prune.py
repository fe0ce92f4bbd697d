"""Cut the channels with zero scaling factors out of a pre-activation ResNet.

python resnet_prune.py --model logs/proximal_resnet_164_cifar10checkpoint.pth.tar
"""

import sys

from models.surgery import slim
from utils.console import run
from utils.pruning.command import prune

__all__ = ["slim"]


def main(argv: list[str] | None = None) -> None:
    prune("resnet", "ResNet", argv)


if __name__ == "__main__":
    sys.exit(run(main))
