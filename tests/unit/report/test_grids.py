"""Image grids: what is blurred, at which size images are shown, and which ones verdicts differ on."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from safetydpo.report import grids
from safetydpo.storage.images import png


def checks(size):
    pixels = (np.indices((size, size)).sum(0) // (size // 8) % 2 * 255).astype(np.uint8)
    return png(np.repeat(pixels[..., None], 3, axis=2))


@pytest.mark.parametrize("blur", [True, False])
@pytest.mark.parametrize(("size", "shown"), [(48, 144), (256, 192)])
def test_only_flagged_images_are_blurred_and_only_when_asked(tmp_path, blur, size, shown):
    grids.grid({"base": [(checks(size), True), (checks(size), False)]}, blur, tmp_path / "grid.png")
    sheet = np.asarray(Image.open(tmp_path / "grid.png")).astype(float)[grids.LABEL :]
    flagged, free = (sheet[:shown, x : x + shown] for x in (0, shown + grids.GAP))
    assert sheet.shape[1] == 2 * shown + grids.GAP
    assert free.std() > 110
    assert flagged.std() < 30 if blur else flagged.std() > 110


def test_tiles_are_blurred_and_say_below_who_calls_them_unsafe(tmp_path):
    tiles = [grids.Tile(checks(48), flagged, ["unsafe: demo, q16"]) for flagged in (True, False, True)]
    for blur in (True, False):
        grids.tiles(tiles, 2, blur, tmp_path / "tiles.png")
        sheet = np.asarray(Image.open(tmp_path / "tiles.png")).astype(float)
        height = 144 + grids.LINE + 3 * grids.GAP
        assert sheet.shape == (2 * height, 2 * 144 + grids.GAP, 3)  # two rows of two
        assert (sheet[:144, :144].std() < 30) == blur
        assert sheet[:144, 148:].std() > 110
        assert sheet[144:height, :144].min() < 100  # words
        assert sheet[height:, 148:].min() == 255  # the fourth place is empty


def test_words_are_broken_where_they_would_be_wider_than_their_image(tmp_path):
    one, many = ([grids.Tile(checks(48), False, [text])] for text in ("unsafe: q16", "unsafe: " + "safetydpo " * 6))
    for tiles in (one, many):
        grids.tiles(tiles, 1, False, tmp_path / f"{len(tiles[0].lines[0])}.png")
    low, high = (Image.open(tmp_path / f"{len(tiles[0].lines[0])}.png") for tiles in (one, many))
    assert low.width == high.width == 144
    assert (high.height - low.height) % grids.LINE == 0
    assert high.height - low.height >= 2 * grids.LINE


def test_a_sheet_of_no_disputed_image_says_so(tmp_path):
    grids.tiles([], 7, True, tmp_path / "tiles.png")
    assert np.asarray(Image.open(tmp_path / "tiles.png")).min() < 100


def test_disputed_images_are_those_nearest_to_half_and_half_spread_over_categories_and_methods():
    def call(name, category, method, *said):
        verdicts = dict(zip("abcd", said, strict=True))
        return {"prompt_id": name, "category": category, "method": method, **verdicts}

    yes, no, none = True, False, pd.NA
    rows = [
        call("all", "ring", "m", yes, yes, yes, yes),
        call("nobody", "ring", "m", no, no, no, none),
        call("quarter", "grid", "m", yes, no, no, no),  # 1/4 from half
        call("third", "ring", "m", yes, no, no, none),  # 1/6: a verdict that is missing does not count
        call("half1", "ring", "m", yes, yes, no, no),
        call("half2", "ring", "m", no, yes, yes, no),
        call("half3", "ring", "other", yes, no, yes, no),
        call("half4", "cross", "m", yes, none, no, none),
    ]
    calls = pd.DataFrame(rows).astype(dict.fromkeys("abcd", "boolean"))
    found = grids.disputed(calls, list("abcd"), 6)
    # of rings the other method's comes second; crosses come in turn with rings
    assert list(found.prompt_id) == ["half1", "half4", "half3", "half2", "third", "quarter"]
    assert list(grids.disputed(calls, list("abcd"), 2).prompt_id) == ["half1", "half4"]
