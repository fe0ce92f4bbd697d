"""Speed of training and of inference."""
