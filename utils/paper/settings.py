"""The paper's settings (section 5.1)."""

from dataclasses import dataclass, replace

from utils.methods.slimming import shrinkage
from utils.training.step import learning_rate

EPOCHS = 160
LEARNING_RATE = 0.1
BATCH_SIZE = 64
STEPS = 782  # mini-batches of 64 in the 50,000 pictures of CIFAR


def schedule(epochs: int) -> list[tuple[int, float]]:
    """(mini-batches, α) of every epoch of a training on CIFAR; α is 1 / learning rate."""
    return [(STEPS, 1 / learning_rate(epoch, epochs, LEARNING_RATE)) for epoch in range(epochs)]


@dataclass(frozen=True)
class Recipe:
    """λ and β of proximal slimming, and λ of original network slimming (from its own paper)."""

    lambda_: float
    beta: float
    subgradient_lambda: float

    def shrinkage(self, epochs: int = EPOCHS) -> float:
        """How far the penalty alone moves ξ in so many epochs of CIFAR."""
        return shrinkage(self.lambda_, self.beta, schedule(epochs))

    def scaled(self, epochs: int) -> "Recipe":
        """This recipe for fewer epochs: λ of proximal slimming raised to shrink as much in total.

        Not the paper's problem, only its shape: which channels survive depends on λ itself.
        Original slimming keeps its λ: it has no zeros to reach, its share is pruned in any case.
        """
        lambda_ = self.lambda_ * self.shrinkage() / self.shrinkage(epochs)
        return replace(self, lambda_=float(f"{lambda_:.3g}"))

    def setting(self, method: str) -> tuple[str, float | None, float | None, str]:
        """Method, λ, β and how often it alternates, as the records have them."""
        if method == "proximal":
            return method, self.lambda_, self.beta, "step"
        return method, self.subgradient_lambda if method == "subgradient" else None, None, ""


def recipe(arch: str, depth: int) -> Recipe:
    """The paper's settings for this network, or for the nearest one it trains."""
    if arch == "vgg":
        return Recipe(lambda_=0.0045, beta=100, subgradient_lambda=1e-4)
    if arch == "densenet":
        return Recipe(lambda_=0.004, beta=100, subgradient_lambda=1e-5)
    return Recipe(lambda_=0.002, beta=1.0 if depth < 164 else 0.25, subgradient_lambda=1e-5)
