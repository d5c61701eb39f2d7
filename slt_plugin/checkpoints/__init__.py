"""Reading foreign checkpoints, writing our own safely."""
