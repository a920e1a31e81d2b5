"""`ParamAutoencoder`: slices give what the whole gives, latents have unit std, and frozen tensors are kept."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from diffusers.utils.logging import is_progress_bar_enabled
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.records import TrainingFolder
from pdiff_hub.training import autoencoder as autoencoder_training
from pdiff_hub.training.autoencoder import _statistics, deviation_r2, fit_autoencoder, held_out_r2
from pdiff_hub.training.config import AutoencoderConfig
from pdiff_hub.training.holdout import split_rows
from pdiff_hub.training.loop import build_accelerator
from pdiff_hub.training.memory import give_back
from pdiff_hub.training.principal_components import _from_covariance, _from_gram
from pdiff_hub.training.row_slices import RowSlices
from pdiff_hub.travelling import param_autoencoder
from pdiff_hub.travelling.param_autoencoder import ParamAutoencoder, ParamLayout, _StridedConv, write_tensors


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 10))


def checkpoints(
    num: int = 30, rank: int = 6, seed: int = 0, noise: float = 0.0, module: nn.Module | None = None
) -> CheckpointDataset:
    torch.manual_seed(seed)
    module = module or network()
    layout = ParamLayout.from_module(module)
    base_P = layout.flatten(module.state_dict())
    directions_RP = 0.05 * torch.randn(rank, layout.num_params)
    params_KP = base_P + torch.randn(num, rank) @ directions_RP + noise * torch.randn(num, layout.num_params)
    for entry in layout.entries:
        if entry.log:
            params_KP[:, entry.start : entry.stop] = params_KP[:, entry.start : entry.stop].exp()
    return CheckpointDataset(
        params_KP,
        layout,
        network={"name": "test"},
        task={"dataset": "digits"},
        frozen=layout.frozen_state(module.state_dict()),
        metadata=[{"step": i} for i in range(num)],
        collect={},
    )


def fit(dataset: CheckpointDataset, config: AutoencoderConfig, tmp_path: Path, multiple: int = 1) -> ParamAutoencoder:
    autoencoder, latent_KCL, held_out_HCL = fit_autoencoder(
        dataset,
        config,
        length_multiple=multiple,
        seed=0,
        accelerator=build_accelerator(),
        state=TrainingFolder(tmp_path),
    )
    train_K, held_out_H = split_rows(dataset, config.holdout)
    assert torch.equal(latent_KCL, autoencoder.encode(dataset.params_KP[train_K]))
    assert torch.equal(held_out_HCL, autoencoder.encode(dataset.params_KP[held_out_H]))
    assert autoencoder.config.held_out == held_out_H
    return autoencoder


@pytest.mark.parametrize("normalization", ["none", "per_tensor", "per_parameter"])
def test_principal_components_hold_low_rank_checkpoints(tmp_path: Path, normalization: str) -> None:
    dataset = checkpoints()
    autoencoder = fit(dataset, AutoencoderConfig(normalization=normalization), tmp_path, multiple=4)
    assert autoencoder.config.latent_length % 4 == 0
    assert held_out_r2(autoencoder, dataset, 0.1) > 0.95
    train_K, _ = split_rows(dataset, 0.1)
    latent_KCL = autoencoder.encode(dataset.params_KP[train_K])
    std_CL = latent_KCL.std(dim=0, correction=0)
    used = std_CL > 0
    assert used.sum() == autoencoder.config.num_components
    assert torch.allclose(std_CL[used], torch.ones(int(used.sum())), atol=1e-3)
    assert latent_KCL.mean(dim=0).abs().max() < 1e-3
    components_NP = torch.cat(list(autoencoder.components), dim=1)
    gram = components_NP @ components_NP.T
    assert torch.allclose(gram, torch.eye(len(gram)), atol=1e-3)


@pytest.mark.parametrize("normalization", ["none", "per_tensor", "per_parameter"])
def test_components_through_either_matrix_are_the_same(normalization: str) -> None:
    dataset = checkpoints(noise=1e-4, module=nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6)))
    config = AutoencoderConfig(normalization=normalization)
    train_K, held_out_H = split_rows(dataset, 0.1)
    train, held_out = RowSlices(dataset, train_K), RowSlices(dataset, held_out_H)
    statistics = _statistics(dataset, train, config)
    ours = _from_gram(train, held_out, statistics)
    theirs = _from_covariance(dataset, train_K, held_out_H, statistics)
    assert ours.rank == theirs.rank == len(train_K) - 1
    assert torch.allclose(ours.explained_N, theirs.explained_N, atol=1e-5)
    train_KP = statistics.normalize(dataset.params_KP[train_K])
    for spectrum in (ours, theirs):
        first_NS, second_NS = (
            spectrum.components(6, 0, train_KP[:, :40]),
            spectrum.components(6, 10, train_KP[:, 10:40]),
        )
        assert torch.allclose(first_NS[:, 10:], second_NS, atol=1e-6)
    first_NP, second_NP = (spectrum.components(6, 0, train_KP) for spectrum in (ours, theirs))
    assert torch.allclose((first_NP * second_NP).sum(dim=1).abs(), torch.ones(6), atol=1e-4)  # signs are free


class Odd(nn.Module):
    """A scalar, complex numbers, one number, a constant, and a mask of -inf."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(1.0))
        self.filter = nn.Parameter(torch.zeros(3, 2, dtype=torch.complex64))
        self.one, self.three = nn.Parameter(torch.ones(1, 1)), nn.Parameter(torch.ones(3))
        self.register_buffer("constant", torch.tensor(torch.finfo(torch.float32).min))
        self.register_buffer("mask", torch.full((2, 2), -torch.inf))


