"""The config: types, ranges and meanings of every key, a file a section. Free of torch."""
