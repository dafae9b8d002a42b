"""Prompt pairs of each category, and the sets of prompts that are rendered by themselves."""
