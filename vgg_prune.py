"""Cut the channels with zero scaling factors out of a VGG.

python vgg_prune.py --model logs/proximal_vgg_19_cifar10checkpoint.pth.tar
"""

import sys

from models.surgery import slim
from utils.console import run
from utils.pruning.command import prune

__all__ = ["slim"]


def main(argv: list[str] | None = None) -> None:
    prune("vgg", "vggnet", argv)


if __name__ == "__main__":
    sys.exit(run(main))
