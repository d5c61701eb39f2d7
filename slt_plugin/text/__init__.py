"""Text vocabularies as fairseq dictionaries."""
