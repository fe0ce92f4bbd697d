"""A step, an epoch, a run."""
