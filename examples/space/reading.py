"""The lower half of the tabs Ask and Fit: a pad, pictures to try, and what five networks answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr
import torch
import views
from answers import read
from asking import Wanted, five_of
from opening import Opened
from pad import drawing_pad


@dataclass(frozen=True)
class Reading:
    """pad: its value is strokes. picture: the number of a test picture, used while the pad is empty, or None.

    buttons: those that need a pad. without: said while there are no networks.
    """

    pad: gr.HTML
    picture: gr.State
    answer: gr.HTML
    buttons: tuple[gr.Button, ...]
    without: str

    @property
    def of_picture(self) -> list[Any]:
        """What is drawn or taken, and what is said of it."""
        return [self.pad, self.picture, self.answer]

    @property
    def of_pipeline(self) -> list[Any]:
        """What `show` gives values for."""
        return [*self.of_picture, *self.buttons]

    def show(self, opened: Opened) -> tuple[Any, ...]:
        """An empty pad, or none for networks that do not read digits."""
        draws = opened.reads_digits
        buttons = (gr.Button(visible=draws) for _ in self.buttons)
        return gr.HTML(value="", visible=draws), None, views.no_answer_view(self.without), *buttons


def reading(name: str, wanted: gr.State, without: str, alone: Mapping[str, Any], *more: str) -> Reading:
    """Builds the pad and the answers. wanted: whose five networks read. without: said while there are none.

    name: begins the ids. more: labels of further buttons below the pad, which the caller wires.
    """

    def answer(kept: Wanted | None, strokes: str, picture: int | None) -> str:
        return read(kept, strokes, picture, without)

    def try_picture(kept: Wanted | None) -> tuple[Any, ...]:
        if kept is None:
            return "", None, views.no_answer_view(without)
        number = len(five_of(kept).opened.judge.task.test)
        picture = int(torch.randint(number, ()))
        return "", picture, answer(kept, "", picture)

    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=280):
            pad = drawing_pad(elem_id=f"{name}-pad")
            added = [gr.Button(label, elem_id=f"{name}-{label.split()[0].lower()}") for label in more]
            with gr.Row():
                clear = gr.Button("Clear", elem_id=f"{name}-clear", min_width=100)
                other = gr.Button("A test picture", elem_id=f"{name}-test", min_width=100)
        with gr.Column(scale=3, min_width=320):
            shown = gr.HTML(views.no_answer_view(without), elem_id=f"{name}-answer")
    picture = gr.State(None)
    pad.input(answer, [wanted, pad, picture], shown, show_progress="hidden", **alone)
    other.click(try_picture, wanted, [pad, picture, shown], show_progress="hidden", **alone)
    clear.click(
        lambda kept: ("", None, answer(kept, "", None)), wanted, [pad, picture, shown], show_progress="hidden", **alone
    )
    return Reading(pad, picture, shown, (clear, *added), without)
