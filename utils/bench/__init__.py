"""How fast training is here, beside the released program's structure."""
