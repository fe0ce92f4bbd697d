"""Training: step, trainer, evaluation, logging."""
