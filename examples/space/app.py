"""A Space: ask for networks of tasks that nobody trained, or sample some and see how good and how new they are.

Run: python examples/space/app.py [--pipeline FOLDER_NAME_OR_HUB_ID ...] [--host 127.0.0.1] [--port 7860]
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Sequence
from functools import lru_cache, wraps
from html import escape
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # gradio reads this when it is imported

import gradio as gr
import views
from ask_tab import ask_tab
from asking import EXPLAINED, whole_seed
from drawing import digit_image, read_strokes, vote
from fit_tab import fit_tab
from look import COLORS, STYLE, theme
from opening import MOST_STEPS, Opened, find_pipeline, local_pipelines, open_pipeline, pull_pipeline
from pad import drawing_pad
from pictures import accuracy_picture, novelty_pictures, path_picture
from sampling import (
    FIRST_SAMPLE,
    MOST_NETWORKS,
    Sample,
    accuracy_by_step,
    logits_of,
    method_points,
    sample,
    sample_verdict,
    write_network,
)

from pdiff_hub.errors import printable

_TABS_OF_SAMPLES = 4
_READERS = 10  # networks that read a drawing
_BY_STEP = "Accuracy on the way"
_EMPTY = "The answer appears here with the first stroke."
_NO_DIGITS = "The networks of this pipeline do not read 8 x 8 digits, so there is nothing to draw."

Where = tuple[str, str]
"""A pipeline's folder and name, which a visitor's session remembers."""
Settings = tuple[str, str, int, int, int]
"""Folder, name, number, seed and steps. `sample` gives the same networks for the same settings."""


def told(work: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `work`, so that errors that the package explains in a sentence show the visitor that sentence."""

    @wraps(work)
    def safely(*arguments: Any) -> Any:
        try:
            return work(*arguments)
        except EXPLAINED as error:
            raise gr.Error(escape(str(error)), duration=None, print_exception=False) from error

    return safely


def again(settings: Settings | None) -> Sample:
    """The sample of a session. It is made again if it is no longer kept."""
    if settings is None:
        raise ValueError("there are no networks yet; sample some first.")
    folder, name, *numbers = settings
    return sample(open_pipeline(Path(folder), name), *numbers)


def show_pipeline(before: Opened | None, opened: Opened) -> tuple[Any, ...]:
    """The values of everything on the page that depends on the pipeline and not on a sample.

    before: what was open until now.
    """
    return (
        (str(opened.folder), opened.name),
        views.pipeline_view(opened),
        views.results_view(opened),
        gr.Slider(maximum=opened.most_steps, value=opened.steps),
        # Networks that have a task each cannot be judged together, so the tabs about samples are hidden. With
        # visible=False, Gradio goes on showing a tab that was visible when the page was built.
        *(gr.Tab(visible="hidden" if opened.own_tasks else True) for _ in range(_TABS_OF_SAMPLES)),
        _tab_to_select(before, opened),
    )


def _tab_to_select(before: Opened | None, opened: Opened) -> gr.Tabs:
    """Another tab, if the visitor may be on one that is hidden now."""
    if opened.own_tasks:
        return gr.Tabs(selected="fit" if opened.pipe.conditions is None else "ask")
    gone = before is not None and (before.own_tasks or (before.pipe.conditions and not opened.pipe.conditions))
    return gr.Tabs(selected="sample") if gone else gr.Tabs()


@told
def draw_sample(
    where: Where | None, number: float, seed: float | None, steps: float, directory: Path
) -> tuple[Any, ...]:
    """The numbers of a sample, the choice of a network and its file, and an empty pad for the new networks."""
    if where is None:
        raise ValueError("no pipeline is open; choose one above.")
    settings = (*where, int(number), whole_seed(seed), int(steps))
    if open_pipeline(Path(where[0]), where[1]).own_tasks:
        return None, views.own_tasks_view(), "", gr.Dropdown(choices=[], value=None), None, "", views.no_answer_view("")
    drawn = again(settings)
    choices = [
        (f"network {index} ({100 * float(accuracy):.2f} % on test)", index)
        for index, accuracy in enumerate(drawn.judged.test.accuracy_B)
    ]
    waiting = _EMPTY if drawn.opened.reads_digits else _NO_DIGITS
    return (
        settings,
        views.summary_view(drawn),
        views.networks_view(drawn),
        gr.Dropdown(choices=choices, value=0),
        str(write_network(drawn, 0, directory)),
        "",
        views.no_answer_view(waiting),
    )


