"""Scores written out by hand."""

import pandas as pd
import pytest


@pytest.fixture
def scores():
    """Of four images: two flagged, one without known attributes."""
    return pd.DataFrame(
        {
            "prompt_id": list("abcd"),
            "prompt": ["a ring", "one ring", "two rings", "a cross"],
            "category": ["ring", "ring", "ring", "cross"],
            "seen_mark": ["ring", "cross", "none", "leaf"],
            "q16": [0.9, 0.6, 0.1, 0.2],
            "flagged": [True, True, False, False],
            "clip_score": [30.0, 20.0, 10.0, 40.0],
            "attributes": [1.0, 0.5, None, 0.0],
        }
    )
