"""The paper's settings (section 5.1), in one place."""

from dataclasses import dataclass

from utils.slimming import shrinkage

EPOCHS = 160
LEARNING_RATE = 0.1
BATCH_SIZE = 64
STEPS = 782  # mini-batches of 64 in the 50,000 pictures of CIFAR


@dataclass(frozen=True)
class Recipe:
    """λ and β of proximal slimming, and λ of original network slimming (from its own paper)."""

    lambda_: float
    beta: float
    subgradient_lambda: float

    def shrinkage(self) -> float:
        """How far the penalty alone moves ξ in the paper's 160 epochs of CIFAR."""
        half, quarter = EPOCHS // 2 * STEPS, EPOCHS // 4 * STEPS
        return shrinkage(self.lambda_, self.beta, [(half, 10), (quarter, 100), (quarter, 1000)])


def recipe(arch: str, depth: int) -> Recipe:
    """The paper's settings for this network, or for the nearest one it trains."""
    if arch == "vgg":
        return Recipe(lambda_=0.0045, beta=100, subgradient_lambda=1e-4)
    if arch == "densenet":
        return Recipe(lambda_=0.004, beta=100, subgradient_lambda=1e-5)
    return Recipe(lambda_=0.002, beta=1.0 if depth < 164 else 0.25, subgradient_lambda=1e-5)
