"""``slt-extract``: features of videos, sentence embeddings of signing and of texts -> a store and its manifest."""
