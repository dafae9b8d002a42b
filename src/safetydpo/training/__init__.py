"""Diffusion-DPO training of a LoRA expert."""