@pytest.mark.parametrize("normalization", ["none", "per_tensor", "per_parameter"])
@pytest.mark.parametrize("num", [12, 40])  # fewer and more checkpoints than numbers
def test_scalars_and_complex_numbers_have_components(tmp_path: Path, normalization: str, num: int) -> None:
    layout = ParamLayout.from_module(Odd())
    assert layout.num_params == 18 and [entry.name for entry in layout.frozen] == ["mask"]
    states, torch_state = [], Odd().state_dict()
    for k in range(num):
        angle = torch.tensor(2 * math.pi * k / num)
        turn = torch.polar(torch.ones(3, 2), angle.expand(3, 2))
        states.append({**torch_state, "temperature": angle.sin(), "filter": turn, "one": angle.cos().reshape(1, 1)})
    dataset = CheckpointDataset(
        layout.flatten(states), layout, network={"name": "x"}, frozen=layout.frozen_state(torch_state)
    )
    config = AutoencoderConfig(normalization=normalization, num_components=2, holdout=0.0)
    autoencoder = fit(dataset, config, tmp_path)
    decoded = autoencoder.state_dicts(autoencoder.decode(autoencoder.encode(dataset.params_KP)))
    for state, found in zip(states, decoded, strict=True):
        Odd().load_state_dict(found, strict=True)
        for name, tensor in state.items():
            assert found[name].dtype == tensor.dtype and torch.allclose(found[name], tensor, atol=1e-4), name


def test_more_checkpoints_than_numbers(tmp_path: Path) -> None:
    dataset = checkpoints(num=100, rank=6, noise=1e-3, module=nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6)))
    assert dataset.layout.num_params < len(split_rows(dataset, 0.1)[0])
    autoencoder = fit(dataset, AutoencoderConfig(), tmp_path)
    assert autoencoder.config.num_components == 24 and held_out_r2(autoencoder, dataset, 0.1) > 0.95


