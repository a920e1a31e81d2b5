"""Draw networks from a pipeline and measure them with the package's own measures. Same settings, same networks.

Shapes: N networks, P parameters, T sampling steps, C x L latents, K originals, s judged steps, M followed networks.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from opening import Opened
from torch import Tensor

from pdiff_hub.evaluation.baselines import ensemble, gaussian, noise_standardised
from pdiff_hub.evaluation.distances import nearest_l2
from pdiff_hub.evaluation.figures import METHOD_STYLE
from pdiff_hub.evaluation.frontier import measure_frontier
from pdiff_hub.evaluation.judging import Judged
from pdiff_hub.evaluation.points import MethodPoints
from pdiff_hub.evaluation.similarity import max_to_any
from pdiff_hub.pipeline.usage import described, header_of, origin_of, usage_of
from pdiff_hub.prediction.predictions import evaluate, predict_logits
from pdiff_hub.safe_files import write_safetensors
from pdiff_hub.tasks import Split

MOST_NETWORKS, FIRST_SAMPLE = 50, 20
FOLLOWED = 8
"""Number of networks whose path from the noise is shown."""
_MOST_NUMBERS = 1 << 25  # limit for all networks together, and for a trajectory: 128 MiB
_NOISE = 0.05  # in units of each tensor's standard deviation; the middle one of the three that the package reports
_MOST_SECONDS = 120.0  # for the steps of a sample, since other visitors wait meanwhile
_LOOKED_AT = 12  # steps of a trajectory whose networks are judged, besides the noise


@dataclass(frozen=True, eq=False)
class Sample:
    """N networks, how they were made, and what was measured on them.

    Attributes:
        params_NP: float32, raw weight units. trajectory_TNCL: float32 [T+1,N,C,L], from the noise to the end.
        judged: on validation and test.
        similarity_N: highest IoU of wrong predictions with any original (NaN where undefined). nearest_N: L2 distance
            to the nearest original. Both are None where the originals are missing.
    """

    opened: Opened
    seed: int
    steps: int
    params_NP: Tensor
    trajectory_TNCL: Tensor
    judged: Judged
    similarity_N: Tensor | None
    nearest_N: Tensor | None

    def __len__(self) -> int:
        return len(self.params_NP)


def most_networks(opened: Opened, steps: int) -> int:
    """How many networks in so many steps the page can hold at once."""
    layout, config = opened.pipe.autoencoder.layout, opened.pipe.autoencoder.config
    return _MOST_NUMBERS // max(layout.num_params, (steps + 1) * config.latent_channels * config.latent_length)


@lru_cache(maxsize=4)
def sample(opened: Opened, num_models: int, seed: int, steps: int) -> Sample:
    """Samples and judges the networks that `pdiff generate PIPELINE --num-models --seed --num-inference-steps` makes.

    num_models: 1..50. seed: 0 or larger. steps: 1..1000. Raises ValueError for more than the page can hold or wait for.
    """
    if num_models > (most := most_networks(opened, steps)):
        raise ValueError(
            f"{num_models} networks of {opened.pipe.autoencoder.layout.num_params:,} numbers in {steps} steps are more "
            f"than this page can hold; ask for {max(1, most)} or fewer, or for fewer steps."
        )
    began = time.monotonic()

    def in_time(*_: Any) -> None:
        if time.monotonic() - began > _MOST_SECONDS:
            raise ValueError(
                f"{num_models} networks in {steps} steps take longer than {_MOST_SECONDS:.0f} seconds here; ask for "
                "fewer networks or steps."
            )

    out = opened.pipe(
        num_models,
        steps,
        torch.Generator().manual_seed(seed),
        output_type="params",
        return_trajectory=True,
        callback_on_step_end=in_time,
    )
    judged = opened.judge(out.params)
    similarity_N = nearest_N = None
    if opened.originals is not None and opened.judged_originals is not None:
        similarity_N = max_to_any(judged.test.wrong_BN, opened.judged_originals.test.wrong_BN, exclude_self=False)
        nearest_N = nearest_l2(out.params, opened.originals.params_KP, leave_one_out=False)
    return Sample(opened, seed, steps, out.params, out.trajectory, judged, similarity_N, nearest_N)


def table_rows(drawn: Sample) -> list[tuple[str, ...]]:
    """One row per network: its number, accuracy on test [%], wrong answers, highest IoU, L2 to the nearest original."""
    wrong_N = drawn.judged.test.wrong_BN.sum(dim=1)

    def text(values_N: Tensor | None, index: int, digits: int) -> str:
        if values_N is None:
            return "unknown"
        return "undefined" if bool(values_N[index].isnan()) else f"{float(values_N[index]):.{digits}f}"

    return [
        (
            str(index),
            f"{100 * float(accuracy):.2f}",
            str(int(wrong_N[index])),
            text(drawn.similarity_N, index, 3),
            text(drawn.nearest_N, index, 3),
        )
        for index, accuracy in enumerate(drawn.judged.test.accuracy_B)
    ]


def method_points(drawn: Sample) -> dict[str, MethodPoints]:
    """Accuracy and highest IoU of the sample, the originals and three simple baselines; {} without originals.

    The baselines are the average of all originals, and as many networks as in the sample from a Gaussian per coordinate
    and from originals with added noise.
    """
    opened, originals = drawn.opened, drawn.opened.judged_originals
    if opened.originals is None or originals is None or drawn.similarity_N is None:
        return {}
    wrong_KN = originals.test.wrong_BN
    points = {
        "original": MethodPoints.from_similarities(
            originals.test.accuracy_B, max_to_any(wrong_KN, wrong_KN, exclude_self=True)
        ),
        "generated": MethodPoints.from_similarities(drawn.judged.test.accuracy_B, drawn.similarity_N),
    }
    generator = torch.Generator().manual_seed(drawn.seed)
    made = {
        "ensemble": ensemble(opened.originals, 1, generator),
        "gaussian": gaussian(opened.originals, len(drawn), generator),
        "noise_standardised": noise_standardised(opened.originals, len(drawn), generator, _NOISE),
    }
    for name, params_BP in made.items():
        judged = opened.judge(params_BP)
        points[name] = MethodPoints.from_similarities(
            judged.test.accuracy_B, max_to_any(judged.test.wrong_BN, wrong_KN, exclude_self=False)
        )
    return points


def sample_verdict(points: Mapping[str, MethodPoints], num_classes: int) -> str:
    """The package's verdict on this sample alone. Fewer networks decide less."""
    labels = {name: style.label for name, style in METHOD_STYLE.items()}
    return measure_frontier(points, torch.Generator().manual_seed(0), floor=1 / num_classes, labels=labels).verdict


