"""Scores of images, metrics over them, and the LoRA scale that they choose."""
