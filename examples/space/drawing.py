"""From pen strokes to an image like scikit-learn's digits, and the votes of several networks on it.

Those digits were written by hand and scaled to a bitmap of 32 x 32 black and white pixels. Then they were reduced to
8 x 8 by counting the black pixels in every 4 x 4 block, which gives grey levels 0 to 16. The same is done here. Strokes
are scaled before they are drawn with a pen of fixed width, so the size and place of the drawing do not matter.

Shapes: S segments, N networks, c classes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

SIDE = 8
_BITMAP = 32
_BLOCK = _BITMAP // SIDE
_LEVEL = 15  # pixel value per grey level, as in `load_task("digits")`
# The digits in scikit-learn's data fill all rows, but hardly reach the first and the last column. Widths of 18 to 30
# and pens of 3.5 to 6.5 were tried. With the values below, ten networks of digits-mlp3 read 27 of 31 clear drawings.
# They read 85 % of 341 drawings: those 31, and each of them turned, slanted and stretched at random ten times.
_INK_HEIGHT, _INK_WIDTH = 32.0, 26.0
_PEN = 5.5  # in pixels of the bitmap; black then covers about as much as in the data
_MOST_POINTS = 20_000


@dataclass(frozen=True)
class Vote:
    """What N networks say about one image.

    answers_N: int64, the class that each network finds most likely. confidence_N: float, its probability for that
    class. votes_c: int64, how many networks answer each class. probability_c: float, mean probability of each class.
    winner: the class with the most votes; if several have the most, the one with the highest mean probability.
    of_winner_N: float, each network's probability of the winner.
    disagreement: the share of networks that do not answer the winner, 0..1.
    """

    answers_N: Tensor
    confidence_N: Tensor
    votes_c: Tensor
    probability_c: Tensor
    winner: int
    of_winner_N: Tensor
    disagreement: float


def read_strokes(text: str) -> list[np.ndarray]:
    """Reads the JSON that the pad sends, a list of strokes that are lists of [x, y]; -> float64 [points, 2] per stroke.

    x points right and y points down, in any unit. Raises ValueError if nothing is drawn, and for anything but strokes.
    """
    try:
        drawn = json.loads(text or "[]")
        strokes = [np.array(stroke, dtype=np.float64).reshape(-1, 2) for stroke in drawn]
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            "the drawing is damaged; expected strokes of [x, y] points. Clear the pad and draw again."
        ) from error
    strokes = [stroke for stroke in strokes if len(stroke)]
    if not strokes:
        raise ValueError("nothing is drawn yet; draw a digit first.")
    number = sum(len(stroke) for stroke in strokes)
    if number > _MOST_POINTS or not all(np.isfinite(stroke).all() for stroke in strokes):
        raise ValueError(
            f"the drawing has {number:,} points, expected at most {_MOST_POINTS:,} finite ones. Clear the "
            "pad and draw again."
        )
    return strokes


def digit_image(strokes: list[np.ndarray]) -> Tensor:
    """The strokes as an image of the task `digits`: uint8 [8,8], white ink on black, 0..240 in steps of 15.

    strokes: float [points, 2] each, from `read_strokes`. Their bounding box is centred and scaled in proportion, until
    it has the full height or the width that digits have.
    """
    points = np.concatenate(strokes)
    low, size = points.min(axis=0), np.ptp(points, axis=0)
    room = np.array([_INK_WIDTH, _INK_HEIGHT]) - _PEN
    with np.errstate(divide="ignore"):
        scale = (room / size).min()
    if not np.isfinite(scale):  # a dot has no size
        scale = 0.0
    middle = low + size / 2
    segments = [
        np.stack([each[:-1], each[1:]], axis=1) if len(each) > 1 else np.stack([each, each], axis=1) for each in strokes
    ]
    segment_S22 = (np.concatenate(segments) - middle) * scale + _BITMAP / 2
    black = _pen(segment_S22)
    counts = black.reshape(SIDE, _BLOCK, SIDE, _BLOCK).sum(axis=(1, 3))
    return torch.from_numpy((counts * _LEVEL).astype(np.uint8))


def _pen(segment_S22: np.ndarray) -> np.ndarray:
    """bool [32,32]: True for pixels whose centre is at most half the pen's width from a segment."""
    centre = np.arange(_BITMAP) + 0.5
    pixel_22 = np.stack(np.meshgrid(centre, centre), axis=-1)  # [row, column] -> x, y
    black = np.zeros((_BITMAP, _BITMAP), dtype=bool)
    for start, end in segment_S22:
        along = end - start
        length = float(along @ along)
        share = np.clip((pixel_22 - start) @ along / length, 0, 1) if length else np.zeros((_BITMAP, _BITMAP))
        away = pixel_22 - start - share[..., None] * along
        black |= (away**2).sum(axis=-1) <= (_PEN / 2) ** 2
    return black


def vote(logits_Nc: Tensor) -> Vote:
    """Counts the answers of N networks to one image. Raises ValueError for no network, and for NaN and Inf."""
    if logits_Nc.ndim != 2 or 0 in logits_Nc.shape or not bool(logits_Nc.isfinite().all()):
        raise ValueError(f"logits have shape {list(logits_Nc.shape)}; expected finite ones, [networks, classes].")
    probability_Nc = logits_Nc.double().softmax(dim=1)
    confidence_N, answers_N = probability_Nc.max(dim=1)
    votes_c = torch.bincount(answers_N, minlength=logits_Nc.shape[1])
    probability_c = probability_Nc.mean(dim=0)
    most = int(votes_c.max())
    winner = int(probability_c.where(votes_c == most, -1.0).argmax())
    of_winner_N = probability_Nc[:, winner]
    return Vote(answers_N, confidence_N, votes_c, probability_c, winner, of_winner_N, 1 - most / len(logits_Nc))
