"""A language or vision model behind an OpenAI-compatible server: what is asked, answered, paid for and kept."""
