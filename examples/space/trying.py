"""Opens a pipeline and makes a first sample, in a process of its own that can be ended: trying.py FOLDER NAME

Prints a sentence and ends with status 1 if that fails.
"""

from __future__ import annotations

import sys
from pathlib import Path

from asking import EXPLAINED
from opening import open_pipeline
from sampling import FIRST_SAMPLE, most_networks, sample

if sys.platform == "linux":
    import resource

_MOST_MEMORY = 6 << 30


def main() -> None:
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_DATA, (_MOST_MEMORY, _MOST_MEMORY))
    try:
        opened = open_pipeline(Path(sys.argv[1]), sys.argv[2])
        if not opened.own_tasks:
            sample(opened, max(1, min(FIRST_SAMPLE, most_networks(opened, opened.steps))), 0, opened.steps)
    except EXPLAINED as error:
        print(" ".join(str(error).split()))
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
