"""Files of runs: checkpoints, their formats, paths and CSV records."""
