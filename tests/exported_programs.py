"""Runs exported networks where there is nothing but torch, or nothing but onnxruntime (and the numpy that it brings).

    python exported_programs.py FOLDER

FOLDER holds *.pt2 or *.onnx, and pixels.bin: uint8 images [N, *shape] of the shape in shape.json. Prints the logits of
every file as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def torch_logits(folder: Path) -> dict[str, list[list[float]]]:
    import torch

    shape = json.loads((folder / "shape.json").read_text())
    pixels = torch.frombuffer(bytearray((folder / "pixels.bin").read_bytes()), dtype=torch.uint8).view(-1, *shape)
    with torch.no_grad():
        return {file.name: torch.export.load(file).module()(pixels).tolist() for file in sorted(folder.glob("*.pt2"))}


def onnx_logits(folder: Path) -> dict[str, list[list[float]]]:
    import numpy
    import onnxruntime

    shape = json.loads((folder / "shape.json").read_text())
    pixels = numpy.frombuffer((folder / "pixels.bin").read_bytes(), numpy.uint8).reshape(-1, *shape)
    return {
        file.name: onnxruntime.InferenceSession(file).run(None, {"images": pixels})[0].tolist()
        for file in sorted(folder.glob("*.onnx"))
    }


if __name__ == "__main__":
    place = Path(sys.argv[-1])
    print(json.dumps(onnx_logits(place) if any(place.glob("*.onnx")) else torch_logits(place)))