def accuracy_by_step(drawn: Sample) -> tuple[list[int], Tensor]:
    """The judged steps, from 0 (the noise) to T, and the first M networks' accuracy on test there, float64 [s,M]."""
    judge, last = drawn.opened.judge, len(drawn.trajectory_TNCL) - 1
    chosen = torch.linspace(0, last, min(_LOOKED_AT, last) + 1).round().long().unique()
    latents_sMCL = drawn.trajectory_TNCL[chosen][:, :FOLLOWED]
    params_BP = drawn.opened.pipe.decode_latents(latents_sMCL.flatten(0, 1))
    found = evaluate(
        judge.network, judge.layout, judge.frozen, params_BP, judge.test_images(), judge.task.test.labels_N
    )
    return chosen.tolist(), found.accuracy_B.reshape(len(chosen), -1)


def logits_of(drawn: Sample, image_HW: Tensor, most: int) -> Tensor:
    """Logits [N,c] of the first `most` networks for one grey image, uint8 [H,W]."""
    return logits_for(drawn.opened, drawn.params_NP[:most], image_HW[None])


def logits_for(opened: Opened, params_NP: Tensor, image_CHW: Tensor) -> Tensor:
    """Logits [N,c] of N networks for one image, uint8 [C,H,W]."""
    judge = opened.judge
    inputs_1CHW = judge.task.inputs(Split(image_CHW[None], torch.zeros(1, dtype=torch.int64)))
    return predict_logits(judge.network, judge.layout, judge.frozen, params_NP, inputs_1CHW)[:, 0]


def settings_name(drawn: Sample) -> str:
    """A file name without suffix, which differs for every sample."""
    return f"{drawn.opened.name.replace('/', '--')}-n{len(drawn)}-seed{drawn.seed}-steps{drawn.steps}"


def write_network(drawn: Sample, index: int, directory: Path) -> Path:
    """Writes network `index` as a .safetensors file with the bytes of `pdiff generate`; it loads with `strict=True`."""
    if not 0 <= index < len(drawn):
        raise ValueError(f"there is no network {index}; the sample has {len(drawn)}, counted from 0.")
    state = drawn.opened.pipe.autoencoder.state_dicts(drawn.params_NP[index])[0]
    file = directory / f"{settings_name(drawn)}-network{index:02d}.safetensors"
    origin = origin_of(drawn.opened.pipe, len(drawn), drawn.seed, drawn.steps, None, 1.0)
    facts = described(drawn.opened.pipe, origin, usage_of(drawn.opened.pipe), format="safetensors")
    write_safetensors(file, state, header_of(facts, index))
    return file
