"""Cut the channels with zero scaling factors out of a DenseNet.

python densenet_prune.py --model logs/proximal_densenet_40_cifar10checkpoint.pth.tar
"""

import sys

from models.surgery import slim
from utils.console import run
from utils.pruning.command import prune

__all__ = ["slim"]


def main(argv: list[str] | None = None) -> None:
    prune("densenet", "densenet", argv)


if __name__ == "__main__":
    sys.exit(run(main))
