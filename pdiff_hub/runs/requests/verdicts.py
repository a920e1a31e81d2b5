"""One sentence for each question that the audit of requests answers. Shapes: U held-out tasks."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from pdiff_hub.evaluation.request_names import DATA_FREE, FIT_NAMES, SIMPLE_WAYS, UNSEEN_NAMES
from pdiff_hub.records import FitRequests
from pdiff_hub.runs.requests.bootstrap import interval


def unseen_verdicts(each_U: Mapping[str, Tensor], num_seen: int, seed: int) -> list[str]:
    """What asking by description gives, beside the strongest simple way and the ceiling."""
    best = max((name for name in SIMPLE_WAYS if name in each_U), key=lambda name: float(each_U[name].mean()))
    num_unseen = len(each_U["generated"])
    first = (
        f"On {num_unseen} tasks never seen ({num_seen} were), one generated network is right on "
        f"{_percent(each_U['generated'])}, and five averaged to one on {_percent(each_U['ensemble'])}; trained on the "
        f"task {_percent(each_U['trained'])}. The best simple way ({UNSEEN_NAMES[best]}): {_percent(each_U[best])}, "
        f"{_less(each_U['generated'], each_U[best], seed)} for one generated network."
    )
    second = (
        "The normal distribution that the pipeline begins with, without its U-Net, gives "
        f"{_percent(each_U['gaussian'])}: the U-Net adds {_less(each_U['generated'], each_U['gaussian'], seed)}."
    )
    if num_unseen > 1:  # one task has no other
        second = (
            f"With other tasks' descriptions it is right on {_percent(each_U['shuffled'])}: what is asked for adds "
            f"{_less(each_U['generated'], each_U['shuffled'], seed)}. {second}"
        )
    third = (
        f"After 25 training steps the generated network is right on {_percent(each_U['warm_start'])}; from scratch "
        f"after 25, 100 and 400 steps on {', '.join(_percent(each_U[f'scratch_{steps}']) for steps in (25, 100, 400))}."
    )
    return [first, second, third]


def fit_verdicts(fit: FitRequests) -> list[str]:
    """What fitting to examples gives, beside the strongest other way at equal cost."""
    sentences = []
    for number, accuracies in fit.labels.items():
        best = max((name for name in DATA_FREE if name in accuracies), key=accuracies.__getitem__)
        gained = 100 * (accuracies["fit"] - accuracies[best])
        sentences.append(
            f"{number} labels: {100 * accuracies['fit']:.1f} % ({FIT_NAMES[best]}: {100 * accuracies[best]:.1f}, "
            f"{gained:+.1f} points)"
        )
    return [f"From labelled examples of {fit.num_tasks} tasks never seen, one fitted network: {'; '.join(sentences)}."]


def _percent(each_U: Tensor) -> str:
    return f"{100 * float(each_U.mean()):.1f} %"


def _less(one_U: Tensor, other_U: Tensor, seed: int) -> str:
    """The mean difference over the same tasks, in points, with its 95 % bootstrap interval."""
    difference_U = 100 * (one_U - other_U)
    low, high = interval(difference_U, seed, "differences")
    return f"{float(difference_U.mean()):+.1f} points ({low:+.1f} to {high:+.1f})"
