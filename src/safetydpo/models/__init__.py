"""The target model: loading it, its text encoders, what it predicts, rendering, LoRA files."""
