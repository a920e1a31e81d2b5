"""The texts of the page, as HTML. Every text that comes from a pipeline's files is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

import torch
from drawing import SIDE, Vote
from opening import Opened
from sampling import Sample, table_rows
from torch import Tensor

from pdiff_hub.evaluation.table import accuracy_note, label, result_tables, verdict
from pdiff_hub.records import Measurements

TITLE = "Networks out of noise"
INTRODUCTION = f"""<header class="pd-head"><h1>{TITLE}</h1>
<p>A diffusion model makes <b>the weights of whole neural networks</b>. Ask for one that nobody trained, or label twenty
pictures and get one that fits. Or sample some: are they new, or only copies of those that the model learned from?</p>
</header>"""

EXPLANATION = """
**Accuracy** is measured on a test split that neither the networks nor the diffusion model ever saw.

**Highest IoU** asks whether a network is a copy. Take the test images that two networks get wrong: the images that both
get wrong, divided by those that at least one gets wrong. 1 means the same errors, 0 means none in common. The table has
the highest value over all *originals*, the checkpoints that the diffusion model was trained on. **Novelty** is 1 less
that.

**L2 to the nearest original** is the distance of the weights themselves; 0 is an exact copy.

**The frontier** is the highest accuracy at a novelty or more. A generator is worth its name only if it is above simple
ways to make networks of the same checkpoints: their average, random numbers of the right mean and spread, or
checkpoints with some noise added.

**Ask and Fit**: five networks for what you ask, or for the pictures that you label. Their mean answer is better than
most single ones, and where they differ, none is sure. What they were never trained on is said as far as the checkpoints
that lie beside the pipeline tell it; where these are missing, nobody can tell it here.

**Ten networks read your digit**: votes are their answers; the mean probability is what an ensemble of them answers;
disagreement is the share of networks that answer something else than most. Networks that are near copies of each other
agree even where all of them are wrong.

