"""The prune command: chooses channels, removes them, verifies and reports the result."""
