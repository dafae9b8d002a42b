"""Adversarial prompts, found against a method: an attack a file."""
