"""The runs behind the paper's tables: what they are, what is left, doing it."""
