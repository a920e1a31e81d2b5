"""Tensors that cannot be generated are compared wherever checkpoints are collected, not taken from the first."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pdiff_hub.collect.finetune import FinetuneConfig, collect_finetune
from pdiff_hub.collect.population import PopulationConfig, collect_population
from pdiff_hub.collect.shared_tensors import first_difference, remedy
from pdiff_hub.collect.whole_networks import require_shared, whole_layout
from pdiff_hub.networks import resolve_network
from pdiff_hub.tasks import Task, load_task
from pdiff_hub.travelling.param_autoencoder import ParamLayout

QUICK = FinetuneConfig(num_checkpoints=2, save_every=1, epochs=0)


class Pick(nn.Module):
    """Looks at some pixels: the same, or drawn ones. It may count how often it was used."""

    def __init__(self, num_classes: int, drawn: bool = False, counts: bool = False):
        super().__init__()
        self.head, self.counts = nn.Linear(8, num_classes), counts
        picked = torch.randint(64, (8,)) if drawn else torch.arange(20, 28)
        self.pick = nn.Parameter(picked, requires_grad=False)
        self.register_buffer("used", torch.tensor(0))
        self.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))

    def forward(self, images: Tensor) -> Tensor:
        if self.counts:
            self.used += 1
        output: Tensor = self.head(images.flatten(1)[:, self.pick])
        return output


class Turning(nn.Module):
    def __init__(self, num_classes: int):
        super().__init__()
        self.filter = nn.Parameter(torch.randn(64, num_classes, dtype=torch.complex64) / 8)

    def forward(self, images: Tensor) -> Tensor:
        return (images.flatten(1).to(torch.complex64) @ self.filter).abs()


@pytest.fixture(scope="module")
def task() -> Task:
    return load_task("digits")


def spec(name: str, **options: bool) -> dict[str, object]:
    return resolve_network({"name": f"{__name__}:{name}", **options}, in_channels=1, image_size=8, num_classes=10)


def test_drawn_integers_are_named_before_any_work(task: Task, tmp_path: Path) -> None:
    config = PopulationConfig(num_checkpoints=2, epochs=1, align=False)
    with pytest.raises(ValueError, match=r"tensor 'pick' differs between the networks.*it is int64"):
        collect_population(task, spec("Pick", drawn=True), "all", config, tmp_path / "drawn", seed=0)
    assert not (tmp_path / "drawn").exists()
    dataset = collect_population(task, spec("Pick"), "all", config, tmp_path / "same", seed=0, progress=False)
    assert dataset.frozen["pick"].tolist() == list(range(20, 28)) and dataset.frozen["mask"].isinf().sum() == 1


def test_an_integer_that_changes_in_training_is_named(task: Task, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tensor 'used' is not selected, but the network changes it"):
        collect_finetune(task, spec("Pick", counts=True), "all", QUICK, tmp_path / "counts", seed=0, progress=False)
    dataset = collect_finetune(task, spec("Pick"), "all", QUICK, tmp_path / "still", seed=0, progress=False)
    assert dataset.frozen["used"] == 0 and len(dataset) == 2


def test_complex_parameters_are_fine_tuned_as_pairs(task: Task, tmp_path: Path) -> None:
    dataset = collect_finetune(task, spec("Turning"), "all", QUICK, tmp_path, seed=0, progress=False)
    assert dataset.layout.num_params == 2 * 640 and dataset.state_dict(0)["filter"].dtype == torch.complex64
    assert not torch.equal(dataset.params_KP[0], dataset.params_KP[1])
    with pytest.raises(
        ValueError, match=r"tensor 'filter' is torch\.complex64, and collect\.method: population trains"
    ):
        whole_layout(Turning(10), "all", "population", "differs")


def test_which_tensors_differ() -> None:
    first = {"bn.num_batches_tracked": torch.tensor(1), "flags": torch.tensor([True]), "w": torch.ones(1)}
    assert first_difference(first, {**first, "bn.num_batches_tracked": torch.tensor(2)}) is None
    assert first_difference(first, {**first, "flags": torch.tensor([False])}) == "flags"
    assert first_difference(first, {**first, "w": torch.zeros(1)}) == "w"
    assert "bool" in remedy(first["flags"]) and "select it too" in remedy(first["w"])
    layout = ParamLayout.from_module(Pick(2))
    stacked = {name: torch.stack([tensor, tensor]) for name, tensor in Pick(2).state_dict().items()}
    require_shared(layout, stacked)
    stacked["pick"][1, 0] = 0
    with pytest.raises(ValueError, match="tensor 'pick' differs between the networks"):
        require_shared(layout, stacked)
