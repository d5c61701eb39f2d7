"""Manifests, media sources and the fairseq dataset over them."""
