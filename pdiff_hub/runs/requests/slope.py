"""For a condition that can be measured, accuracy or loss: does one get what one asks for?

Shapes: V values that are asked for, M networks for each.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pdiff_hub.evaluation.judging import Judge
from pdiff_hub.pipeline import PDiffPipeline
from pdiff_hub.records import Requests
from pdiff_hub.runs.requests.sampling import quiet, sampled
from pdiff_hub.seeds import derived_seed

MEASURED = ("validation_accuracy", "validation_loss")
_VALUES, _NETWORKS = 11, 8


def judge_slope(pipe: PDiffPipeline, judge: Judge, *, guidance_scale: float, seed: int) -> Requests | None:
    """Asks for values over the seen range; measures the networks on validation images, as the checkpoints were.

    None if the pipeline cannot be asked for an accuracy or a loss. A slope of 1: as asked; 0: it does not matter.
    """
    spec = pipe.conditions
    if spec is None or spec.kind != "scalar" or spec.name not in MEASURED:
        return None
    asked_V = torch.linspace(spec.low[0], spec.high[0], _VALUES, dtype=torch.float64)
    condition_ND = torch.stack([spec.encode(value) for value in asked_V.tolist() for _ in range(_NETWORKS)])
    with quiet(pipe):
        latents_NCL = sampled(
            pipe,
            condition_ND,
            len(condition_ND),
            guidance_scale=guidance_scale,
            seed=derived_seed(seed, "slope"),
            output_type="latent",
        )
    measured = []
    for latents_bCL in latents_NCL.split(pipe.default_batch_size("params")):  # as many networks as fit into memory
        validation = judge(pipe.decode_latents(latents_bCL)).validation
        measured_b = validation.accuracy_B if spec.name == "validation_accuracy" else validation.loss_B
        assert measured_b is not None
        measured.append(measured_b)
    measured_V = torch.cat(measured).double().view(_VALUES, _NETWORKS).mean(dim=1)
    slope = _slope(asked_V, measured_V)
    sentence = (
        f"Asked for {spec.name} from {spec.low[0]:.4g} to {spec.high[0]:.4g}, the networks' own goes from "
        f"{float(measured_V[0]):.4g} to {float(measured_V[-1]):.4g}: a slope of {slope:.2f} (1: as asked; 0: it does "
        "not matter what is asked for)."
    )
    return Requests({}, {}, {}, None, 0, 0, "", verdicts=[sentence], slope=slope)


def _slope(asked_V: Tensor, measured_V: Tensor) -> float:
    """Of the line of least squares; 0 if all that is asked for is equal."""
    from_mean_V = asked_V - asked_V.mean()
    spread = float(from_mean_V.square().sum())
    return float((from_mean_V * (measured_V - measured_V.mean())).sum()) / spread if spread else 0.0
