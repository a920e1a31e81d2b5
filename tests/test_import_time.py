"""`import pdiff_hub` loads no heavy library, nor do `pdiff --help` and `pdiff list`."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

import pdiff_hub

HEAVY = ["torch", "diffusers", "transformers", "datasets", "accelerate", "huggingface_hub", "numpy", "matplotlib"]


def evaluate(code: str) -> object:
    """The value of an expression in a fresh interpreter, after `import sys, pdiff_hub`."""
    program = f"import sys, pdiff_hub; print(repr({code}))"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    return ast.literal_eval(done.stdout)


def test_import_loads_no_heavy_library() -> None:
    assert evaluate(f"[name for name in {HEAVY} if name in sys.modules]") == []


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["no-such-command"], ["list"]])
def test_help_the_list_and_usage_errors_load_no_heavy_library_either(arguments: list[str]) -> None:
    code = f"import sys; sys.argv = {['pdiff', *arguments]}; from pdiff_hub.cli import main\ntry: main()\n"
    code += f"except SystemExit: print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_listing_the_names_loads_nothing_either() -> None:
    assert evaluate("set(pdiff_hub.__all__) <= set(dir(pdiff_hub)) and 'torch' not in sys.modules") is True


@pytest.mark.parametrize("name", pdiff_hub.__all__)
def test_every_public_name_is_there(name: str) -> None:
    value = getattr(pdiff_hub, name)
    assert name == "__version__" or value.__module__.startswith("pdiff_hub.")


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'ParamLayouts'"):
        _ = pdiff_hub.ParamLayouts
