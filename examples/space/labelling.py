"""The pictures that a visitor labels, as JSON that grid.py shows: which there are, and which labels they have.

{"names": [...], "brush": 1, "tiles": [{"picture": "data:...", "of": 17, "label": null}, ...]}. `of` is a picture's
number in the validation split, or the strokes of a drawn one. `label` and `brush` (the chosen one) are places in
`names`.
"""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import torch
from asking import drawn_image
from opening import Opened
from PIL import Image
from torch import Tensor

SHOWN = 30
_MOST_TILES = 200


def first_tiles(opened: Opened) -> str:
    """The grid's value for a pipeline: pictures that no network was trained on, without labels."""
    names = opened.answers
    return _written(names, len(names) - 1 if len(names) == 2 else 0, _fresh(opened, SHOWN, set()))


def other_tiles(opened: Opened, text: str) -> str:
    """Keeps what is labelled or drawn, and takes other pictures in place of the rest."""
    tiles, brush = _read(opened, text)
    kept = [tile for tile in tiles if tile["label"] is not None or isinstance(tile["of"], str)]
    shown = {tile["of"] for tile in tiles}
    return _written(opened.answers, brush, kept + _fresh(opened, max(0, SHOWN - len(kept)), shown))


def with_drawing(opened: Opened, text: str, strokes: str) -> str:
    """Puts what is drawn in front, with the chosen label. ValueError if nothing is drawn, and for too many pictures."""
    image_CHW = drawn_image(opened, strokes)
    tiles, brush = _read(opened, text)
    if len(tiles) >= _MOST_TILES:
        raise ValueError(f"there are {len(tiles)} pictures already, and the page holds no more.")
    drawn = {"picture": picture_url(image_CHW), "of": strokes, "label": brush}
    return _written(opened.answers, brush, [drawn, *tiles])


def picture_url(image_CHW: Tensor) -> str:
    """The image, uint8 [C,H,W], as a PNG in a data: address."""
    array_HWC = image_CHW.permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(array_HWC[:, :, 0] if array_HWC.shape[2] == 1 else array_HWC).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _fresh(opened: Opened, number: int, without: set[int | str]) -> list[dict[str, Any]]:
    """Random pictures that are not shown yet, a class as often as another."""
    labels_N = opened.judge.task.validation.labels_N
    order = [row for row in torch.randperm(len(labels_N)).tolist() if row not in without]
    turns: dict[int, int] = {}
    ranked = []
    for row in order:
        label = int(labels_N[row])
        ranked.append((turns.setdefault(label, 0), row))
        turns[label] += 1
    chosen = [row for _, row in sorted(ranked, key=lambda each: each[0])[:number]]
    images = opened.judge.task.validation.images_NCHW
    return [{"picture": picture_url(images[row]), "of": row, "label": None} for row in chosen]


def _read(opened: Opened, text: str) -> tuple[list[dict[str, Any]], int]:
    try:
        state = json.loads(text)
        tiles = [{"picture": tile["picture"], "of": tile["of"], "label": tile["label"]} for tile in state["tiles"]]
        brush = state["brush"]
    except (TypeError, ValueError, KeyError, RecursionError) as error:
        raise ValueError("the labelled pictures are damaged; reload the page and label again.") from error
    if type(brush) is not int or not 0 <= brush < len(opened.answers):
        raise ValueError("no label is chosen; choose one above the pictures.")
    return tiles, brush


def _written(names: tuple[str, ...], brush: int, tiles: list[dict[str, Any]]) -> str:
    return json.dumps({"names": names, "brush": brush, "tiles": tiles})
