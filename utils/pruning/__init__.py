"""Which channels go, what that wins, and the command that does it."""
