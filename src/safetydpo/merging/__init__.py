"""Experts into one LoRA."""
