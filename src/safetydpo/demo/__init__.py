"""The demo world: tiny scenes, the grammar that describes them, and the small models trained on them."""