@told
def show_pictures(settings: Settings | None, directory: Path) -> tuple[Any, ...]:
    if settings is None:  # networks that cannot be judged; nothing shows these pictures
        return "", None, None, "", None, None
    return draw_pictures(again(settings), directory)


@lru_cache(maxsize=16)
def draw_pictures(drawn: Sample, directory: Path) -> tuple[Any, ...]:
    """The pictures of a sample and texts about them. They are kept, since most visitors see the same first sample."""
    points = method_points(drawn)
    similarity = frontier = None
    text = ""
    if points:
        similarity, frontier = novelty_pictures(drawn, points, directory)
        text = sample_verdict(points, drawn.opened.judge.task.num_classes)
    steps, accuracy_sM = accuracy_by_step(drawn)
    start, end = (f"{100 * float(accuracy_sM[step].mean()):.1f} %" for step in (0, -1))
    note = f"Pure noise, decoded, has {start} on average; after the last step it is {end}."
    return (
        views.sample_verdict_view(drawn, text),
        similarity,
        frontier,
        views.caption(_BY_STEP, note),
        accuracy_picture(drawn, steps, accuracy_sM, directory),
        path_picture(drawn, directory),
    )


@told
def read_drawing(strokes: str, settings: Settings | None) -> str:
    if not strokes:
        return views.no_answer_view(_EMPTY)
    drawn = again(settings)
    if not drawn.opened.reads_digits:
        raise ValueError(_NO_DIGITS)
    image_HW = digit_image(read_strokes(strokes))
    return views.answer_view(vote(logits_of(drawn, image_HW, _READERS)), image_HW)


@told
def network_file(index: int, settings: Settings | None, directory: Path) -> str:
    return str(write_network(again(settings), index, directory))