def test_variances_come_out_positive(tmp_path: Path) -> None:
    autoencoder = fit(checkpoints(), AutoencoderConfig(), tmp_path)
    shape = (50, autoencoder.config.latent_channels, autoencoder.config.latent_length)
    params_BP = autoencoder.decode(5 * torch.randn(shape))
    for entry in autoencoder.layout.entries:
        if entry.log:
            assert (params_BP[:, entry.start : entry.stop] > 0).all()


@pytest.mark.parametrize("form", ["linear", "conv"])
@pytest.mark.parametrize("normalization", ["none", "per_tensor", "per_parameter"])
def test_slices_give_what_the_whole_gives(form: str, normalization: str) -> None:
    layout = ParamLayout.from_module(network())
    torch.manual_seed(0)
    options = {"layout": layout.to_dict(), "form": form, "normalization": normalization}
    whole = ParamAutoencoder(**options)
    nn.init.normal_(whole.scale).abs_().add_(0.1)
    if form == "linear":
        nn.init.normal_(whole.components[0])
    sliced = ParamAutoencoder(**options, slice_size=700)
    assert len(list(sliced.slices)) > 1
    state = whole.state_dict()
    if form == "linear":
        whole_NP = state.pop("components.0")
        state |= {f"components.{i}": whole_NP[:, start:stop] for i, (start, stop) in enumerate(sliced.slices)}
    sliced.load_state_dict(state)
    params_BP = torch.rand(3, layout.num_params) + 0.1
    latent_BCL = whole.encode(params_BP)
    assert torch.allclose(latent_BCL, sliced.encode(params_BP), rtol=1e-4, atol=1e-4)
    assert torch.allclose(whole.decode(latent_BCL), sliced.decode(latent_BCL), rtol=1e-4, atol=1e-4)


def test_save_and_load_keep_every_bit(tmp_path: Path) -> None:
    dataset = checkpoints()
    autoencoder = fit(dataset, AutoencoderConfig(), tmp_path)
    autoencoder.save_pretrained(tmp_path / "saved")
    loaded = ParamAutoencoder.from_pretrained(tmp_path / "saved", torch_dtype=torch.float16).float()
    exact = ParamAutoencoder.from_pretrained(tmp_path / "saved")
    latent = torch.randn(2, exact.config.latent_channels, exact.config.latent_length)
    assert torch.equal(exact.decode(latent), autoencoder.decode(latent))
    for name, tensor in dataset.frozen.items():
        assert torch.equal(tensor, loaded.frozen_state()[name]) and tensor.dtype == loaded.frozen_state()[name].dtype
    network().load_state_dict(exact.state_dicts(exact.decode(latent))[1], strict=True)


def test_many_components_lie_in_several_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = ParamLayout.from_module(network())
    torch.manual_seed(0)
    autoencoder = ParamAutoencoder(layout.to_dict(), slice_size=300)
    for part_NS in autoencoder.components:
        nn.init.normal_(part_NS)
    autoencoder.save_pretrained(tmp_path / "one")
    monkeypatch.setattr("pdiff_hub.travelling.param_autoencoder._SHARD_BYTES", 100_000)
    autoencoder.save_pretrained(tmp_path / "many")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 3
    one, many = (ParamAutoencoder.from_pretrained(tmp_path / name, use_safetensors=True) for name in ("one", "many"))
    assert capsys.readouterr().err == "" and is_progress_bar_enabled()  # no progress bar without a terminal
    many.save_pretrained(tmp_path / "again")
    for file in (tmp_path / "many").glob("*.safetensors*"):
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()
    latent_BCL = torch.randn(3, one.config.latent_channels, one.config.latent_length)
    assert torch.equal(one.decode(latent_BCL), many.decode(latent_BCL))
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, many.state_dict()[name])


