"""What a pipeline's files claim is compared with what lies beside them: a false folder is refused in one sentence."""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from pdiff_hub import PDiffPipeline
from pdiff_hub.errors import PdiffError
from pdiff_hub.pipeline.schedulers import load_scheduler
from pdiff_hub.runs.generating import write_latents, write_params
from pdiff_hub.training.diffusion import build_scheduler
from pdiff_hub.travelling.pipeline_pdiff import SamplingError, require_finite

SHIPPED = Path(__file__).parent.parent / "pipelines" / "digits-mlp3"
CONFIGS = ["model_index.json", "autoencoder/config.json", "unet/config.json", "scheduler/scheduler_config.json"]
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    copy_shipped(tmp_path / "pipeline")
    return tmp_path / "pipeline"


def copy_shipped(folder: Path) -> None:
    for name in (*CONFIGS, f"autoencoder/{WEIGHTS}", f"unet/{WEIGHTS}"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(SHIPPED / name, folder / name)


def change(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def refused(folder: Path, message: str, file: str = "") -> None:
    """The folder is refused at once, in one sentence, which names `file`."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(PdiffError, match=message) as caught:
        PDiffPipeline.from_pretrained(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1500 and file in str(caught.value)
    # Two seconds of a machine that does nothing else; this one may be busy.
    assert time.perf_counter() - began < 10 and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers_per_block": 10**9}, "many more layers than the 52 tensors"),
        ({"layers_per_block": 10**30}, "layers_per_block: a whole number with very many digits is there"),
        ({"layers_per_block": 1.5}, "'layers_per_block' is wrong"),
        ({"layers_per_block": True}, "'layers_per_block' is wrong"),
        ({"down_block_types": ["DownResnetBlock1D"] * 5000}, "'down_block_types' is wrong"),
        ({"block_out_channels": [96] * 5000}, "'block_out_channels' is wrong"),
        ({"block_out_channels": [10**12]}, "describes no UNet1DModel"),
        ({"block_out_channels": []}, "'block_out_channels' is wrong"),
        ({"block_out_channels": [0]}, "'block_out_channels.0' is wrong"),
        ({"norm_num_groups": 7}, "describes no UNet1DModel|do not fit"),
        ({"act_fn": "os.system"}, "describes no UNet1DModel"),
        ({"freq_shift": math.nan}, "freq_shift: nan is there"),
        ({"freq_shift": "1"}, "'freq_shift' is wrong"),
        ({"use_timestep_embedding": False}, "do not fit"),
        ({"in_channels": 5}, "do not fit"),
        ({"out_channels": 3}, "do not fit"),
        ({"_class_name": "UNet2DModel"}, "is of a 'UNet2DModel', expected 'UNet1DModel'"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, "quantised weights"),
    ],
)
def test_a_false_unet(folder: Path, changes: dict[str, Any], message: str) -> None:
    change(folder / "unet" / "config.json", **changes)
    refused(folder, message, "unet/config.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slice_size": 1}, "are 8,970 tensors, and 6 are stored"),
        ({"slice_size": 0}, "'slice_size' is wrong"),
        ({"num_components": 10**9, "latent_length": 10**9}, "do not fit"),
        ({"latent_length": 10**15}, "describes no ParamAutoencoder|do not fit"),
        ({"latent_length": "6"}, "'latent_length' is wrong"),
        (
            {"form": "conv", "kernel_size": 200_000, "encoder_widths": [4] * 64, "decoder_widths": [4] * 64},
            r"200000 \*\*",
        ),
        ({"form": "conv", "kernel_size": 10**9}, "1000000000 \\*\\* 4 parameters, expected at most 1,048,576"),
        ({"form": "conv", "encoder_widths": [4] * 10**5}, "'encoder_widths' is wrong"),
        ({"form": "conv", "kernel_size": 2, "latent_length": 10**4}, "do not fit"),
        ({"form": "other"}, "unknown autoencoder form"),
        ({"network": []}, "'network' is wrong"),
        ({"held_out": [1.5]}, "'held_out.0' is wrong"),
        ({"num_checkpoints": 2.5}, "'num_checkpoints' is wrong"),
    ],
)
def test_a_false_autoencoder(folder: Path, changes: dict[str, Any], message: str) -> None:
    change(folder / "autoencoder" / "config.json", **changes)
    refused(folder, message, "autoencoder/config.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "int32"}, "is of type 'int32', expected one that holds fractions"),
        ({"dtype": "load"}, "is of type 'load'"),
        ({"__class__": 1}, "'layout.entries.0.__class__' is wrong"),
        ({"dtype": "quint8"}, "is of type 'quint8'"),
        ({"name": "fc1.bias"}, "has the tensor 'fc1.bias' twice"),
        ({"aliases": ["fc1.weight"]}, "has the tensor 'fc1.weight' twice"),
        ({"shape": [10**6, 10**6], "stop": 10**12}, "are 11,920,929 tensors|tensors, and 6 are stored"),
        ({"shape": [10**15] * 60}, "spans 0..4096, expected it to start at 0"),
        ({"shape": [1] * 10**5}, "'layout.entries.0.shape' is wrong"),
        ({"shape": [-64, -64]}, "'layout.entries.0.shape.0' is wrong"),
        ({"start": "0"}, "'layout.entries.0.start' is wrong"),
        ({"name": 5}, "'layout.entries.0.name' is wrong"),
    ],
)
def test_a_false_layout(folder: Path, changes: dict[str, Any], message: str) -> None:
    file = folder / "autoencoder" / "config.json"
    layout = json.loads(file.read_text())["layout"]
    layout["entries"][0] |= changes
    change(file, layout=layout)
    refused(folder, message, "autoencoder/config.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conditioner": 5}, "its conditioner is '5'"),
        ({"conditioner": ["a", "b", "c"]}, "its conditioner is"),
        ({"conditioner": ["conditioner", "Conditioner"]}, "conditioner/config.json does not exist"),
        ({"unet": ["diffusers", "UNet2DModel"]}, "its unet is .*expected the file and class of a UNet1DModel"),
        ({"autoencoder": None}, "its autoencoder is 'None'"),
        ({"scheduler": ["diffusers", 3]}, "its scheduler is"),
        ({"scheduler": ["diffusers", "StableDiffusionPipeline"]}, "which diffusers does not have"),
        ({"format_version": True}, "has format version True"),
        ({"default_num_inference_steps": "50"}, "default_num_inference_steps is '50', expected a whole number"),
        ({"default_num_inference_steps": 0}, "default_num_inference_steps is 0"),
        ({"default_num_inference_steps": 1001}, "is 1001, expected at most the 1000"),
    ],
)
def test_a_false_index(folder: Path, changes: dict[str, Any], message: str) -> None:
    change(folder / "model_index.json", **changes)
    with pytest.raises((PdiffError, SamplingError, FileNotFoundError), match=message):
        PDiffPipeline.from_pretrained(folder)


def test_an_index_as_diffusers_writes_it(folder: Path) -> None:
    change(folder / "model_index.json", conditioner=[None, None])
    assert PDiffPipeline.from_pretrained(folder).conditions is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta_end": math.nan}, "beta_end'?: nan is there"),
        ({"beta_start": math.inf}, "beta_start'?: inf is there"),
        ({"beta_end": 2.0}, "its betas are not all from 0 to 1|end with NaN"),
        ({"trained_betas": [0.1, math.nan]}, "trained_betas'?: nan is there"),
        ({"trained_betas": [0.1] * 10}, "cannot sample: .* cannot make 50 steps"),
        ({"trained_betas": "0.1"}, "describes no DDPMScheduler|cannot sample"),
        ({"prediction_type": "w"}, "cannot sample: .* cannot make 50 steps .*take another number of steps"),
        ({"beta_schedule": "no such"}, "describes no DDPMScheduler"),
        ({"timestep_spacing": 3}, "cannot sample"),
        ({"num_train_timesteps": 10.0}, "num_train_timesteps is 10.0"),
        ({"steps_offset": 10**9}, "'steps_offset' is 1,000,000,000, expected at most"),
        ({"steps_offset": "1"}, "cannot sample|describes no"),
        ({"_class_name": "os"}, "is of a 'os', expected a scheduler"),
        ({"quantization_config": {}}, "which no scheduler has"),
    ],
)
def test_a_false_schedule(folder: Path, changes: dict[str, Any], message: str) -> None:
    if "steps_offset" in changes and isinstance(changes["steps_offset"], str):
        change(folder / "scheduler" / "scheduler_config.json", timestep_spacing="leading")
    change(folder / "scheduler" / "scheduler_config.json", **changes)
    refused(folder, message, "scheduler_config.json")


SAMPLE = [
    *("DDIM", "DPMSolverMultistep", "DPMSolverSinglestep", "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete"),
    *("LMSDiscrete", "PNDM", "UniPCMultistep", "DEISMultistep", "SASolver", "DDPMParallel"),
]
SAMPLE_NOT = ["RePaint", "VQDiffusion", "Amused", "ScoreSdeVe", "ScoreSdeVp"]


def error_of(folder: Path) -> str:
    """The sentence that refuses the folder, or nothing if it opens, and then makes a network."""
    try:
        pipe = PDiffPipeline.from_pretrained(folder)
    except (PdiffError, SamplingError, FileNotFoundError) as error:
        return str(error)
    pipe.set_progress_bar_config(disable=True)
    steps = min(7, pipe.scheduler.config.num_train_timesteps)
    assert pipe(2, steps, torch.Generator().manual_seed(0), output_type="params").params.isfinite().all()
    return ""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of numpy, inside diffusers
@pytest.mark.parametrize("name", SAMPLE)
def test_schedulers_of_one_call_a_step(folder: Path, name: str) -> None:
    kind = getattr(diffusers, f"{name}Scheduler")
    kind.from_config(build_scheduler().config).save_pretrained(folder / "scheduler")
    change(folder / "model_index.json", scheduler=["diffusers", kind.__name__])
    assert error_of(folder) == ""


@pytest.mark.parametrize("name", SAMPLE_NOT)
def test_schedulers_that_cannot_sample(folder: Path, name: str) -> None:
    change(folder / "model_index.json", scheduler=["diffusers", f"{name}Scheduler"])
    assert f"{name}Scheduler" in error_of(folder)


def test_limits_that_are_infinite_by_default_are_no_fault(folder: Path) -> None:
    diffusers.DPMSolverMultistepScheduler.from_config(build_scheduler().config).save_pretrained(folder / "scheduler")
    assert "Infinity" in (folder / "scheduler" / "scheduler_config.json").read_text()
    assert load_scheduler("DPMSolverMultistepScheduler", folder, 10, 4).config.lambda_min_clipped == -math.inf


@pytest.mark.parametrize("component", ["unet", "autoencoder"])
@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_weights_are_finite(folder: Path, component: str, odd: float) -> None:
    file = folder / component / WEIGHTS
    tensors = load_file(file)
    name = sorted(name for name, tensor in tensors.items() if tensor.is_floating_point())[-1]
    tensors[name].view(-1)[-1] = odd
    save_file(tensors, file, {"format": "pt"})
    refused(folder, rf"{component}/{WEIGHTS}: tensor '{name}' holds NaN or infinity")


def test_a_header_with_another_type_of_the_same_size(folder: Path) -> None:
    file = folder / "unet" / WEIGHTS
    content = file.read_bytes()
    for lie in (b'"I32"', b'"U32"'):
        file.write_bytes(content.replace(b'"F32"', lie))
        refused(
            folder, rf"{WEIGHTS} do not fit .*is u?int32 \[96, 4, 1\], expected float32|is u?int32 .*expected float32"
        )
    file.write_bytes(content.replace(b'"F32"', b'"I32"', 1))
    refused(folder, "is int32 .*, expected float32")
    tensors = load_file(SHIPPED / "unet" / WEIGHTS)
    tensors[sorted(tensors)[-1]] = tensors[sorted(tensors)[-1]].half()
    save_file(tensors, file)
    refused(folder, "is float16 .*, expected float32")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_pipeline_saved_in_another_type_opens_in_float32(folder: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    pipe = PDiffPipeline.from_pretrained(folder, torch_dtype=dtype)
    assert pipe.unet.dtype == pipe.autoencoder.mean_P.dtype == dtype
    pipe.save_pretrained(tmp_path / "saved")
    back = PDiffPipeline.from_pretrained(tmp_path / "saved")
    assert back.unet.dtype == torch.float32 and not back.unet.training
    expected = {name: tensor.float() for name, tensor in pipe.unet.state_dict().items()}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in back.unet.state_dict().items())


def test_weights_open_as_they_are(folder: Path) -> None:
    state = torch.get_rng_state()
    pipe = PDiffPipeline.from_pretrained(folder)
    assert torch.equal(torch.get_rng_state(), state)  # opening draws no numbers
    for name in ("unet", "autoencoder"):
        component = getattr(pipe, name)
        stored = load_file(folder / name / WEIGHTS)
        assert component.state_dict().keys() == stored.keys()
        assert all(torch.equal(tensor, stored[key]) for key, tensor in component.state_dict().items())
    assert all(parameter.requires_grad for parameter in pipe.unet.parameters())
    assert not any(tensor.is_meta for tensor in [*pipe.unet.parameters(), *pipe.unet.buffers()])


@pytest.mark.parametrize("name", [*CONFIGS, f"unet/{WEIGHTS}"])
def test_no_file_is_a_pipe_or_a_device(folder: Path, name: str) -> None:
    for make in (os.mkfifo, lambda path: Path(path).symlink_to("/dev/zero")):
        (folder / name).unlink()
        make(folder / name)
        with pytest.raises((PdiffError, FileNotFoundError), match=r"is no regular file|it has no model_index"):
            PDiffPipeline.from_pretrained(folder)


VALUES: Any = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**20), 10**20), st.floats(), st.text(max_size=5),
    st.lists(st.integers(0, 10**9), max_size=3), st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_made_up_configurations(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("made-up")
    copy_shipped(folder)
    name = data.draw(st.sampled_from(CONFIGS))
    keys = sorted(json.loads((folder / name).read_text()))
    change(folder / name, **{data.draw(st.sampled_from(keys)): data.draw(VALUES)})
    assert "\n" not in error_of(folder)


@pytest.fixture
def broken(folder: Path) -> PDiffPipeline:
    """A pipeline whose second network comes out with NaN, as those of a damaged memory would."""
    pipe = PDiffPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    forward: Callable[..., Any] = pipe.unet.forward

    def damaged(sample: torch.Tensor, *others: Any) -> Any:
        out = forward(sample, *others)
        out.sample[1:] = math.nan
        return out

    pipe.unet.forward = damaged
    return pipe


@pytest.mark.parametrize("output_type", ["latent", "params", "state_dict"])
def test_what_is_generated_is_finite(broken: PDiffPipeline, output_type: str) -> None:
    assert broken(1, 2, output_type="latent").latents.isfinite().all()
    with pytest.raises(SamplingError, match=r"network 1 came out with NaN or infinity"):
        broken(3, 2, output_type=output_type)
    with pytest.raises(SamplingError, match="latents hold NaN"):
        broken(latents=torch.full((1, 4, 6), math.nan))


def test_what_is_written_is_finite(folder: Path, tmp_path: Path) -> None:
    pipe = PDiffPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    pipe.autoencoder.mean_P[5] = math.inf  # only the decoder makes it infinite
    latents = torch.zeros(2, 4, 6)
    with pytest.raises(SamplingError, match="network 0 came out with NaN"):
        write_latents(pipe, latents, tmp_path / "networks", {})
    with pytest.raises(SamplingError, match="network 0 came out with NaN"):
        write_params(pipe, 2, tmp_path / "rows" / "params.safetensors", seed=0)
    assert not list(tmp_path.rglob("model-*")) and not list((tmp_path / "rows").iterdir())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_network_that_is_not_finite_is_named(dtype: torch.dtype) -> None:
    numbers = torch.zeros(3, 4, 5, dtype=dtype)
    require_finite(numbers)
    require_finite(torch.zeros(0, 4))
    numbers[2, 3, 4] = math.inf
    with pytest.raises(SamplingError, match="network 12 came out"):
        require_finite(numbers, first=10)
