"""How judging is shared out between the processes of a run: some networks of a set, or some of the baselines, for each.

What comes out has no part that depends on the number of processes, but for float rounding where networks are batched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from pdiff_hub.checkpoints.rows import PickedRows, Rows
from pdiff_hub.evaluation.baselines import Variant
from pdiff_hub.processes import this_run

_Found = TypeVar("_Found")
_IMAGES_OF_STEP = 64 * 3  # a step of fine-tuning sees 64, and its backward pass takes twice as long


def by_rows(work: Callable[[Rows], _Found], rows: Rows, join: Callable[[Sequence[_Found]], _Found]) -> _Found:
    """What `work` finds of the networks `rows`, each process having worked on its share; `join` puts it together."""
    here = this_run()
    if here.count == 1:
        return work(rows)
    own = here.share(rows.num_rows)
    part = work(PickedRows(rows, own)) if own else None
    return join([each for each in here.gathered(part) if each is not None])


def by_names(costs: Mapping[str, float], work: Callable[[str], _Found]) -> dict[str, _Found]:
    """What `work` finds for each name, each process having worked for some. costs: about what each takes."""
    here, names = this_run(), list(costs)
    own = {names[index]: work(names[index]) for index in here.share_by_cost(list(costs.values()))}
    found = {name: each for part in here.gathered(own) for name, each in part.items()}
    return {name: found[name] for name in names}


def costs_of(variants: Sequence[Variant], num_images: int) -> dict[str, float]:
    """About what a network of each baseline takes: most of the time goes into the images that it sees.

    num_images: on which it is judged.
    """
    return {variant.name: num_images + _IMAGES_OF_STEP * variant.steps for variant in variants}
