"""What the pages show runs to its end as it stands there, from an empty folder. Three kinds of readers go their way.

Left out are installations, and what takes longer than a few minutes or needs a network connection. What a page cannot
know, and a reader brings, is made here: a picture, images, a name on the Hub.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from loopback_hub import LoopbackHub
from PIL import Image
from test_quoted_commands import blocks

pytestmark = pytest.mark.slow


class Reader:
    """Somebody in an empty folder who copies blocks out of pages."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = {**os.environ, "PATH": path, **environment}

    def run(self, *words: str) -> None:
        done = subprocess.run(words, cwd=self.folder, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{words[-1]}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"

    def commands(self, page: str, begin: str, **names: str) -> None:
        """Runs the block of commands in which this stands, without `pip`. names: the reader's own for the page's."""
        text = block(page, begin, "console", "bash")
        for name, own in names.items():
            text = text.replace(f"{name}/", f"{own}/")
        self.run("bash", "-euc", "\n".join(line for line in text.splitlines() if not line.startswith("pip ")))

    def script(self, page: str, *begins: str, **names: str) -> None:
        """Runs the blocks of Python in which these stand, one after the other, as one script."""
        text = "\n".join(block(page, begin, "python") for begin in begins)
        for name, own in names.items():
            text = text.replace(f"{name}/", f"{own}/")
        (self.folder / "script.py").write_text(text)
        self.run(sys.executable, "script.py")


def block(page: str, begin: str, *languages: str) -> str:
    """The one block of a page in which this stands."""
    (found,) = (each for each in blocks(page, *languages) if begin in each)
    return found


def test_practitioner(tmp_path: Path) -> None:
    """Asks, fits, exports and uses what was exported."""
    reader = Reader(tmp_path)
    Image.fromarray(np.full((28, 28), 200, np.uint8)).save(tmp_path / "digit.png")
    reader.commands("README.md", "pdiff fit digits-subsets")
    reader.script("README.md", 'from_pretrained("digits-subsets")')
    reader.script("docs/asking.md", "pipe.fit(")
    page = "docs/take-home.md"
    for begin in ("--output-dir with-torch", "--output-dir with-onnx", "--output-dir networks"):
        reader.commands(page, begin)
    reader.script(page, "torch.export.load", "load_file(")
    reader.script(page, "onnxruntime.InferenceSession")
    reader.script(page, "export_network(")
    reader.commands("docs/ensembles.md", "pdiff ensemble")
    reader.script("docs/ensembles.md", "Ensemble.from_pretrained")


def test_researcher(tmp_path: Path) -> None:
    """Brings a network and images, as files and from a notebook."""
    reader, page = Reader(tmp_path), "docs/own-network.md"
    generator = np.random.default_rng(0)
    for channel, name in enumerate(("cat", "dog")):
        (tmp_path / "my-images" / name).mkdir(parents=True)
        for at in range(100):
            pixels = generator.integers(0, 256, (40, 48, 3), np.uint8)
            pixels[..., channel] //= 2
            Image.fromarray(pixels).save(tmp_path / "my-images" / name / f"{at}.png")
    (tmp_path / "my_networks.py").write_text(block(page, "# my_networks.py", "python"))
    (tmp_path / "my-pipeline").mkdir()
    (tmp_path / "my-pipeline" / "recipe.yaml").write_text(block(page, "# my-pipeline/recipe.yaml", "yaml"))
    reader.commands(page, "pdiff run my-pipeline")
    page = "docs/notebook.md"
    reader.script(page, "load_digits", "args = PDiffArguments(", "trainer.collect()", "class StopWhenGood")


def test_somebody_who_shares(tmp_path: Path) -> None:
    """Pushes and pulls pipelines, sets of checkpoints and single networks."""
    with LoopbackHub() as hub:
        reader = Reader(tmp_path, **hub.environment(tmp_path / "home"))
        (run,) = (each for each in block("README.md", "runs/short --o", "console").splitlines() if "runs/short" in each)
        reader.run("bash", "-euc", run)
        reader.commands("README.md", "pdiff push runs/short", you=hub.user)
        page = "docs/hub.md"
        reader.commands(page, "pdiff push digits-mlp3", USER=hub.user)
        reader.script(page, "pipe.push_to_hub", USER=hub.user)
        reader.commands(page, "--append", USER=hub.user)
        reader.script(page, "datasets.load_dataset", USER=hub.user)
        reader.commands(page, "--push-to-hub", USER=hub.user)
        reader.commands("docs/take-home.md", "--push-to-hub", you=hub.user)
