"""What five networks say, in words and as HTML. Every text that comes from a pipeline's files is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import torch
import views
from asking import (
    EXPLAINED,
    Fitting,
    Five,
    Request,
    Wanted,
    answer_logits,
    drawn_image,
    five_of,
    given_labels,
    make_request,
    read_examples,
    what_is_known,
)
from drawing import Vote, vote
from labelling import picture_url
from opening import Opened, open_pipeline
from torch import Tensor

ASK_FIRST = "Say above what the networks are for, and get five."
FIT_FIRST = "Label pictures above, and get five networks."
_EMPTY = "Draw a digit, or take a test picture: the answers of the five networks appear here."
_NO_PAD = "Take a test picture: the answers of the five networks appear here."

_ALIKE, _APART = 0.1, 0.4  # the least and the largest probability of five networks that agree closely, or differ widely
_MOST_SHOWN = 20  # classes in a chart
_FITTED = (
    "These labels are all that the networks know of your task. Where they do not decide, the five may differ, and "
    "where the pipeline knows no network for such a task, all five may be wrong together."
)
_ONE_TASK = (
    "This pipeline was trained on networks of one task only. Labels choose among those; another rule than that task's "
    "is hardly followed."
)


Where = tuple[str, str]
"""A pipeline's folder and name."""
Shown = tuple[Wanted | None, str, str]
"""What a session remembers, the summary, and the answers to the picture that is there."""


def opened_at(where: Where | None) -> Opened:
    if where is None:
        raise ValueError("no pipeline is open; choose one above.")
    return open_pipeline(Path(where[0]), where[1])


def get_five(
    where: Where | None,
    values: Mapping[str, Any],
    guidance: float,
    seed: float | None,
    strokes: str,
    picture: int | None,
) -> Shown:
    """Five networks that are asked for, or a sentence why not. values: what the page has, by the kind of condition."""
    try:
        opened = opened_at(where)
        spec = opened.pipe.conditions
        request = make_request(opened, None if spec is None else values[spec.kind], guidance, seed)
        wanted = (str(opened.folder), opened.name, request)
        return wanted, asked_view(five_of(wanted), request), read(wanted, strokes, picture, ASK_FIRST)
    except EXPLAINED as error:
        return None, views.error_view(error), views.no_answer_view(ASK_FIRST)


def fit_five(where: Where | None, tiles: str, strokes: str, picture: int | None) -> Shown:
    """Five networks that are fitted to labelled pictures, or a sentence why not."""
    try:
        opened = opened_at(where)
        examples = read_examples(opened, tiles)
        wanted = (str(opened.folder), opened.name, Fitting(examples))
        five = five_of(wanted)
        shown = fitted_view(five, [label for _, label in examples], given_labels(five, examples))
        return wanted, shown, read(wanted, strokes, picture, FIT_FIRST)
    except EXPLAINED as error:
        return None, views.error_view(error), views.no_answer_view(FIT_FIRST)


def read(kept: Wanted | None, strokes: str, picture: int | None, without: str) -> str:
    """What the five networks answer to the drawing, or else to the test picture; or a sentence why nothing."""
    if kept is None:
        return views.no_answer_view(without)
    try:
        five = five_of(kept)
        test, label = five.opened.judge.task.test, None
        if strokes:
            image_CHW = drawn_image(five.opened, strokes)
        elif picture is not None and 0 <= picture < len(test):
            image_CHW, label = test.images_NCHW[picture], int(test.labels_N[picture])
        else:
            return views.no_answer_view(_EMPTY if five.opened.reads_digits else _NO_PAD)
        return drawn_view(vote(answer_logits(five, image_CHW)), five, image_CHW, label)
    except EXPLAINED as error:
        return views.error_view(error)


def asked_view(five: Five, request: Request) -> str:
    """Five networks that were asked for: what for, how good they are as far as that can be known, and what is known."""
    yes_no = five.opened.answers == ("no", "yes")
    question = f"Is it one of {escape(request.wording)}?" if yes_no else f"Networks for {escape(request.wording)}"
    return _found("Five networks were asked for", question, five, what_is_known(five.opened, request))


def fitted_view(five: Five, labels: Sequence[int], given: int) -> str:
    """Five networks that were fitted. labels: of the examples; given: how many of them the five together give."""
    names = five.opened.answers
    counts = ", ".join(f"{labels.count(index)} {name}" for index, name in enumerate(names) if index in labels)
    title = f"Together they give {given} of {len(labels)} labels"
    return _found(
        f"Five networks were fitted to {counts}", title, five, _FITTED if five.opened.own_tasks else _ONE_TASK
    )


