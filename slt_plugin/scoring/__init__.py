"""Scores of translations: strings in, numbers out."""
