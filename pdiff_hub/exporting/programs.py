"""Files that hold a network's computation with its weights, for torch alone (`.pt2`) or for an ONNX runtime."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from pdiff_hub.errors import MissingPackageError, PdiffError, require_known
from pdiff_hub.exporting.raw_images import RawImages
from pdiff_hub.exporting.usage import INPUT, KEY, ONNX, OUTPUT, SAFETENSORS, SUFFIXES, Usage
from pdiff_hub.networks.unwrapping import described, place_of
from pdiff_hub.safe_files import replacing

_NEEDED = {ONNX: ("onnx", "onnxscript")}
_PROBE_IMAGES = 3
_BATCH = "N"
_REASONS = {  # by what torch says
    "data-dependent expression": "an `if` or a loop in it depends on the values of the images",
    "Constraints violated": "it computes in another way for another number of images",
}
_TALKATIVE = ("torch.onnx._internal.exporter._registration", "torch.fx.experimental.symbolic_shapes")


def require_format(format: str) -> None:
    """ValueError for a format that is not known, or whose packages are not installed."""
    require_known("format", [format], SUFFIXES)
    if missing := [package for package in _NEEDED.get(format, ()) if find_spec(package) is None]:
        raise MissingPackageError(
            f"the format {format} needs {' and '.join(missing)}: pip install {' '.join(missing)} (pdiff-hub's extra "
            "`export`), or give another format."
        )


def format_of(file: Path) -> str:
    """The format of a program by the suffix of its file; ValueError for a file of no program."""
    for format, suffix in SUFFIXES.items():
        if file.suffix == suffix and format != SAFETENSORS:
            return format
    raise PdiffError(f"{file} says no format by its suffix, expected .pt2 (torch.export) or .onnx.")


def write_program(
    network: nn.Module, usage: Usage, file: Path, facts: Mapping[str, Any], *, format: str | None = None
) -> None:
    """Writes what `program_content` gives. format: None goes by the suffix of `file`. Nothing is written on errors."""
    content = program_content(network, usage, file.name, facts, format or format_of(file))
    with replacing(file) as temporary:
        temporary.write_bytes(content)


def program_content(network: nn.Module, usage: Usage, name: str, facts: Mapping[str, Any], format: str) -> bytes:
    """A file of a network that takes raw images: uint8 [N, C, H, W], any N -> float32 logits [N, c].

    Args:
        network: takes normalised images; in eval mode, on the CPU.
        usage: of the network; how its images are normalised goes into the program.
        name: of the file, for errors.
        facts: JSON-able, kept in the file: of a .pt2 as its extra file `pdiff_hub.json`, of ONNX as a metadata entry.
        format: "torch-export" or "onnx".

    Raises:
        ValueError: for a network whose computation no file can hold, with the exporter's reason; for a usage that does
            not say how images are normalised; for a missing package.
    """
    require_format(format)
    spec, mean, std = dict(usage.network or {}), usage.mean or (), usage.std or ()
    if not spec or not len(mean) == len(std) == spec["in_channels"]:
        raise PdiffError(
            f"{name} was not written: the pipeline does not say which network it makes and how each channel of its "
            "images is normalised, which the file would have to do; write the weights alone (format safetensors)."
        )
    try:
        text = json.dumps(facts, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise PdiffError(f"{name} was not written: what it should say of itself is no JSON ({error}).") from error
    shape = (spec["in_channels"], spec["image_size"], spec["image_size"])
    with torch.no_grad(), _quiet(), _fixed(network):
        program = _program(RawImages(network, mean, std).eval(), shape, name)
        return _onnx(program, text, name) if format == ONNX else _pt2(program, text)


def _program(module: nn.Module, shape: tuple[int, int, int], name: str) -> ExportedProgram:
    example = torch.zeros(2, *shape, dtype=torch.uint8)
    dynamic = {INPUT: {0: torch.export.Dim(_BATCH, min=1)}}
    try:
        program = torch.export.export(module, (example,), dynamic_shapes=dynamic, strict=False)
        generator = torch.Generator().manual_seed(0)
        probe = torch.randint(256, (_PROBE_IMAGES, *shape), generator=generator, dtype=torch.uint8)
        expected, found = module(probe), program.module()(probe)
    except Exception as error:  # the exporter lets through whatever a network's own code does to it
        raise _refused(name, error) from error
    if not torch.allclose(expected, found, rtol=1e-3, atol=1e-4, equal_nan=True):
        raise PdiffError(
            f"{name} was not written: exported, the network answers otherwise than before, so that its answers depend "
            "on more than the images; write its weights alone (format safetensors)."
        )
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # with the paths of this machine's files
    return program


def _pt2(program: ExportedProgram, facts: str) -> bytes:
    content = io.BytesIO()  # a file's name would be written into it
    torch.export.save(program, content, extra_files={f"{KEY}.json": facts})
    return content.getvalue()


def _onnx(program: ExportedProgram, facts: str, name: str) -> bytes:
    try:
        converted = torch.onnx.export(program, verbose=False, input_names=[INPUT], output_names=[OUTPUT])
        assert converted is not None
        model = converted.model_proto
    except Exception as error:  # of two other packages
        raise _refused(name, error) from error
    graph = model.graph
    for each in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer, graph):
        del each.metadata_props[:]  # the exporter's notes, some of which tell of this machine
    given = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*graph.value_info, *graph.input, *graph.output):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param == given:
                dimension.dim_param = _BATCH
    model.metadata_props.add(key=KEY, value=facts)
    return model.SerializeToString(deterministic=True)


def _refused(name: str, error: Exception) -> PdiffError:
    said = str(error)
    known = next((reason for sign, reason in _REASONS.items() if sign in said), None)
    reason = f"{known}{place_of(error)}" if known else described(error)
    return PdiffError(
        f"{name} was not written: the network's computation cannot be exported, since {reason}; change its forward "
        "pass, or write its weights alone (format safetensors)."
    )


@contextmanager
def _fixed(network: nn.Module) -> Iterator[None]:
    """The network without gradients, so that what its program answers has none either."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporters tell about themselves: what is deprecated, packages that they could use, graphs."""
    levels = {name: logging.getLogger(name).level for name in _TALKATIVE}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
