"""Five networks from a pipeline: those that are asked for, and those that fit labelled pictures. And what they answer.

The same request always gives the same networks, so they are kept.
Shapes: N networks, P parameters, n pictures of C channels, k classes of theirs, c answers, D numbers of a condition.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from drawing import digit_image, read_strokes
from opening import Opened, open_pipeline
from sampling import logits_for
from torch import Tensor

from pdiff_hub import ConditionSpec, PDiffPipelineOutput
from pdiff_hub.prediction.predictions import predict_logits
from pdiff_hub.tasks import Split

EXPLAINED = (ValueError, OSError, ImportError)
"""Errors that the package explains in a sentence; files, permissions and connections are OSErrors."""
NETWORKS = 5
_MOST_NUMBERS = 1 << 24  # limit for five networks: gradients and Adam's means hold it several times
_MOST_PICTURES = 1000  # on which networks are looked at
_MOST_EXAMPLES = 200
_SEEDS = 2**63

Example = tuple[int | str, int]
"""A labelled picture: its number in the validation split, or its strokes as the pad sends them; and an answer."""


@dataclass(frozen=True, eq=False)
class Looked:
    """What five networks answer on test pictures.

    said_kc: for each class of the pictures, the shares of answers of the five together (their mean probability).
    right_N: share of right answers of each network; together: of the five together; usual: of always the most frequent
    answer. They are None where nobody knows what is right.
    """

    number: int
    said_kc: Tensor
    right_N: Tensor | None
    together: float | None
    usual: float | None


@dataclass(frozen=True, eq=False)
class Five:
    """Five networks. truth_k: the right answer for each class of the pictures, None where nobody knows it."""

    opened: Opened
    params_NP: Tensor
    truth_k: tuple[int, ...] | None
    looked: Looked


@dataclass(frozen=True)
class Request:
    """What networks are asked for. condition: its D numbers. wording: the same in words."""

    condition: tuple[float, ...]
    wording: str
    guidance: float
    seed: int


@dataclass(frozen=True)
class Fitting:
    """What networks are fitted to."""

    examples: tuple[Example, ...]


Wanted = tuple[str, str, Request | Fitting]
"""Folder and name of a pipeline, and what is wanted of it, which a visitor's session remembers."""


def five_of(wanted: Wanted) -> Five:
    """The networks of a session. They are made again if they are no longer kept."""
    folder, name, what = wanted
    opened = open_pipeline(Path(folder), name)
    return ask(opened, what) if isinstance(what, Request) else fit(opened, what)


def make_request(opened: Opened, value: Any, guidance: float, seed: float | None) -> Request:
    """A request as the page has it. ValueError if nothing is asked for, or something that is no task.

    value: names of bits, one name, a number, or numbers with commas between them, by the kind of condition.
    """
    spec = opened.pipe.conditions
    if spec is None:
        raise ValueError("this pipeline takes no condition: its networks are of one kind.")
    if spec.kind in ("vector", "text"):
        value = [each for each in str(value or "").split(",") if each.strip()]
    if value is None or (isinstance(value, (list, tuple)) and not value):
        raise ValueError(f"nothing is asked for yet; {'tick at least one' if spec.kind == 'bits' else 'say what'}.")
    asked_D = spec.encode(value)
    if spec.kind == "bits" and opened.own_tasks and bool(asked_D.all()):
        raise ValueError("all classes are ticked, so the answer would always be yes; leave at least one out.")
    condition = tuple(asked_D.tolist())
    return Request(condition, _wording(opened, spec, asked_D, value), float(guidance), whole_seed(seed))


def whole_seed(seed: float | None) -> int:
    if seed is None or seed != int(seed) or not 0 <= seed < _SEEDS:
        raise ValueError(f"the seed is {seed}; expected a whole number from 0 on.")
    return int(seed)


def bit_names(opened: Opened, spec: ConditionSpec) -> tuple[str, ...]:
    """The names to show of what can be ticked: those of the classes, where a bit stands for a class."""
    return opened.classes if opened.own_tasks and spec.size == len(opened.classes) else spec.names


def _wording(opened: Opened, spec: ConditionSpec, asked_D: Tensor, value: Any) -> str:
    if spec.kind == "bits":
        return ", ".join(name for name, bit in zip(bit_names(opened, spec), asked_D.tolist(), strict=True) if bit)
    shown = f"{value:g}" if isinstance(value, (int, float)) else str(value) if spec.kind == "class" else "these numbers"
    return f"{spec.name} {shown}"


