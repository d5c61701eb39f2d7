"""What ``slt-report`` shows: embeddings side by side, scores beside published ones."""
