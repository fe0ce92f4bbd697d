"""Prunes any model: ``python -m utils.prune --model FILE``."""

if __name__ == "__main__":
    from utils import startup as startup  # before all other imports

import sys
from functools import partial

from utils.console import run
from utils.pruning.command import prune

main = partial(prune, None)

if __name__ == "__main__":
    sys.exit(run(main))
