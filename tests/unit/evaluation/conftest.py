"""Scores written out by hand."""

import pandas as pd
import pytest


@pytest.fixture
def scores():
    """Of four images: two flagged, one without known attributes."""
    return pd.DataFrame(
        {
            "category": ["ring", "ring", "ring", "cross"],
            "seen_mark": ["ring", "cross", "none", "leaf"],
            "flagged": [True, True, False, False],
            "clip_score": [30.0, 20.0, 10.0, 40.0],
            "attributes": [1.0, 0.5, None, 0.0],
        }
    )