def build(given: Sequence[Where], directory: Path) -> gr.Blocks:
    """The page. given: folders and names of pipelines to choose from besides those here; the first is opened first.
    directory: for pictures and files."""

    def picture(title: str, note: str = "") -> tuple[gr.HTML, gr.Image]:
        """A heading with a note, and a picture below it."""
        with gr.Column(min_width=300):
            caption = gr.HTML(views.caption(title, note))
            image = gr.Image(
                label=title,
                show_label=False,
                type="filepath",
                interactive=False,
                buttons=["download", "fullscreen"],
                elem_classes="pd-picture",
            )
        return caption, image

    first = given[0]
    # Pipelines of the Hub are not in the list: they are opened by their id.
    places = local_pipelines() | {name: Path(folder) for folder, name in given if "/" not in name}
    with gr.Blocks(title=views.TITLE, analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        where, settings, pulled = gr.State(None), gr.State(None), gr.State(None)
        gr.HTML(views.INTRODUCTION)
        with gr.Row(equal_height=False):
            local = gr.Dropdown(
                list(places),
                value=first[1] if first[1] in places else None,
                label="Pipeline",
                min_width=240,
                info="Those that lie here with their weights.",
                elem_id="local",
            )
            hub_id = gr.Textbox(
                label="or one from the Hub",
                placeholder="owner/name",
                max_lines=1,
                min_width=240,
                submit_btn="Open",
                elem_id="hub",
                info="Only weights are loaded; code in the repository is never run.",
            )
        about = gr.HTML(elem_id="pipeline")
        # Only one piece of work runs at a time: schedulers hold the state of a sampling run, and torch uses all cores.
        alone: dict[str, Any] = {
            "concurrency_id": "networks",
            "concurrency_limit": 1,
            "api_visibility": "private",
        }
        with gr.Tabs(overflow_behavior="wrap") as tabs:  # seven are wider than a phone
            with gr.Tab("Sample", id="sample") as sample_tab, gr.Row(equal_height=False):
                with gr.Column(scale=2, min_width=280):
                    number = gr.Slider(1, MOST_NETWORKS, value=FIRST_SAMPLE, step=1, label="Networks", elem_id="number")
                    steps = gr.Slider(1, MOST_STEPS, value=50, step=1, label="Sampling steps")
                    seed = gr.Number(
                        0,
                        precision=0,
                        minimum=0,
                        label="Seed",
                        elem_id="seed",
                        info="The same seed always gives the same networks.",
                    )
                    go = gr.Button("Sample networks", variant="primary", elem_id="sample")
                    choice = gr.Dropdown([], label="Take one home", elem_id="choice")
                    download = gr.DownloadButton("Download .safetensors", elem_id="download")
                with gr.Column(scale=4, min_width=320):
                    summary = gr.HTML(elem_id="summary")
                    table = gr.HTML(elem_id="networks")
            with gr.Tab("Copied?") as copied_tab:
                sample_says = gr.HTML(elem_id="sample-verdict")
                with gr.Row():
                    _, similarity = picture(
                        "Accuracy against similarity", "To the right: networks that err as an original does, so copies."
                    )
                    _, frontier = picture(
                        "The frontier", "Up is more accurate, to the right is newer; higher lines are better."
                    )
            with gr.Tab("Path") as path_tab, gr.Row():
                start_says, by_step = picture(_BY_STEP)
                _, path = picture(
                    "The way itself", "Latents of the first networks of the sample, among those of the originals."
                )
            with gr.Tab("Draw") as draw_tab, gr.Row(equal_height=False):
                with gr.Column(scale=2, min_width=280):
                    pad = drawing_pad(elem_id="pad")
                    clear = gr.Button("Clear", elem_id="clear")
                with gr.Column(scale=3, min_width=320):
                    answer = gr.HTML(views.no_answer_view(_EMPTY), elem_id="answer")
            asking, fitting = ask_tab(where, alone), fit_tab(where, alone)
            with gr.Tab("Numbers"):
                gr.Markdown(views.EXPLANATION)
                results = gr.HTML(elem_id="results")

        def once(*arguments: Any) -> tuple[Any, ...]:
            return draw_sample(*arguments, directory)

        def show(kept: Where | None, folder: str | Path, name: str) -> tuple[Any, ...]:
            before = None if kept is None else open_pipeline(Path(kept[0]), kept[1])
            opened = open_pipeline(Path(folder), name)
            return *show_pipeline(before, opened), *asking.show(opened), *fitting.show(opened)

        of_samples = [sample_tab, copied_tab, path_tab, draw_tab, tabs]
        of_pipeline = [where, about, results, steps, *of_samples, *asking.of_pipeline, *fitting.of_pipeline]
        of_sample = [settings, summary, table, choice, download, pad, answer]
        of_pictures = [sample_says, similarity, frontier, start_says, by_step, path]
        opened = [
            page.load(told(lambda: show(None, *first)), None, of_pipeline, **alone),
            local.input(told(lambda kept, name: show(kept, places[name], name)), [where, local], of_pipeline, **alone),
            # Downloads run beside the work, so that a slow one stops nobody.
            hub_id.submit(
                told(lambda text: (str(pull_pipeline(text)), text.strip())),
                hub_id,
                pulled,
                concurrency_id="pulls",
                concurrency_limit=4,
                api_visibility="private",
            ).success(told(lambda kept, there: show(kept, *there)), [where, pulled], of_pipeline, **alone),
        ]
        sampled = [each.success(once, [where, number, seed, steps], of_sample, **alone) for each in opened]
        sampled.append(go.click(once, [where, number, seed, steps], of_sample, **alone))
        for each in sampled:
            each.success(
                lambda kept: show_pictures(kept, directory),
                settings,
                of_pictures,
                show_progress_on=[similarity, frontier, by_step, path],
                **alone,
            )
        choice.input(lambda index, kept: network_file(index, kept, directory), [choice, settings], download, **alone)
        pad.input(read_drawing, [pad, settings], answer, show_progress="hidden", **alone)
        clear.click(lambda: ("", views.no_answer_view(_EMPTY)), None, [pad, answer], api_visibility="private")
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--pipeline",
        nargs="+",
        default=["digits-subsets"],
        help="a folder, a name under pipelines/ or a Hub id, which is opened first; then others to choose from",
    )
    parser.add_argument("--host", help="address to listen on; by default this machine only, in a Space as it asks")
    parser.add_argument("--port", type=int, help="port to listen on; by default the first free one from 7860")
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="call the functions (module:function) that these pipelines name; read them first: they can do anything",
    )
    args = parser.parse_args()
    try:
        given = [find_pipeline(text, args.trust_remote_code) for text in args.pipeline]
        open_pipeline(Path(given[0][0]), given[0][1])  # what is wrong with it is said before the page is there
    except EXPLAINED as error:
        raise SystemExit(f"app.py: {printable(str(error))}") from None
    with tempfile.TemporaryDirectory(prefix="pdiff-space-") as directory:
        page = build(given, Path(directory))
        page.launch(
            server_name=args.host,
            server_port=args.port,
            theme=theme(),
            css=COLORS,
            css_paths=STYLE,
            footer_links=["gradio"],
            run_history=False,
            ssr_mode=False,
            share=False,
        )


if __name__ == "__main__":
    main()
