"""Tasks: the images that target networks are trained and judged on, in three disjoint splits fixed by a seed.

Every choice is made on `validation`; `test` is used for reporting only (p-diff chose its best network on the training
set). A spec describes a task, as for networks. The complete spec, `Task.spec`, also records what the splits hold.
"""

from __future__ import annotations

from pdiff_hub.tasks.loading import load_task
from pdiff_hub.tasks.recorded import load_recorded_task
from pdiff_hub.tasks.spec import TASK_NAMES, described_pixels, hub_id_of
from pdiff_hub.tasks.task import Split, Task

__all__ = ["TASK_NAMES", "Split", "Task", "described_pixels", "hub_id_of", "load_recorded_task", "load_task"]
