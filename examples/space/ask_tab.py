"""The tab Ask: say what for, get five networks, and see what they answer to a picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr
import views
from answers import ASK_FIRST, Where, get_five
from asking import Wanted, bit_names
from opening import Opened
from reading import Reading, reading

_HINT = "Five networks appear here, and what is known about them."
_BEYOND = 0.25  # of the seen range: so far a slider goes on at both ends


@dataclass(frozen=True)
class AskTab:
    """values: one component per kind of condition, of which one is visible."""

    tab: gr.Tab
    values: tuple[Any, ...]
    wanted: gr.State
    summary: gr.HTML
    reading: Reading

    @property
    def of_pipeline(self) -> list[Any]:
        """What `show` gives values for."""
        return [self.tab, *self.values, self.wanted, self.summary, *self.reading.of_pipeline]

    def show(self, opened: Opened) -> tuple[Any, ...]:
        """The tab for a pipeline: hidden if its networks cannot be asked for."""
        spec = opened.pipe.conditions
        kind = None if spec is None else spec.kind
        ticks, one = gr.CheckboxGroup(visible=False), gr.Radio(visible=False)
        number, numbers = gr.Slider(visible=False), gr.Textbox(visible=False)
        if spec is not None and kind == "bits":
            choices = list(zip(bit_names(opened, spec), spec.names, strict=True))
            label = "Yes for which classes?" if opened.own_tasks else f"Which {spec.name}?"
            ticks = gr.CheckboxGroup(choices=choices, value=[], label=label, visible=True)
        elif spec is not None and kind == "class":
            one = gr.Radio(choices=list(spec.names), value=spec.names[0], label=f"Which {spec.name}?", visible=True)
        elif spec is not None and kind == "scalar":
            (low,), (high,) = spec.low, spec.high
            beyond = _BEYOND * (high - low)
            number = gr.Slider(
                minimum=_rounded(low - beyond),
                maximum=_rounded(high + beyond),
                step=_rounded((high - low) / 100) or 0.01,
                value=_rounded((low + high) / 2),
                label=f"Which {spec.name}?",
                info=f"{low:.4g} to {high:.4g} was seen in training. Outside of it, the networks are a guess.",
                visible=True,
            )
        elif spec is not None:
            encoder = f" that {spec.names[0]} gives for a text" if kind == "text" else ""
            label = f"Which {spec.name}? {spec.size} numbers{encoder}, with commas between them"
            numbers = gr.Textbox(value="", label=label, info=", ".join(spec.names[:20]), visible=True)
        return (
            gr.Tab(visible="hidden" if spec is None else True),
            ticks,
            one,
            number,
            numbers,
            None,
            views.no_answer_view(_HINT),
            *self.reading.show(opened),
        )


def ask_tab(where: gr.State, alone: Mapping[str, Any]) -> AskTab:
    """Builds the tab. where: folder and name of the open pipeline. alone: how networks' work is queued."""
    with gr.Tab("Ask", id="ask", visible=False) as tab:
        wanted = gr.State(None)
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=280):
                ticks = gr.CheckboxGroup([], label="Yes for which classes?", elem_id="ask-ticks")
                one = gr.Radio([], visible=False, elem_id="ask-one")
                number = gr.Slider(0, 1, visible=False, elem_id="ask-number")
                numbers = gr.Textbox(visible=False, max_lines=3, elem_id="ask-numbers")
                with gr.Accordion("Guidance and seed", open=False):
                    guidance = gr.Slider(
                        0, 4, value=1, step=0.1, label="Guidance", info="How strictly to follow; 1 takes it as it is."
                    )
                    seed = gr.Number(
                        0, precision=0, minimum=0, label="Seed", info="Another seed gives five other networks."
                    )
                go = gr.Button("Get five networks", variant="primary", elem_id="ask-go")
            with gr.Column(scale=3, min_width=320):
                summary = gr.HTML(views.no_answer_view(_HINT), elem_id="ask-summary")
        reader = reading("ask", wanted, ASK_FIRST, alone)
    go.click(
        _get,
        [where, ticks, one, number, numbers, guidance, seed, reader.pad, reader.picture],
        [wanted, summary, reader.answer],
        show_progress_on=summary,
        **alone,
    )
    return AskTab(tab, (ticks, one, number, numbers), wanted, summary, reader)


def _get(
    where: Where | None,
    ticks: list[str],
    one: str | None,
    number: float,
    numbers: str,
    guidance: float,
    seed: float | None,
    strokes: str,
    picture: int | None,
) -> tuple[Wanted | None, str, str]:
    values = {"bits": ticks, "class": one, "scalar": number, "vector": numbers, "text": numbers}
    return get_five(where, values, guidance, seed, strokes, picture)


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
