"""Files of networks that run without this package, and what one must know to use them.

Usage                          input, normalisation, output and classes of a network, as written into its files
write_program, require_format  a network as one file for torch alone, or for an ONNX runtime
MeanProbabilities              several networks as one, for `write_program`
"""

from pdiff_hub.exporting.programs import format_of, program_content, require_format, write_program
from pdiff_hub.exporting.raw_images import MeanProbabilities, RawImages
from pdiff_hub.exporting.usage import KEY, ONNX, SAFETENSORS, SUFFIXES, TORCH_EXPORT, Usage

__all__ = [
    "KEY",
    "ONNX",
    "SAFETENSORS",
    "SUFFIXES",
    "TORCH_EXPORT",
    "MeanProbabilities",
    "RawImages",
    "Usage",
    "format_of",
    "program_content",
    "require_format",
    "write_program",
]
