"""The papers' settings and published numbers."""
