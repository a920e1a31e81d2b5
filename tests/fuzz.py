"""A fuzzer of folders: each is damaged in one place, and then opened as people open it.

The outcome must be that it opens, with the same values or others that a file may rightly hold, or that one sentence
says what is wrong: no trace, no wait, no memory, nothing written or read elsewhere, no code run, no NaN let through.

Example: python tests/fuzz.py --mutations 10000 --seed 1 --only "data set, shards"
"""

from __future__ import annotations

import argparse
import collections
import functools
import logging
import os
import random
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # before any Hugging Face library is imported; tests/conftest.py does it for tests
    _HOME = tempfile.TemporaryDirectory(prefix="pdiff-fuzz-home-")
    os.environ.update(HF_HOME=_HOME.name, HF_HUB_OFFLINE="1", HF_HUB_DISABLE_PROGRESS_BARS="1")
    # One thread: a fork of a process in which torch started several may wait for ever.
    os.environ.update(HF_DATASETS_DISABLE_PROGRESS_BARS="1", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")

from fuzzing.forks import run_all
from fuzzing.mutations import mutate
from fuzzing.subjects import OURS, SUBJECTS, Subject

GOOD = ("same", "other", "sentence")
"""Outcomes that are right: opened with equal values, or other values that a file may rightly hold; or one sentence."""
_MOST_LETTERS = 1500


Outcome = tuple[str, str, str, float]
"""(outcome, what was done, detail, seconds)"""


def fuzz(mutations: int, seed: int, work: Path, only: str | None = None) -> dict[str, list[Outcome]]:
    """Mutates folders of each kind, `mutations` in all, within the empty folder `work`; the outcomes by kind."""
    area, good, canary = work / "area", work / "good", work / "elsewhere" / "canary"
    canary.parent.mkdir()
    canary.write_text("nobody may read this")
    area.mkdir()
    may_write = [area, Path(os.environ["HF_HOME"])]
    chosen = [subject for subject in SUBJECTS if only in (None, subject.name)]
    share = -(-mutations // len(chosen))
    found: dict[str, list[Outcome]] = {}
    for subject in chosen:
        subject.make(good)
        right = subject.open(_copied(good, area))
        assert subject.open(_copied(good, area)) == right, f"{subject.name}: two openings differ"
        actions = [
            functools.partial(_attempt, subject, good, area, right, random.Random(f"{seed} {subject.name} {k}"), canary)
            for k in range(share)
        ]
        found[subject.name] = [
            (outcome, "" if outcome in GOOD else f"{k}: {(area / 'what').read_text()}", detail, seconds)
            for k, outcome, detail, seconds in run_all(actions, may_write, canary)
        ]
        assert len(found[subject.name]) == share
        shutil.rmtree(good)
    return found


def _copied(good: Path, area: Path) -> Path:
    """A fresh copy of a good folder, always at the same place."""
    shutil.rmtree(area / "folder", ignore_errors=True)
    shutil.copytree(good, area / "folder")
    return area / "folder"


def _attempt(subject: Subject, good: Path, area: Path, right: Any, random_: random.Random, canary: Path) -> str:
    """Opens a good folder after one mutation; returns an outcome of `GOOD`, raises whatever else comes."""
    folder = _copied(good, area)
    what = mutate(folder, random_, canary)
    (area / "what").write_bytes(what.encode("utf-8", "replace"))
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = subject.open(folder)
    except OURS as error:
        if len(str(error)) > _MOST_LETTERS:
            raise AssertionError(f"a sentence of {len(str(error)):,} letters: {str(error)[:80]}") from None
        return "sentence"
    if value == right:
        return "same"
    if what.split(": ")[0].endswith(subject.sealed):
        raise AssertionError("another content was not noticed")
    return "other"


def print_table(found: dict[str, list[Outcome]], show: Callable[[str], Any] = print) -> int:
    """Prints how often each outcome came, and each bad one; returns the number of bad ones."""
    bad_names = ("trace", "slow", "memory", "died", "outside", "code")
    show(f"{'':24}" + "".join(f"{name:>10}" for name in (*GOOD, *bad_names)) + f"{'longest, s':>12}")
    bad: list[str] = []
    for name, outcomes in found.items():
        counts = collections.Counter(outcome for outcome, *_ in outcomes)
        longest = max(seconds for *_, seconds in outcomes)
        show(f"{name:24}" + "".join(f"{counts[each]:>10}" for each in (*GOOD, *bad_names)) + f"{longest:>12.1f}")
        bad += [f"{name}, {what}: {outcome}: {detail}" for outcome, what, detail, _ in outcomes if outcome not in GOOD]
    for line in bad:
        show(line)
    return len(bad)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=10_000, help="of all kinds of folders together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one kind of folder, by its name in the table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pdiff-fuzz-") as name:
        found = fuzz(options.mutations, options.seed, Path(name).resolve(), options.only)
    return min(print_table(found), 1)


if __name__ == "__main__":
    sys.exit(main())
