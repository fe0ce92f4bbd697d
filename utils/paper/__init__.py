"""What the paper says: its settings, its numbers."""
