"""What a user may say, and how it meets what a checkpoint knows."""
