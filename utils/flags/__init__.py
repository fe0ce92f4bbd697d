"""The settings of a run and the command line of ``main.py``."""