def test_tensors_are_written_as_safetensors_writes_them(tmp_path: Path) -> None:
    whole = torch.randn(4, 6)
    tensors = {
        "b": torch.arange(5, dtype=torch.int64),
        "tied": whole[1],
        "a": whole[1].clone(),
        "turned": whole.T,
        "half": torch.ones(3, dtype=torch.bfloat16),
        "flag": torch.tensor(True),
        "none": torch.empty(0, 2),
    }
    written: list[int] = []
    write_tensors(tmp_path / "ours", tensors, lambda tensor: written.append(tensor.numel()))
    assert sorted(written) == sorted(tensor.numel() for tensor in tensors.values())
    save_file(
        {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()},
        tmp_path / "theirs",
        {"format": "pt"},
    )
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_memory_given_back_keeps_its_content(tmp_path: Path) -> None:
    own = torch.randn(3_000_000)
    save_file({"x": own}, tmp_path / "file")
    mapped, before = load_file(tmp_path / "file")["x"], own.clone()
    for tensor in (own, mapped, mapped[10:50_000], own[:3]):
        give_back(tensor)
    assert torch.equal(own, before) and torch.equal(mapped, before)


@pytest.mark.parametrize("transposed", [False, True])
def test_strided_convolutions_are_torchs(transposed: bool) -> None:
    torch.manual_seed(0)
    ours = _StridedConv(3, 5, 4, transposed)
    theirs = (nn.ConvTranspose1d if transposed else nn.Conv1d)(3, 5, kernel_size=4, stride=4)
    values_BLC = torch.randn(2, 8, 3)
    with torch.no_grad():
        theirs.bias.copy_(ours.bias)
        theirs.weight.copy_(
            ours.weight.reshape(3, 4, 5).permute(0, 2, 1)
            if transposed
            else ours.weight.reshape(4, 3, 5).permute(2, 1, 0)
        )
        expected_BCL = theirs(values_BLC.transpose(1, 2))
        assert torch.allclose(ours(values_BLC).transpose(1, 2), expected_BCL, atol=1e-6)


