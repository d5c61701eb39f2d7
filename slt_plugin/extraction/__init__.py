"""Feature extraction: a manifest of videos and a SignHiera checkpoint -> a feature store and its manifest."""
