"""Placeholder."""


def write_card(out, seed): ...