def drawn_view(answers: Vote, five: Five, image_CHW: Tensor, label: int | None = None) -> str:
    """What each of the five networks answers to a picture, how sure it is, their mean, and how much they differ.

    label: the class of the picture, where it is known.
    """
    names = [escape(name) for name in five.opened.answers]
    winner = names[answers.winner]
    truth = ""
    if label is not None:
        right = "" if five.truth_k is None else f", so {names[five.truth_k[label]]} is right"
        truth = f"<br>It is of class {escape(five.opened.classes[label])}{right}."
    big = "pd-digit" if len(winner) == 1 else "pd-digit pd-long"
    rows = "".join(
        f'<div class="pd-bar pd-five{" pd-won" if int(answer) == answers.winner else ""}"><span>network {index}</span>'
        f'<div><i style="width:{100 * float(share):.1f}%"></i></div><b>{names[int(answer)]}</b>'
        f"<span>{_percent(confidence)}</span></div>"
        for index, (answer, confidence, share) in enumerate(
            zip(answers.answers_N, answers.confidence_N, answers.of_winner_N, strict=True)
        )
    )
    return (
        f'<div class="pd-answer"><div class="pd-said pd-wrap"><div class="{big}">{winner}</div><div>'
        f"<b>{in_words(answers)} say {winner}.</b><br>{_sure(answers, winner)}{truth}</div>"
        f"<figure>{_picture(image_CHW)}<figcaption>what they see</figcaption></figure></div>"
        f'<div class="pd-bars">{rows}</div>'
        f'<p class="pd-note">Bars: each network\'s probability of {winner}. At the right: its own answer, and its '
        "probability of that.</p></div>"
    )


def in_words(answers: Vote) -> str:
    """How many give the winning answer: "4 of 5", "all 5"."""
    most, number = int(answers.votes_c[answers.winner]), len(answers.answers_N)
    return f"All {number}" if most == number else f"{most} of {number}"


def _sure(answers: Vote, winner: str) -> str:
    low, high = float(answers.of_winner_N.min()), float(answers.of_winner_N.max())
    mean = f"Their mean probability of {winner} is {_percent(answers.probability_c[answers.winner])}"
    how = "agree closely" if high - low <= _ALIKE else f"differ {'somewhat' if high - low <= _APART else 'widely'}"
    span = "" if _percent(low) == _percent(high) else f", from {_percent(low)} to {_percent(high)}"
    return f"{mean}; they {how}{span}."


def _found(small: str, title: str, five: Five, honest: str) -> str:
    return (
        f'<div class="pd-answer"><small>{escape(small)}</small><h3>{title}</h3>{_how_good(five)}{_chart(five)}'
        f'<p class="pd-honest">{escape(honest)}</p></div>'
    )


def _how_good(five: Five) -> str:
    looked = five.looked
    if looked.right_N is None or looked.together is None or looked.usual is None:
        return ""
    least, most = _percent(looked.right_N.min()), _percent(looked.right_N.max())
    each = least if least == most else f"{least} to {most}"
    as_they_are = "" if five.opened.own_tasks else " as they are,"
    return (
        f"<p>On {looked.number:,} test pictures{as_they_are} each network is right on {each}, and the five together on "
        f"<b>{_percent(looked.together)}</b>. Who always answers the same is right on {_percent(looked.usual)}.</p>"
    )


def _chart(five: Five) -> str:
    """For each class of the pictures: how often the five together say yes, or what they say most often."""
    names, classes, said_kc = five.opened.answers, five.opened.classes, five.looked.said_kc
    if len(classes) > _MOST_SHOWN:
        return ""
    yes_no = names == ("no", "yes")
    shown_k = torch.ones(len(classes), dtype=torch.int64) if yes_no else said_kc.argmax(dim=1)
    rows = []
    for index, (name, shown) in enumerate(zip(classes, shown_k.tolist(), strict=True)):
        share = float(said_kc[index, shown])
        asked = five.truth_k is not None and (five.truth_k[index] == 1 if yes_no else five.truth_k[index] == shown)
        text = "" if yes_no else f"{escape(names[shown])}: "
        rows.append(
            f'<div class="pd-bar pd-class{" pd-won" if asked else ""}"><span>{escape(name)}</span><div>'
            f'<i style="width:{100 * share:.1f}%"></i></div><span>{text}{_percent(share)}</span></div>'
        )
    what = "how often the five together say yes" if yes_no else "what the five together say most often"
    asked_for = " Those that were asked for are in orange." if five.truth_k is not None and yes_no else ""
    return (
        f'<p class="pd-note">Test pictures of each class, and {what}.{asked_for}</p>'
        f'<div class="pd-bars pd-classes">{"".join(rows)}</div>'
    )


def _picture(image_CHW: Tensor) -> str:
    return f'<img class="pd-seen" src="{picture_url(image_CHW)}" alt="The picture, as the networks see it">'


def _percent(share: Tensor | float) -> str:
    """Rounded to whole percent; never 0 or 100 for what is not quite so."""
    value = 100 * float(share)
    if 0 < value < 1:
        return "under 1\u00a0%"
    if 99 < value < 100:
        return "over 99\u00a0%"
    return f"{value:.0f}\u00a0%"
