"""Images that were given in Python have a name as well, which works in the process that was given them.

Data sets of checkpoints and pipelines record their task by name. Images in memory are called
`memory:images-DIGEST`, after what they hold. So a run that is started again in another process knows whether it was
given the same images, and a task's options, splits and fingerprint work as for any other data set.
"""

from __future__ import annotations

from typing import Any, Protocol
from weakref import WeakValueDictionary

from pdiff_hub.errors import PdiffError
from pdiff_hub.tasks.source import Source

PREFIX = "memory:"
_DEFAULT_TEST_SIZE = 0.2


class GivenImages(Protocol):
    """Images and labels in memory. Whoever needs them must hold them: they may be large."""

    @property
    def name(self) -> str: ...

    def open(self, options: dict[str, Any]) -> Source:
        """The images as `load_task` reads them."""


_given: WeakValueDictionary[str, GivenImages] = WeakValueDictionary()


def is_in_memory(dataset: str) -> bool:
    """Whether a data set's name is that of images that were given in Python."""
    return dataset.startswith(PREFIX)


def keep(images: GivenImages) -> GivenImages:
    """Lets `load_task` find these images by their name as long as somebody holds what is returned.

    These are the same images that were given before, if they are: else all holders of a name would have to stay.
    """
    return _given.setdefault(images.name, images)


def open_given(options: dict[str, Any]) -> Source:
    """The source of images in memory. Without a split "test", a fifth is cut off unless the options say otherwise.

    ValueError if these images were not given in this process, or are gone.
    """
    images = _given.get(options["dataset"])
    if images is None:
        raise PdiffError(
            f"the images {options['dataset']!r} were given in Python and are not on the disk: give the same ones again "
            "(PDiffTrainer(task=...)); to judge networks, the folder that holds them will do (--images FOLDER, or "
            "images=FOLDER in Python)"
        )
    source = images.open(options)
    if "test" not in source.labels and options["test_size"] is None:
        options["test_size"] = _DEFAULT_TEST_SIZE
    return source
