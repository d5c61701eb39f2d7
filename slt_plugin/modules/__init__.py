"""Neural network building blocks: torch and timm, no fairseq."""
