"""Experiments behind the tables."""