@lru_cache(maxsize=8)
def ask(opened: Opened, request: Request) -> Five:
    """Five networks for a request."""
    _require_room(opened)
    spec, asked_D = opened.pipe.conditions, torch.tensor(request.condition)
    generator = torch.Generator().manual_seed(request.seed)
    with warnings.catch_warnings():  # a request outside of what was seen: `what_is_known` says it on the page
        warnings.simplefilter("ignore", UserWarning)
        out = opened.pipe(
            NETWORKS, generator=generator, output_type="params", condition=asked_D, guidance_scale=request.guidance
        )
    truth_k = None if opened.own_tasks else tuple(range(len(opened.classes)))
    if opened.own_tasks and spec.kind == "bits" and (spec.size, len(opened.answers)) == (len(opened.classes), 2):
        truth_k = tuple(int(bit) for bit in request.condition)
    assert isinstance(out, PDiffPipelineOutput) and out.params is not None
    return _five(opened, out.params, truth_k)


def read_examples(opened: Opened, text: str) -> tuple[Example, ...]:
    """The labelled pictures of the page's grid. ValueError for none, for one class only, and for anything else."""
    try:
        found = [(tile["of"], tile["label"]) for tile in json.loads(text or "{}").get("tiles", [])]
    except (TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError("the labelled pictures are damaged; reload the page and label again.") from error
    examples = tuple((of, label) for of, label in found if label is not None)
    number = len(opened.judge.task.validation)
    for of, label in examples:
        known = isinstance(of, str) or (type(of) is int and 0 <= of < number)
        if not known or type(label) is not int or not 0 <= label < len(opened.answers):
            raise ValueError("the labelled pictures are of another pipeline; take other pictures and label again.")
    if not examples:
        raise ValueError("nothing is labelled yet; choose a label, then click the pictures that it is for.")
    if len(examples) > _MOST_EXAMPLES:
        raise ValueError(f"{len(examples)} pictures are labelled, expected at most {_MOST_EXAMPLES}.")
    labels = {label for _, label in examples}
    if len(labels) < 2:
        only = opened.answers[labels.pop()]
        raise ValueError(
            f"every label is {only!r}: networks that always answer {only!r} would fit. Label a few pictures otherwise."
        )
    return examples


@lru_cache(maxsize=8)
def fit(opened: Opened, fitting: Fitting) -> Five:
    """Five networks that give the labels."""
    _require_room(opened)
    task = opened.judge.task
    images_nCHW = torch.stack([example_image(opened, of) for of, _ in fitting.examples])
    labels_n = torch.tensor([label for _, label in fitting.examples])
    inputs_nCHW = task.inputs(Split(images_nCHW, labels_n))
    generator = torch.Generator().manual_seed(0)
    out = opened.pipe.fit(inputs_nCHW, labels_n, NETWORKS, generator=generator, trust_remote_code=opened.trusted)
    assert out.params is not None
    return _five(opened, out.params, None)


def example_image(opened: Opened, of: int | str) -> Tensor:
    """uint8 [C,H,W]: the picture of the validation split, or what was drawn."""
    if isinstance(of, str):
        return drawn_image(opened, of)
    return opened.judge.task.validation.images_NCHW[of]


def drawn_image(opened: Opened, strokes: str) -> Tensor:
    """uint8 [1,8,8]. ValueError if nothing is drawn, or if the networks do not read digits."""
    if not opened.reads_digits:
        raise ValueError("the networks of this pipeline do not read 8 x 8 digits, so there is nothing to draw.")
    return digit_image(read_strokes(strokes))[None]


def answer_logits(five: Five, image_CHW: Tensor) -> Tensor:
    """Logits [N,c] of the five networks for one image, uint8 [C,H,W]."""
    return logits_for(five.opened, five.params_NP, image_CHW)


def given_labels(five: Five, examples: Sequence[Example]) -> int:
    """How many of the labels the five networks together give."""
    images_nCHW = torch.stack([example_image(five.opened, of) for of, _ in examples])
    labels_n = torch.tensor([label for _, label in examples])
    return int((_probability(five.opened, five.params_NP, images_nCHW).mean(dim=0).argmax(dim=1) == labels_n).sum())


def what_is_known(opened: Opened, request: Request) -> str:
    """Whether networks like those that are asked for were trained on, as far as the originals that lie here say."""
    spec, asked_D = opened.pipe.conditions, torch.tensor(request.condition)
    outside = spec.outside(asked_D[None])
    return f"{outside[:1].upper()}{outside[1:]} {_seen(opened, spec, asked_D)}".strip()


def _seen(opened: Opened, spec: ConditionSpec, asked_D: Tensor) -> str:
    known_MD = _conditions(opened, spec)
    if known_MD is None:
        why = "are not here" if opened.originals is None else "do not say what each of them was trained for"
        return f"Whether it was trained on networks for just this cannot be told: its checkpoints {why}."
    if bool((known_MD - asked_D).abs().amax(dim=1).lt(1e-6).any()):
        return "It was trained on networks for just this."
    if spec.kind == "bits":
        apart_M = (known_MD != asked_D).sum(dim=1)
        if opened.own_tasks and int(apart_M.max()) == spec.size:
            return "It was trained on networks for the opposite of this, which says as much; not on this itself."
        nearest = int(apart_M.min())
        return (
            f"It was trained on {len(known_MD)} sets of classes. This is none of them, and no opposite of one; the "
            f"nearest differs in {nearest} class{'' if nearest == 1 else 'es'}."
        )
    if spec.kind == "scalar":
        asked, known_M = (_values(spec, each) for each in (asked_D[None], known_MD))
        nearest_value = float(known_M[(known_M - asked).abs().argmin()])
        return f"The nearest {spec.name} that it was trained on is {nearest_value:.4g}."
    return "It was trained on no network for just this."


def _conditions(opened: Opened, spec: ConditionSpec) -> Tensor | None:
    """The different conditions [M,D] that the pipeline was trained on; None where nobody can tell."""
    originals = opened.originals
    if originals is not None and originals.conditions_KD is None:
        try:  # a condition may be a column of the set
            originals = originals.with_conditions(spec.name)
        except ValueError:
            return None
    if originals is None or originals.conditions_KD is None:
        return None
    return originals.conditions_KD[~originals.conditions_KD.isnan().any(dim=1)].unique(dim=0)


def _values(spec: ConditionSpec, conditions_MD: Tensor) -> Tensor:
    """The numbers [M] that conditions of a scalar stand for."""
    if spec.period is None:
        return conditions_MD[:, 0]
    return torch.atan2(conditions_MD[:, 0], conditions_MD[:, 1]) * (spec.period / (2 * math.pi))


def _five(opened: Opened, params_NP: Tensor, truth_k: tuple[int, ...] | None) -> Five:
    return Five(opened, params_NP, truth_k, _look(opened, params_NP, truth_k))


def _look(opened: Opened, params_NP: Tensor, truth_k: tuple[int, ...] | None) -> Looked:
    test = opened.judge.task.test
    chosen = torch.linspace(0, len(test) - 1, min(len(test), _MOST_PICTURES)).round().long()
    labels_n = test.labels_N[chosen]
    probability_Nnc = _probability(opened, params_NP, test.images_NCHW[chosen])
    answers_n = probability_Nnc.mean(dim=0).argmax(dim=1)
    said_kc = torch.zeros(len(opened.classes), probability_Nnc.shape[2], dtype=torch.float64)
    said_kc.index_put_((labels_n, answers_n), torch.ones(len(labels_n), dtype=torch.float64), accumulate=True)
    said_kc /= said_kc.sum(dim=1, keepdim=True).clamp_min(1)
    if truth_k is None:
        return Looked(len(labels_n), said_kc, None, None, None)
    truth_n = torch.tensor(truth_k)[labels_n]
    right_N = (probability_Nnc.argmax(dim=2) == truth_n).double().mean(dim=1)
    usual = int(truth_n.bincount().max()) / len(truth_n)
    return Looked(len(labels_n), said_kc, right_N, float((answers_n == truth_n).double().mean()), usual)


def _probability(opened: Opened, params_NP: Tensor, images_nCHW: Tensor) -> Tensor:
    judge = opened.judge
    inputs_nCHW = judge.task.inputs(Split(images_nCHW, torch.zeros(len(images_nCHW), dtype=torch.int64)))
    logits_Nnc = predict_logits(judge.network, judge.layout, judge.frozen, params_NP, inputs_nCHW)
    if not bool(logits_Nnc.isfinite().all()):
        raise ValueError("some of these networks answer NaN or Inf; take another seed.")
    return logits_Nnc.double().softmax(dim=2)


def _require_room(opened: Opened) -> None:
    numbers = opened.judge.layout.num_params
    if NETWORKS * numbers > _MOST_NUMBERS:
        raise ValueError(f"networks of {numbers:,} numbers are larger than this page can hold five of.")
