"""`export_network`: generated networks as one file that runs without this package."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pdiff_hub.errors import PdiffError, require, shortened
from pdiff_hub.exporting import MeanProbabilities, format_of, write_program
from pdiff_hub.networks.stacked import StackedNetworks
from pdiff_hub.pipeline.pipeline import PDiffPipeline
from pdiff_hub.pipeline.usage import described, usage_of


def export_network(
    pipe: PDiffPipeline,
    state_dicts: Mapping[str, Tensor] | Iterable[Mapping[str, Tensor]],
    file: str | Path,
    *,
    condition: Mapping[str, Any] | None = None,
    origin: Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> Path:
    """Write a generated network, or several as one, as a program with its weights; -> the file.

    It takes raw images, uint8 [N, channels, height, width] of 0 to 255, any number of them, normalises them itself, and
    gives float32 logits [N, num_classes]. A list of networks gives the logarithms of their mean probabilities, which
    are logits, too. The file also holds what `generated.json` says: classes, normalisation, where it comes from.

        out = pipe(num_models=5)
        export_network(pipe, out.state_dicts[0], "network.pt2")  # torch.export.load("network.pt2").module()(images)
        export_network(pipe, out.state_dicts, "ensemble.onnx")   # onnxruntime.InferenceSession("ensemble.onnx")

    Args:
        pipe: the pipeline that made the networks.
        state_dicts: one of `out.state_dicts`, or several of them.
        file: ends in .pt2 (for torch, by torch.export) or .onnx (needs the extra `export`). It is replaced.
        condition: what the networks were asked to be, which names the answers.
        origin: more facts for the file, JSON-able, such as {"seed": 0, "index": 3}.
        trust_remote_code: as in `PDiffPipeline.build_network`.

    Raises:
        ValueError: nothing is written. For another suffix, a missing package, a network whose computation no file can
            hold (with the reason), a pipeline that does not say how its images are normalised, weights that are not
            finite, a condition of a pipeline without any, an origin that is no JSON.
    """
    file, usage = Path(file), usage_of(pipe, condition)
    format = format_of(file)
    if condition is not None and (pipe.conditions is None or not isinstance(condition, Mapping)):
        raise PdiffError(
            f"condition is {shortened(condition)}, expected what the networks were asked to be, as a mapping, of a "
            "pipeline that can be asked (pipe.conditions); leave it out otherwise."
        )
    several = not isinstance(state_dicts, Mapping)
    state_dicts = state_dicts if isinstance(state_dicts, Mapping) else list(state_dicts)
    network = built(pipe, state_dicts, trust_remote_code)
    more = {**({"condition": dict(condition)} if condition is not None else {}), **(origin or {})}
    facts = described(pipe, more, usage, format=format, num_averaged=len(state_dicts) if several else 1)
    write_program(network, usage, file, facts, format=format)
    return file


def built(
    pipe: PDiffPipeline, state_dicts: Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]], trust_remote_code: bool
) -> nn.Module:
    """The network of a state dict, or one module for several, for normalised images on the CPU; in eval mode."""
    for state in [state_dicts] if isinstance(state_dicts, Mapping) else state_dicts:
        for name, tensor in state.items():
            require(bool(tensor.isfinite().all()), f"tensor {name!r}", "not finite", "finite numbers in every network")
    if isinstance(state_dicts, Mapping):
        return pipe.build_network(dict(state_dicts), trust_remote_code=trust_remote_code)
    if not state_dicts:
        raise PdiffError("there are no networks to export; give the state dict of at least one.")
    network = pipe.build_network(trust_remote_code=trust_remote_code)
    spec = pipe.autoencoder.config.network
    shape = (spec["in_channels"], spec["image_size"], spec["image_size"])
    return MeanProbabilities(StackedNetworks(network, state_dicts, shape)).eval()
