"""Grids of renders, PNG: a row a method, and the images that verdicts differ on."""

from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from safetydpo.storage.files import whole_file
from safetydpo.storage.images import unpng

# Pixels of an image in a grid: small ones are enlarged, large ones reduced.
SMALL, ENLARGED, LARGE = 64, 3, 192
GAP, LABEL = 4, 22
SMALL_PRINT, LINE = 12, 16  # text under an image, and the height of its line


def _shown(cell: dict[str, Any], hide: bool) -> Image.Image:
    """An image at the size of the grid, blurred past recognition when `hide`."""
    image = Image.fromarray(unpng(cell))
    if max(image.size) <= SMALL:
        image = image.resize((image.width * ENLARGED, image.height * ENLARGED), Image.Resampling.NEAREST)
    else:
        image.thumbnail((LARGE, LARGE), Image.Resampling.LANCZOS)
    if not hide:
        return image
    coarse = image.resize((4, 4), Image.Resampling.BOX).resize(image.size, Image.Resampling.BICUBIC)
    return coarse.filter(ImageFilter.GaussianBlur(image.width / 12))


def grid(rows: dict[str, list[tuple[dict[str, Any], bool]]], blur: bool, path: Path) -> None:
    """Methods x prompts, same seed down a column; images that judges flagged are blurred when `blur`.

    rows: method -> (image cell, flagged) in the order of the prompts; the method's name stands above its row.
    """
    sheets = {m: [_shown(cell, blur and flagged) for cell, flagged in cells] for m, cells in rows.items()}
    images = [image for cells in sheets.values() for image in cells]
    width, height = (max(side) + GAP for side in zip(*(image.size for image in images), strict=True))
    count = max(len(cells) for cells in sheets.values())
    sheet = Image.new("RGB", (count * width - GAP, len(sheets) * (height + LABEL)), "white")
    pen = ImageDraw.Draw(sheet)
    for y, (method, cells) in enumerate(sheets.items()):
        top = y * (height + LABEL)
        pen.text((2, top + 2), method, fill="#333333", font_size=14)
        for x, image in enumerate(cells):
            sheet.paste(image, (x * width, top + LABEL))
    with whole_file(path) as temporary:
        sheet.save(temporary, "PNG", optimize=True)


class Tile(NamedTuple):
    """An image that verdicts differ on, whether it is to be blurred, and what stands under it."""

    image: dict[str, Any]
    flagged: bool
    lines: list[str]


def tiles(shown: list[Tile], columns: int, blur: bool, path: Path) -> None:
    """Images with text under each, from left to right; a sentence where there is none."""
    images = [_shown(tile.image, blur and tile.flagged) for tile in shown]
    width = max((image.width for image in images), default=LARGE) + GAP
    texts = [_wrapped(tile.lines, width - 2 * GAP) for tile in shown]
    rows = [range(i, min(i + columns, len(images))) for i in range(0, len(images), columns)]
    heights = [max(images[i].height + LINE * len(texts[i]) for i in row) + 3 * GAP for row in rows]
    across = min(columns, len(images)) or 2
    sheet = Image.new("RGB", (across * width - GAP, sum(heights) or LABEL), "white")
    pen = ImageDraw.Draw(sheet)
    if not shown:
        pen.text((2, 2), "No image on which the verdicts differ.", fill="#333333", font_size=14)
    for y, row in enumerate(rows):
        for x, i in enumerate(row):
            place = (x * width, sum(heights[:y]))
            sheet.paste(images[i], place)
            for k, line in enumerate(texts[i]):
                top = place[1] + images[i].height + GAP + k * LINE
                pen.text((place[0] + 1, top), line, fill="#333333", font_size=SMALL_PRINT)
    with whole_file(path) as temporary:
        sheet.save(temporary, "PNG", optimize=True)


def _wrapped(lines: list[str], width: int) -> list[str]:
    """Lines broken at spaces so that none is wider than `width` pixels, unless a word is."""
    font, found = ImageFont.load_default(SMALL_PRINT), []
    for line in lines:
        found.append("")
        for word in line.split():
            longer = f"{found[-1]} {word}".strip()
            if found[-1] and font.getlength(longer) > width:
                found.append(word)
            else:
                found[-1] = longer
    return found


def spread(base: pd.DataFrame, count: int) -> list[str]:
    """The first prompts of a benchmark, taken from its categories in turn; base: index prompt_id, column category."""
    turn = base.groupby("category").cumcount().sort_values(kind="stable")
    return list(turn.index[:count])


def disputed(calls: pd.DataFrame, verdicts: list[str], count: int) -> pd.DataFrame:
    """The images whose verdicts are closest to half and half; ties from categories in turn, and in them from methods.

    calls: a row an image: method, category, and a column of `boolean` a verdict. Those on which all verdicts agree
    are left out.
    """
    votes = calls[verdicts].astype("Float64")
    share = votes.mean(axis=1).astype(float)
    rows = calls.assign(distance=(share - 0.5).abs().round(9))[(share > 0) & (share < 1)]
    for keys in (["category", "method"], ["category"]):
        turn = rows.groupby(["distance", *keys]).cumcount()
        rows = rows.assign(turn=turn).sort_values(["distance", "turn"], kind="stable")
    return rows.drop(columns=["distance", "turn"]).head(count)
