"""Align text-to-image diffusion models: prompt pairs, Diffusion-DPO experts, Co-Merge, evaluation."""

__version__ = "0.1.0"
