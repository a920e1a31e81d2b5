"""What people know from diffusers works as there, or is refused in a sentence that says what to do instead."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, UNet1DModel
from diffusers.callbacks import PipelineCallback

from pdiff_hub import CheckpointDataset, PDiffPipeline
from pdiff_hub.errors import PdiffError
from pdiff_hub.travelling import pipeline_pdiff

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "pipelines" / "digits-mlp3"


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def pipe() -> PDiffPipeline:
    opened = PDiffPipeline.from_pretrained(SHIPPED)
    opened.set_progress_bar_config(disable=True)
    return opened


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"generator": 0}, r"generator is 0, expected a torch.Generator such as torch.Generator\(\).manual_seed\(0\)"),
        ({"generator": [0, 1], "num_models": 2}, "generator is 0, expected"),
        ({"generator": [None]}, "generator is None, expected"),
        ({"generator": "0"}, "generator is '0', expected"),
        ({"return_dict": "no"}, "return_dict is 'no', expected True or False"),
        ({"output_type": "np"}, "output_type is 'np', expected 'state_dict', 'params' or 'latent'"),
        ({"callback_on_step_end": 3}, "callback_on_step_end is 3, expected a function"),
        ({"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}, r"is \['prompt_embeds'\], expected a list of some"),
        ({"callback_on_step_end_tensor_inputs": "latents"}, "is 'latents', expected a list"),
        ({"guidance_scale": 2.0}, "takes no condition: .* Omit guidance_scale"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan, expected a number of at least 0"),
    ],
)
def test_arguments_of_a_call(pipe: PDiffPipeline, options: dict[str, Any], message: str) -> None:
    with pytest.raises(pipeline_pdiff.SamplingError, match=message):
        pipe(**options)


def test_a_fit_checks_its_generator_too(pipe: PDiffPipeline) -> None:
    images, labels = torch.zeros(4, 1, 8, 8), torch.tensor([0, 1, 2, 3])
    for options, message in (
        ({"generator": 0}, "generator is 0, expected a torch.Generator"),
        ({"generator": [seeded()]}, "generator is a list, expected one"),
        ({"num_models": 0}, "num_models is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            pipe.fit(images, labels, **options)  # type: ignore[arg-type]


def test_an_output_is_one_of_diffusers(pipe: PDiffPipeline) -> None:
    out = pipe(2, 2, seeded())
    assert list(out) == ["params", "state_dicts", "latents"] and len(out) == 3
    assert out["state_dicts"] is out.state_dicts is out[1]
    params, state_dicts, latents = pipe(2, 2, seeded(), return_dict=False)
    assert torch.equal(params, out.params) and torch.equal(latents, out.latents) and len(state_dicts) == 2
    assert list(pipe(1, 2, seeded(), output_type="latent")) == ["latents"]


class Halved(PipelineCallback):  # type: ignore[misc]
    """A callback as diffusers has them, which names itself what it wants."""

    tensor_inputs = ("latents",)

    def callback_fn(self, pipeline: Any, step: int, time: int, given: dict[str, Any]) -> dict[str, Any]:
        return {"latents": given["latents"] / 2}


def test_callbacks_get_what_they_ask_for(pipe: PDiffPipeline) -> None:
    seen: list[list[str]] = []

    def note(_: Any, step: int, time: int, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        seen.append(sorted(given))
        return {}

    for names in (["latents"], []):
        pipe(1, 2, seeded(), output_type="latent", callback_on_step_end=note, callback_on_step_end_tensor_inputs=names)
    assert seen == [["latents"], ["latents"], [], []]

    def halve(_: Any, step: int, time: int, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"latents": given["latents"] / 2}

    ends = [
        pipe(1, 2, seeded(), output_type="latent", callback_on_step_end=each).latents
        for each in (halve, Halved(), None)
    ]
    assert torch.equal(ends[0], ends[1]) and not torch.equal(ends[0], ends[2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_safetensors": False}, "use_safetensors=False cannot be had: reading a pickle can run code"),
        ({"variant": "fp16"}, r"variant='fp16' cannot be had: .*give dtype=torch.float16"),
        ({"low_cpu_mem_usage": False}, "low_cpu_mem_usage=False cannot be had: weights are read through a memory map"),
        ({"force_download": True}, "force_download=True cannot be had: .*hf cache rm"),
        ({"proxies": {"https": "x"}}, "HTTPS_PROXY"),
        ({"trust_remote_code": True}, "no downloaded code is ever run"),
        ({"custom_pipeline": "x"}, "no downloaded code is ever run"),
        ({"device_map": "balanced"}, "device_map is 'balanced', expected one device such as 'cuda'"),
        ({"device_map": {"unet": 0}}, "device_map is {'unet': 0}, expected one device"),
        ({"dtype": torch.int8}, "dtype is torch.int8, expected a type of numbers with fractions"),
        ({"dtype": {"unet": torch.float16}}, "for all components alike"),
        ({"dtype": torch.float16, "torch_dtype": torch.float32}, "give one of them"),
        ({"unet": None}, "unet is None, expected a UNet1DModel; leave it out"),
        ({"scheduler": "ddim"}, "scheduler is 'ddim', expected a scheduler"),
        ({"dytpe": torch.float16}, r"unknown option of from_pretrained: 'dytpe'; the nearest known one is 'dtype'"),
        ({"shceduler": None}, r"'shceduler'; the nearest known one is 'scheduler'"),
        ({"safety_checker": None}, "unknown option of from_pretrained: 'safety_checker'"),
    ],
)
def test_options_of_opening_that_cannot_be_had(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PdiffError, match=message):
        PDiffPipeline.from_pretrained(SHIPPED, **options)


def test_options_of_opening_that_mean_something() -> None:
    pipe = PDiffPipeline.from_pretrained(
        "digits-mlp3",
        use_safetensors=True,
        low_cpu_mem_usage=True,
        device_map="cpu",
        dtype=torch.float16,
        variant=None,
        force_download=False,
        trust_remote_code=False,
    )
    assert pipe.unet.dtype == torch.float16 and pipe.device.type == "cpu"
    inner = PDiffPipeline.from_pretrained(SHIPPED.parent, subfolder="digits-mlp3")
    assert inner.folder == SHIPPED and inner.unet.dtype == torch.float32
    with pytest.raises(PdiffError, match="a Hub repository has its pipeline at its root"):
        PDiffPipeline.from_pretrained("user/name", subfolder="x")


def test_from_pipe_shares_components_and_facts(pipe: PDiffPipeline) -> None:
    pipe.hub_id, pipe.hub_revision = "user/digits", "0" * 40
    try:
        other = PDiffPipeline.from_pipe(pipe)
        assert other.components == pipe.components and other.config == pipe.config
        assert (other.folder, other.hub_id, other.hub_revision) == (SHIPPED, "user/digits", "0" * 40)
        ddim = PDiffPipeline.from_pipe(pipe, scheduler=DDIMScheduler.from_config(pipe.scheduler.config))
        assert isinstance(ddim.scheduler, DDIMScheduler) and ddim.unet is pipe.unet
        assert not isinstance(pipe.scheduler, DDIMScheduler)
        ddim.set_progress_bar_config(disable=True)
        assert ddim(1, 3, seeded(), output_type="latent").latents.isfinite().all()
        assert PDiffPipeline.from_pipe(pipe, default_num_inference_steps=9).config.default_num_inference_steps == 9
    finally:
        pipe.hub_id = pipe.hub_revision = None
    for options, message in (
        ({"dtype": torch.float16}, "the other pipeline would change, too"),
        ({"shceduler": None}, "unknown option of from_pipe: 'shceduler'; the nearest known one is 'scheduler'"),
    ):
        with pytest.raises(PdiffError, match=message):
            PDiffPipeline.from_pipe(pipe, **options)
    with pytest.raises(PdiffError, match="from_pipe takes a PDiffPipeline, and this is a UNet1DModel"):
        PDiffPipeline.from_pipe(pipe.unet)
    assert isinstance(pipe.unet, UNet1DModel)


def test_options_of_saving(pipe: PDiffPipeline, tmp_path: Path) -> None:
    for options, message in (
        ({"safe_serialization": False}, "safe_serialization=False cannot be had: reading a pickle can run code"),
        ({"variant": "fp16"}, r"variant='fp16' cannot be had: .*pipe.to\(dtype=torch.float16\)"),
        ({"push_to_hub": True}, r"call pipe.push_to_hub\('user/name'\)"),
        ({"max_shard_size": "1GB"}, "is split by itself"),
        ({"varaint": "fp16"}, "unknown option of save_pretrained: 'varaint'; the nearest known one is 'variant'"),
    ):
        with pytest.raises(PdiffError, match=message):
            pipe.save_pretrained(tmp_path / "saved", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "saved").exists()
    pipe.save_pretrained(tmp_path / "saved", safe_serialization=True, variant=None, push_to_hub=False)
    saved = PDiffPipeline.from_pretrained(tmp_path / "saved").unet.state_dict()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in pipe.unet.state_dict().items())


def test_rows_of_a_data_set() -> None:
    dataset = CheckpointDataset.from_pretrained(SHIPPED / "checkpoints")
    row = dataset[0]
    assert torch.equal(row["params"], dataset.params_KP[0]) and row["step"] == dataset.metadata[0]["step"]
    assert torch.equal(dataset[-1]["params"], dataset.params_KP[199])
    assert torch.equal(dataset.layout.flatten(dataset.state_dict(3)), dataset[3]["params"])
    assert [each["step"] for each in dataset] == [each["step"] for each in dataset.metadata]
    part = dataset[10:14]
    assert isinstance(part, CheckpointDataset) and torch.equal(part.params_KP, dataset.params_KP[10:14])
    for index, kind in ((200, IndexError), (-201, IndexError), ("0", TypeError), (1.0, TypeError)):
        with pytest.raises(kind, match=r"checkpoint"):
            dataset[index]  # type: ignore[call-overload]
    assert "condition" not in row
    card = (ROOT / "pdiff_hub" / "checkpoints" / "card_template.md").read_text(encoding="utf-8")
    assert all(shown in card for shown in ("dataset[0]", "for row in dataset", "dataset.state_dict(0)"))


@pytest.mark.slow  # mypy reads torch and diffusers
@pytest.mark.parametrize("page", ["README.md"])
def test_python_on_the_pages_has_types(page: str, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    files = [tmp_path / f"block_{number}.py" for number in range(len(blocks))]
    for file, block in zip(files, blocks, strict=True):
        file.write_text(block)
    others = tmp_path / "others.py"
    others.write_text(
        """import torch
from torch import Tensor
from pdiff_hub import CheckpointDataset, PDiffPipeline
pipe = PDiffPipeline.from_pretrained("digits-mlp3")
rows: int = pipe(3, output_type="params").params.shape[0]
channels: int = pipe(3, output_type="latent").latents.shape[1]
params, *rest = pipe(3, return_dict=False)
again = PDiffPipeline.from_pipe(pipe)
def note(pipe: PDiffPipeline, step: int, time: int, given: dict[str, Tensor]) -> dict[str, Tensor]:
    return given
pipe(3, callback_on_step_end=note, callback_on_step_end_tensor_inputs=["latents"])
fitted = pipe.fit(torch.zeros(2, 1, 8, 8), torch.tensor([0, 1])).state_dicts[0]
dataset = CheckpointDataset.from_pretrained("x")
steps = [row["step"] for row in dataset]
half: CheckpointDataset = dataset[:100]
names = list(dataset.state_dict(0))
"""
    )
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--follow-imports=silent", *map(str, files)]
    environment = {**os.environ, "MYPYPATH": str(ROOT), "MYPY_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run([*command, str(others)], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