def test_some_rows_at_a_time_give_what_all_give(monkeypatch: pytest.MonkeyPatch) -> None:
    params_KP = checkpoints(num=5).params_KP
    layout = ParamLayout.from_module(network())
    torch.manual_seed(0)
    autoencoder = ParamAutoencoder(layout.to_dict(), form="conv", latent_length=-(-layout.num_params // 625))

    def there_and_back() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            latent_KCL = autoencoder.encode(params_KP)
            return latent_KCL, autoencoder.decode(latent_KCL)

    together = there_and_back()
    # The decoder's widest layer has 256 channels and 125 places per block of 625, so two rows fit at a time.
    monkeypatch.setattr(param_autoencoder, "_ACTIVATION_NUMBERS", 2 * 256 * 125 * autoencoder.config.latent_length)
    for whole, parts in zip(together, there_and_back(), strict=True):
        assert torch.allclose(parts, whole, rtol=1e-5, atol=1e-6)
    monkeypatch.setattr(param_autoencoder, "_ACTIVATION_NUMBERS", 1)
    for whole, parts in zip(together, there_and_back(), strict=True):
        assert torch.allclose(parts, whole, rtol=1e-5, atol=1e-6)


def test_conv_form_overfits_one_checkpoint(tmp_path: Path) -> None:
    # The autoencoder is not centred on the checkpoint, so the decoder itself must hold the vector.
    params_1P = checkpoints(num=2).params_KP[:1]
    layout = ParamLayout.from_module(network())
    torch.manual_seed(0)
    autoencoder = ParamAutoencoder(
        layout.to_dict(), form="conv", normalization="none", latent_length=-(-layout.num_params // 625)
    )
    target_1P = autoencoder.normalize(params_1P)
    optimizer = torch.optim.AdamW(autoencoder.parameters(), lr=2e-3)
    for _ in range(400):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(autoencoder(target_1P), target_1P)
        loss.backward()
        optimizer.step()
    assert loss < 0.01 * target_1P.var()


@pytest.mark.parametrize("window", [autoencoder_training._WINDOW_PARAMS, 625])
def test_training_on_improves_a_conv_autoencoder_on_deviations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    monkeypatch.setattr(autoencoder_training, "_WINDOW_PARAMS", window)
    dataset = checkpoints(rank=3)
    config = AutoencoderConfig(
        form="conv", steps=300, learning_rate=1e-2, latent_noise=0.01, decoder_widths=(4, 64, 64, 8)
    )
    autoencoder = fit(dataset, config, tmp_path)
    windows = autoencoder_training._windows(autoencoder)
    assert (len(windows) > 1) == (window == 625)
    assert [number for part in windows for number in range(*part)] == list(range(dataset.layout.num_params))
    assert held_out_r2(autoencoder, dataset, 0.1) > 0.1
    trained = fit(dataset, AutoencoderConfig(steps=20, learning_rate=1e-4), tmp_path / "linear")
    assert held_out_r2(trained, dataset, 0.1) > 0.9


def test_a_decoder_of_the_mean_has_no_deviation_r2() -> None:
    dataset = checkpoints()
    mean_P = dataset.params_KP.mean(dim=0)
    autoencoder = ParamAutoencoder(dataset.layout.to_dict(), normalization="none")
    autoencoder.mean_P.copy_(autoencoder.to_log(mean_P[None], 0)[0])

    def read(start: int, stop: int) -> Tensor:
        return dataset.params_KP[:, start:stop]

    assert abs(deviation_r2(autoencoder, read, lambda start, stop: mean_P[start:stop])) < 0.05


@pytest.mark.parametrize("num_components", [1, 3, 6])
def test_deviation_r2_equals_naive(tmp_path: Path, num_components: int) -> None:
    dataset = checkpoints(noise=0.01)
    autoencoder = fit(dataset, AutoencoderConfig(num_components=num_components), tmp_path)
    train_K, held_out_H = split_rows(dataset, 0.1)
    params_HP = dataset.params_KP[held_out_H]
    mean_P = dataset.params_KP[train_K].mean(dim=0)
    with torch.no_grad():
        error_HP = (params_HP - autoencoder.decode(autoencoder.encode(params_HP))).double()
    naive = 1 - float(error_HP.square().sum() / (params_HP - mean_P).double().square().sum())
    assert held_out_r2(autoencoder, dataset, 0.1) == pytest.approx(naive, abs=1e-6)
    equal = mean_P.expand(2, -1)
    assert math.isnan(
        deviation_r2(autoencoder, lambda start, stop: equal[:, start:stop], lambda start, stop: mean_P[start:stop])
    )


def test_bad_options() -> None:
    layout = ParamLayout.from_module(network())
    with pytest.raises(ValueError, match="unknown autoencoder form 'convolution'"):
        ParamAutoencoder(layout.to_dict(), form="convolution")
    with pytest.raises(ValueError, match="100 components do not fit"):
        ParamAutoencoder(layout.to_dict(), num_components=100)
    with pytest.raises(ValueError, match="expected at least 3"):
        ParamAutoencoder(layout.to_dict(), form="conv", latent_length=2)
    with pytest.raises(ValueError, match="latents have shape"):
        ParamAutoencoder(layout.to_dict()).decode(torch.zeros(1, 4, 15))
    with pytest.raises(ValueError, match="parameters have shape"):
        ParamAutoencoder(layout.to_dict()).encode(torch.zeros(1, 15))
    with pytest.raises(ValueError, match=r"autoencoder\.explained"):
        AutoencoderConfig(explained=0.0)


def test_equal_checkpoints_are_refused(tmp_path: Path) -> None:
    dataset = checkpoints()
    same = CheckpointDataset(
        dataset.params_KP[:1].repeat(5, 1),
        dataset.layout,
        network=dataset.network,
        task=dataset.task,
        frozen=dataset.frozen,
        metadata=[{}] * 5,
        collect={},
    )
    with pytest.raises(ValueError, match="all training checkpoints are equal"):
        fit(same, AutoencoderConfig(), tmp_path)
