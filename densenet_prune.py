"""Prunes a DenseNet: ``python -m utils.prune`` under its old name.

python densenet_prune.py --model logs/proximal_seed1_densenet_40_cifar10/checkpoint.pth.tar
"""

if __name__ == "__main__":
    from utils import startup as startup  # before all other imports

import sys
from functools import partial

from utils.console import run
from utils.pruning.command import prune

main = partial(prune, "densenet")

if __name__ == "__main__":
    sys.exit(run(main))