A seed and a number of steps always give the same networks, here and by
`pdiff generate PIPELINE --num-models N --seed S`. Method:
[Neural Network Diffusion](https://arxiv.org/abs/2402.13144); the audit follows
[arXiv 2506.07998](https://arxiv.org/abs/2506.07998).
"""


def pipeline_view(opened: Opened) -> str:
    """Facts about the pipeline, and its verdict."""
    layout, task = opened.judge.layout, opened.judge.task
    known = "unknown" if opened.originals is None else f"{len(opened.originals):,}"
    network = str(opened.pipe.autoencoder.config.network["name"])
    facts = (
        ("makes", network),
        ("for", str(task.spec["dataset"])),
        ("numbers each", f"{layout.num_params:,}"),
        ("originals here", known),
        ("test images", f"{len(task.test):,}"),
    )
    return f'<div class="pd-facts">{"".join(_fact(*each) for each in facts)}</div>{_verdict(opened)}'


def _verdict(opened: Opened) -> str:
    missing = f"<p>{escape(opened.gone)}</p>" if opened.gone else ""
    results = opened.results
    if results is None or results.measured is None:
        nothing = "This pipeline has no results.json, so it has not been audited."
        return _callout("No verdict", opened.damage or nothing, missing)
    measured = results.measured
    numbers = f"Measured on {measured.num_generated:,} generated networks when the pipeline was made"
    means = {name: f"{100 * row.mean:.2f} %" for name, row in measured.accuracy.items()}
    if "generated" in means and "original" in means:
        numbers += f": mean accuracy {means['generated']} (originals {means['original']})"
    if measured.similarity is not None and measured.similarity.original_generated_max is not None:
        highest = measured.similarity.original_generated_max
        numbers += f", mean highest IoU with an original {highest:.3f}, where 1 is the same errors"
    whole = f"<p>{escape(verdict(results))}</p><p>{escape(numbers)}.</p>"
    more = f"<details><summary>all of it</summary>{whole}</details>{missing}"
    return _callout("The verdict of its audit", _in_brief(measured), more)


def _in_brief(measured: Measurements) -> str:
    """Copies, and what is better than the generator: the whole verdict would hide what the page is for."""
    if measured.requests is not None and measured.requests.unseen:
        return " ".join(measured.requests.verdicts[:2])
    said = [] if measured.copies is None else [measured.copies.sentence]
    if measured.training is not None and measured.training.kept == 0:
        said.append("Training gained nothing.")
    if measured.frontier is not None:
        ways = {label(name): each.verdict for name, each in measured.frontier.versus.items()}
        better = [name for name, decided in ways.items() if decided == "no"]
        won = sum(decided == "yes" for decided in ways.values())
        lost = f"loses to {len(better)} ({', '.join(better)})" if better else "loses to none"
        said.append(
            f"At the same novelty of errors it beats {won} of {len(ways)} simple ways to get networks and {lost}."
        )
    return " ".join(said)


def summary_view(drawn: Sample) -> str:
    """The sample in two to five numbers, depending on what is known."""
    accuracy_N = drawn.judged.test.accuracy_B
    facts = [("mean accuracy", f"{100 * float(accuracy_N.mean()):.2f} %")]
    originals = drawn.opened.judged_originals
    if originals is not None:
        facts.append(("originals, mean", f"{100 * float(originals.test.accuracy_B.mean()):.2f} %"))
    facts.append(("best pick*", f"{100 * drawn.judged.summary().best:.2f} %"))
    if drawn.similarity_N is not None and bool(drawn.similarity_N.isfinite().any()):
        facts.append(("mean highest IoU", f"{float(drawn.similarity_N.nanmean()):.3f}"))
    if drawn.nearest_N is not None:
        facts.append(("mean nearest L2", f"{float(drawn.nearest_N.mean()):.3f}"))
    note = accuracy_note([drawn.judged.summary()])
    if drawn.opened.pipe.conditions is not None:
        note += " Nothing was asked for, so these are networks of every kind that the pipeline knows."
    return (
        f'<div class="pd-facts pd-big">{"".join(_fact(*each) for each in facts)}</div>'
        f'<p class="pd-note">{escape(note)}</p>'
    )


def networks_view(drawn: Sample) -> str:
    """A table with one row per network."""
    columns = (
        "network",
        "accuracy on test [%]",
        f"wrong of {len(drawn.opened.judge.task.test):,}",
        "highest IoU",
        "L2 to nearest",
    )
    return _rows(columns, table_rows(drawn), "pd-table pd-scroll")


def sample_verdict_view(drawn: Sample, verdict_text: str) -> str:
    """The verdict on this sample, with a note that few networks decide little."""
    if not verdict_text:
        return _callout("Nothing to compare with", drawn.opened.gone)
    return _callout(
        f"The same audit, on this sample of {len(drawn)}",
        verdict_text,
        "<p>Fewer networks decide less: with few of them most comparisons stay within the interval.</p>",
    )


def answer_view(answers: Vote, image_HW: Tensor) -> str:
    """What the networks see, what they answer together, and what each of them answers."""
    number = len(answers.answers_N)
    most = int(answers.votes_c[answers.winner])
    head = (
        f'<div class="pd-said"><div class="pd-digit">{answers.winner}</div><div><b>{most} of {number} networks say '
        f"{answers.winner}</b><br>mean probability {100 * float(answers.probability_c[answers.winner]):.1f} %<br>"
        f"disagreement {100 * answers.disagreement:.0f} %</div>"
        f"<figure>{_pixels(image_HW)}<figcaption>what they see</figcaption></figure></div>"
    )
    bars = "".join(
        f'<div class="pd-bar{" pd-won" if c == answers.winner else ""}"><span>{c}</span><div><i style="width:'
        f'{100 * float(probability):.1f}%"></i></div><span>{100 * float(probability):.1f} %</span><span>'
        f"{int(votes)} vote{'' if int(votes) == 1 else 's'}</span></div>"
        for c, (probability, votes) in enumerate(zip(answers.probability_c, answers.votes_c, strict=True))
    )
    each = "".join(
        f"<li{'' if int(answer) == answers.winner else ' class=pd-other'}><small>network {index}</small>"
        f"<b>{int(answer)}</b><small>{100 * float(confidence):.0f} %</small></li>"
        for index, (answer, confidence) in enumerate(zip(answers.answers_N, answers.confidence_N, strict=True))
    )
    return f'<div class="pd-answer">{head}<div class="pd-bars">{bars}</div><ol class="pd-each">{each}</ol></div>'


def caption(title: str, note: str) -> str:
    """A heading over a picture."""
    return f'<div class="pd-caption"><h3>{escape(title)}</h3><p>{escape(note)}</p></div>'


def no_answer_view(text: str) -> str:
    """A text in place of an answer."""
    return f'<div class="pd-answer pd-empty">{escape(text)}</div>'


def error_view(error: Exception) -> str:
    """What went wrong, as a sentence in place of an answer."""
    text = str(error)
    return f'<div class="pd-answer pd-empty pd-wrong" role="alert">{escape(text[:1].upper() + text[1:])}</div>'


def own_tasks_view() -> str:
    """Said in place of a sample of networks that cannot be judged together."""
    return _callout(
        "Nothing to judge",
        "Each network of this pipeline has a task of its own, so no single measure fits them all.",
        "<p>Ask for networks in the tab Ask, or fit some in the tab Fit.</p>",
    )


def results_view(opened: Opened) -> str:
    """The results as tables."""
    measured = None if opened.results is None else opened.results.measured
    if measured is None:
        return f"<p>{escape(opened.damage or 'This pipeline has no results.json.')}</p>"
    return "".join(
        _table(table.title, table.columns, table.rows, table.note) for table in result_tables(measured).values()
    )


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], note: str) -> str:
    return f"<h3>{escape(title)}</h3>{_rows(columns, rows, 'pd-table')}<p><small>{escape(note)}</small></p>"


def _rows(columns: Sequence[str], rows: Iterable[Sequence[str]], look: str) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="{look}"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _fact(name: str, value: str) -> str:
    return f"<div><small>{escape(name)}</small><b>{escape(value)}</b></div>"


def _callout(title: str, text: str, more: str = "") -> str:
    return f'<div class="pd-callout"><small>{escape(title)}</small><b>{escape(text)}</b>{more}</div>'


def _pixels(image_HW: Tensor) -> str:
    """The grey levels as an SVG, white ink on black."""
    cells = "".join(
        f'<rect x="{x}" y="{y}" width="1.02" height="1.02" fill="rgb({v},{v},{v})"/>'
        for y, row in enumerate(image_HW.to(torch.int64).tolist())
        for x, v in enumerate(row)
    )
    return (
        f'<svg viewBox="0 0 {SIDE} {SIDE}" role="img" aria-label="The drawing as {SIDE} x {SIDE} grey '
        f'levels">{cells}</svg>'
    )
