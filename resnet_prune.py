"""Prunes a ResNet: ``python -m utils.prune`` under its old name.

python resnet_prune.py --model logs/proximal_seed1_resnet_164_cifar10/checkpoint.pth.tar
"""

if __name__ == "__main__":
    from utils import startup as startup  # before all other imports

import sys
from functools import partial

from utils.console import run
from utils.pruning.command import prune

main = partial(prune, "resnet")

if __name__ == "__main__":
    sys.exit(run(main))
