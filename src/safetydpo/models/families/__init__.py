"""Model families, a file each: how a network is called, how prompts become its tensors, how its LoRA is named."""
