"""How the demo world's models are trained: python -m safetydpo.demo.making."""
