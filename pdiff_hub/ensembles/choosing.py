"""Which networks make an ensemble, and its temperature; both by what networks answer for the validation images.

docs/ensembles.md has the measurements behind the two ways to choose and the way to set the temperature.
Shapes: B candidates, G groups, N images, c classes. `log` are logarithms of probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from pdiff_hub.networks.stacked import mean_log

_DISAGREEMENT = 0.1  # nats of loss that a network may cost which answers all images in another way
_TEMPERATURES = torch.linspace(math.log(0.05), math.log(20), 240, dtype=torch.float64).exp().tolist()
_SURE = 2.0  # standard errors by which a temperature must lower the loss to be used
_TRIED = 50  # networks, evenly spaced, by which the candidates' own temperature is set


def choose(select: str | None, log_BNc: Tensor, labels_N: Tensor, number: int) -> list[int]:
    """The rows of `number` networks, in the order in which they were chosen; `select`: a name out of WAYS, or None."""
    if select is None:
        return list(range(number))
    tried = torch.linspace(0, len(log_BNc) - 1, min(_TRIED, len(log_BNc))).round().long()
    # All on one scale first: else, of candidates that are all too unsure, the loss names the surest as best.
    own = temperature_of(log_BNc[tried], labels_N)
    return WAYS[select](tempered(log_BNc, own), labels_N, number)


def _most_accurate(log_BNc: Tensor, labels_N: Tensor, number: int) -> list[int]:
    """The best, one by one. Of equally many right answers, the lower loss counts."""
    right_B = (log_BNc.argmax(dim=2) == labels_N).sum(dim=1)
    loss_B = -_of_labels(log_BNc, labels_N).mean(dim=1)
    rows: list[int] = sorted(range(len(log_BNc)), key=lambda row: (-int(right_B[row]), float(loss_B[row])))
    return rows[:number]


def _most_diverse(log_BNc: Tensor, labels_N: Tensor, number: int) -> list[int]:
    """Whichever lowers the ensemble's loss most is added (Caruana et al. 2004), and more so if it answers otherwise."""
    of_label_BN, answers_BN = _of_labels(log_BNc, labels_N).exp(), log_BNc.argmax(dim=2)
    total_N, otherwise_B = torch.zeros_like(of_label_BN[0]), torch.zeros(len(log_BNc), dtype=torch.float64)
    chosen: list[int] = []
    for size in range(1, number + 1):
        loss_B = -((total_N + of_label_BN) / size).clamp_min(1e-30).log().mean(dim=1)
        score_B = loss_B - _DISAGREEMENT * otherwise_B / max(1, size - 1)
        score_B[chosen] = math.inf
        chosen.append(int(score_B.argmin()))
        total_N = total_N + of_label_BN[chosen[-1]]
        otherwise_B += (answers_BN != answers_BN[chosen[-1]]).double().mean(dim=1)
    return chosen


WAYS: Mapping[str, Callable[[Tensor, Tensor, int], list[int]]] = {"accuracy": _most_accurate, "diverse": _most_diverse}


def tempered(log_Xc: Tensor, temperature: float) -> Tensor:
    """The answers made surer (below 1) or less sure (above 1); the most probable class stays so."""
    return log_Xc if temperature == 1 else (log_Xc / temperature).log_softmax(dim=-1)


def temperature_of_groups(log_BNc: Tensor, labels_N: Tensor, size: int) -> float:
    """The temperature of ensembles of `size` of these networks, as they come.

    A chosen ensemble gets this one, not one of its own: it was chosen by the same images, on which it looks too good.
    """
    groups = [mean_log(part_BNc) for part_BNc in log_BNc.split(size) if len(part_BNc) == size]
    return temperature_of(torch.stack(groups), labels_N)


def temperature_of(log_GNc: Tensor, labels_N: Tensor) -> float:
    """The temperature with the lowest mean loss of G answerers; 1 unless N images show that it lowers the loss."""
    losses = [_loss(log_GNc, labels_N, each) for each in _TEMPERATURES]
    best = min(range(len(losses)), key=lambda index: float(losses[index].mean()))
    gain_N = -_of_labels(log_GNc, labels_N).double().mean(dim=0) - losses[best]
    if len(labels_N) < 2 or float(gain_N.mean()) < _SURE * float(gain_N.std()) / math.sqrt(len(labels_N)):
        return 1.0
    return float(_TEMPERATURES[best])


def _loss(log_GNc: Tensor, labels_N: Tensor, temperature: float) -> Tensor:
    """Cross-entropy per image, as the mean over the answerers, [N]."""
    scaled_GNc = log_GNc / temperature
    loss_GN: Tensor = scaled_GNc.logsumexp(dim=2) - _of_labels(scaled_GNc, labels_N)
    return loss_GN.double().mean(dim=0)


def _of_labels(log_GNc: Tensor, labels_N: Tensor) -> Tensor:
    """What the labels got, [G,N]."""
    return log_GNc.gather(2, labels_N.expand(len(log_GNc), -1)[:, :, None])[:, :, 0]
