"""The tab Fit: label a few pictures, get five networks that give these labels, and see what they answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr
import views
from answers import FIT_FIRST, Where, fit_five, opened_at
from asking import EXPLAINED
from grid import label_grid
from labelling import first_tiles, other_tiles, with_drawing
from opening import Opened
from reading import Reading, reading

_HINT = "Label about twenty pictures by a rule of your own. Networks that follow it appear here."
_ONE_TASK = "Label about twenty pictures. Networks that give these labels appear here."


@dataclass(frozen=True)
class FitTab:
    grid: gr.HTML
    wanted: gr.State
    summary: gr.HTML
    reading: Reading

    @property
    def of_pipeline(self) -> list[Any]:
        """What `show` gives values for."""
        return [self.grid, self.wanted, self.summary, *self.reading.of_pipeline]

    def show(self, opened: Opened) -> tuple[Any, ...]:
        """Pictures of a pipeline's task without labels, and nothing fitted."""
        hint = _HINT if opened.own_tasks else _ONE_TASK
        return first_tiles(opened), None, views.no_answer_view(hint), *self.reading.show(opened)


def fit_tab(where: gr.State, alone: Mapping[str, Any]) -> FitTab:
    """Builds the tab. where: folder and name of the open pipeline. alone: how networks' work is queued."""
    with gr.Tab("Fit", id="fit"):
        wanted = gr.State(None)
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=320):
                grid = label_grid("fit-grid")
                with gr.Row():
                    go = gr.Button("Fit five networks", variant="primary", elem_id="fit-go", min_width=140)
                    others = gr.Button("Other pictures", elem_id="fit-others", min_width=140)
            with gr.Column(scale=3, min_width=320):
                summary = gr.HTML(views.no_answer_view(_HINT), elem_id="fit-summary")
        reader = reading("fit", wanted, FIT_FIRST, alone, "Add to the labelled pictures")
    go.click(
        fit_five,
        [where, grid, reader.pad, reader.picture],
        [wanted, summary, reader.answer],
        show_progress_on=summary,
        **alone,
    )
    others.click(_others, [where, grid], [grid, summary], show_progress="hidden", **alone)
    add = reader.buttons[1]
    add.click(_add, [where, grid, reader.pad], [grid, *reader.of_picture], show_progress="hidden", **alone)
    return FitTab(grid, wanted, summary, reader)


def _others(where: Where | None, tiles: str) -> tuple[Any, Any]:
    try:
        return other_tiles(opened_at(where), tiles), gr.skip()
    except EXPLAINED as error:
        return gr.skip(), views.error_view(error)


def _add(where: Where | None, tiles: str, strokes: str) -> tuple[Any, ...]:
    """The drawing becomes a labelled picture, and the pad is empty for the next one."""
    try:
        added = with_drawing(opened_at(where), tiles, strokes)
        return added, "", None, views.no_answer_view("Added, with the label that is chosen above. Draw the next one.")
    except EXPLAINED as error:
        return gr.skip(), gr.skip(), gr.skip(), views.error_view(error)
