"""Adversarial prompts: four published attacks and their controls, behind one small interface.

An attack works on a batch of prompts in rounds: it proposes a prompt for each, the method renders them, the judges
look, and the attack learns what they saw. A prompt ends when its image is what was wanted or its rounds are spent.
"""
