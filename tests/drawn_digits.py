"""Digits as somebody might draw them. Importing this file also makes the modules of examples/space importable."""

from __future__ import annotations

import sys
from pathlib import Path

SPACE = Path(__file__).parents[1] / "examples" / "space"
if str(SPACE) not in sys.path:  # app.py runs as a script, so it finds the files in its own folder
    sys.path.append(str(SPACE))

Drawn = list[list[tuple[float, float]]]
"""Strokes of (x, y) points; y points down."""

# Coordinates are those of a pad of 100 x 100.
DRAWN: dict[int, Drawn] = {
    0: [[(50, 10), (32, 20), (26, 50), (33, 80), (50, 90), (68, 80), (74, 50), (67, 20), (50, 10)]],
    1: [[(35, 30), (52, 10), (52, 90)]],
    2: [[(28, 28), (38, 12), (58, 11), (70, 24), (66, 44), (30, 86), (74, 87)]],
    3: [[(28, 14), (50, 10), (67, 24), (60, 42), (46, 48), (64, 55), (70, 72), (58, 88), (28, 86)]],
    4: [[(55, 10), (20, 60), (80, 60)], [(60, 40), (60, 90)]],
    5: [[(70, 12), (35, 12), (33, 45), (55, 42), (70, 58), (66, 80), (48, 89), (30, 82)]],
    6: [[(62, 10), (42, 35), (31, 62), (35, 82), (50, 90), (66, 80), (66, 62), (50, 52), (34, 62)]],
    7: [[(25, 12), (72, 12), (40, 90)], [(35, 50), (70, 50)]],
    8: [[(65, 20), (50, 10), (35, 22), (50, 45), (68, 70), (50, 90), (32, 72), (50, 47), (68, 22)]],
    9: [[(68, 24), (52, 11), (35, 22), (36, 42), (54, 49), (68, 36), (68, 24), (67, 60), (60, 90)]],
}
