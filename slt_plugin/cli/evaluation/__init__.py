"""The parts of ``slt-evaluate``."""
