"""Images of pairs and of prompt sets."""
