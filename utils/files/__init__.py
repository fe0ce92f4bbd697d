"""What outlives a process: checkpoints, their layouts, records."""
