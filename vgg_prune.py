"""Prunes a VGG: ``python -m utils.prune`` under its old name.

python vgg_prune.py --model logs/proximal_seed1_vgg_19_cifar10/checkpoint.pth.tar
"""

if __name__ == "__main__":
    from utils import startup as startup  # before all other imports

import sys
from functools import partial

from utils.console import run
from utils.pruning.command import prune

main = partial(prune, "vgg")

if __name__ == "__main__":
    sys.exit(run(main))
