"""Decides which image belongs to which split: stratified, exact in number, and by the seed alone.

Shape suffix: N images.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from pdiff_hub.errors import PdiffError

Chosen = dict[str, tuple[str, np.ndarray]]


def choose_splits(labels: dict[str, np.ndarray], options: dict[str, Any]) -> Chosen:
    """For train, validation and test: the split of the data to read from, and the sorted indices in it.

    Args:
        labels: int64 [N] of the data's own splits: "train" and, if they exist, "validation" and "test".
        options: `train_size`, `validation_size`, `test_size` and `seed` as in `load_task`. If `labels` lack
            "validation" or "test", its size must be given.

    Raises:
        ValueError: a size that is larger than what there is, or leaves nothing to train on.
    """
    seed = options["seed"]
    rest = np.arange(len(labels["train"]))
    chosen: Chosen = {}
    for stage, name in enumerate(("test", "validation")):
        size = options[f"{name}_size"]
        if name in labels:
            everything = np.arange(len(labels[name]))
            chosen[name] = (name, _stratified(f"{name}_size", labels[name], everything, size, (seed, stage), spare=0))
        else:
            index = _stratified(f"{name}_size", labels["train"], rest, size, (seed, stage), spare=1)
            chosen[name] = ("train", index)
            rest = np.setdiff1d(rest, index, assume_unique=True)
    index = _stratified("train_size", labels["train"], rest, options["train_size"], (seed, 2), spare=0)
    return {"train": ("train", index), "validation": chosen["validation"], "test": chosen["test"]}


def fingerprint(labels: dict[str, np.ndarray], chosen: Chosen) -> str:
    """sha256 (hex) of the splits' indices and labels. It changes if even one image goes to another split."""
    digest = hashlib.sha256()
    for name, (origin, index) in sorted(chosen.items()):
        digest.update(f"{name} of {origin}, {len(index)} of {len(labels[origin])}\n".encode())
        digest.update(index.astype("<i8").tobytes())
        digest.update(labels[origin][index].astype("<i8").tobytes())
    return digest.hexdigest()


def _stratified(
    what: str, labels_N: np.ndarray, among: np.ndarray, size: float | None, seed: tuple[int, int], *, spare: int
) -> np.ndarray:
    """Sorted indices from `among`: as many as `size` says, with classes in proportion (largest remainders)."""
    available = len(among)
    if size is None:
        return among
    wanted = size if isinstance(size, int) else max(1, round(size * available))
    if wanted > available - spare:
        raise PdiffError(f"{what} asks for {wanted} images, but no more than {available - spare} can be taken")
    classes, class_N = np.unique(labels_N[among], return_inverse=True)
    shares = np.bincount(class_N, minlength=len(classes)) * wanted / available
    counts = np.floor(shares).astype(int)
    largest = np.argsort(counts - shares, kind="stable")[: wanted - counts.sum()]
    counts[largest] += 1
    # RandomState, not default_rng: its stream is the same in all versions of numpy (NEP 19), so splits stay the same.
    random = np.random.RandomState(seed)
    picked = [random.permutation(among[class_N == number])[:count] for number, count in enumerate(counts)]
    return np.sort(np.concatenate(picked))
