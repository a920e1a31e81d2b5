"""Judging holds few whole networks at once, however many it judges; some at a time, they are judged as all together."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.checkpoints.rows import TensorRows
from pdiff_hub.evaluation import baselines, distances, fine_tuning, measuring, traits
from pdiff_hub.evaluation.baselines import Variant, baseline_variants
from pdiff_hub.evaluation.evaluate import evaluate_networks
from pdiff_hub.evaluation.judging import Judge
from pdiff_hub.evaluation.measuring import Measure, Measured, latents_of
from pdiff_hub.networks import build_network, resolve_network
from pdiff_hub.prediction import predictions
from pdiff_hub.tasks import Split, Task, load_task
from pdiff_hub.travelling.param_autoencoder import ParamAutoencoder, ParamLayout

SPEC = resolve_network({"name": "mlp3", "hidden": [96, 96]}, in_channels=1, image_size=8, num_classes=10)
PARAMS = 96 * 64 + 96 * 96 + 10 * 96 + 2 * 96 + 10


class Allocations(TorchDispatchMode):
    """The most bytes of tensors that were alive at once; of those that an operation made or looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._total = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._total -= self._alive.get(storage._cdata, (None, 0))[1]
                self._alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
                self._total += storage.nbytes()
        if self._total > self.peak:  # only now it matters which are gone
            self._alive = {key: each for key, each in self._alive.items() if not each[0].expired()}
            self._total = sum(size for _, size in self._alive.values())
            self.peak = max(self.peak, self._total)
        return made


@pytest.fixture(scope="module")
def task() -> Task:
    return load_task("digits")


def fewer_images(task: Task) -> Task:
    """So few that networks, and not images, are what takes memory."""
    splits = {
        name: Split(split.images_NCHW[:16], split.labels_N[:16])
        for name, split in (("train", task.train), ("validation", task.validation), ("test", task.test))
    }
    return Task(**{**task.__dict__, **splits})


@pytest.fixture
def two_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits as they would be for networks that are thousands of times larger."""
    monkeypatch.setattr(baselines, "_BLOCK_BYTES", 2 * 4 * PARAMS)
    monkeypatch.setattr(fine_tuning, "_GROUP_BYTES", 1)
    monkeypatch.setattr(measuring, "_ENCODED_BYTES", 1)
    monkeypatch.setattr(predictions, "_VMAP_PARAM_BYTES", 4 * PARAMS)
    monkeypatch.setattr(traits, "_SLICE_BYTES", 1)
    for module in (baselines, distances):
        monkeypatch.setattr(module, "_SLICE_BYTES", 1 << 16)


def checkpoints(num: int, seed: int = 0) -> CheckpointDataset:
    layout = ParamLayout.from_module(build_network(SPEC))
    params_KP = 0.1 * torch.randn(num, layout.num_params, generator=torch.Generator().manual_seed(seed))
    return CheckpointDataset(params_KP, layout, network=SPEC)


def fitted(of: CheckpointDataset) -> ParamAutoencoder:
    torch.manual_seed(3)
    model = ParamAutoencoder(of.layout.to_dict(), latent_channels=2, latent_length=2, num_components=3, slice_size=8192)
    for part_NS in model.components:
        torch.nn.init.normal_(part_NS, std=0.01)
    return model.eval().requires_grad_(False)


@pytest.mark.usefixtures("two_at_once")
def test_judging_holds_few_whole_networks_at_once(task: Task) -> None:
    originals, network, few = checkpoints(6), build_network(SPEC), fewer_images(task)
    autoencoder = fitted(originals)

    def most_at_once(number: int) -> float:
        judge, generated = Judge(network, few, originals.layout, {}), checkpoints(number, seed=1).rows
        with Allocations() as allocations:
            measure = Measure(judge, originals, list(range(6)), autoencoder)
            measure(generated, decoded=True)
            for variant in baseline_variants(network, few, autoencoder, fine_tune_steps=1)[2:]:
                generator = torch.Generator().manual_seed(0)
                blocks = variant.blocks(originals, number, generator)
                assert len(measure.in_blocks(blocks, decoded=variant.method == "autoencoder")) == number
        return allocations.peak / (4 * PARAMS) - number  # those that were given are in memory here, as one tensor

    few_networks, many = most_at_once(2), most_at_once(7)
    # The originals are 6, the autoencoder's components and mean 4. A block is 2, and fine-tuning one network takes 6:
    # weights, gradients, two moments, and what its first step makes of them.
    assert few_networks < 22 and many < few_networks + 1, (few_networks, many)


@pytest.mark.usefixtures("two_at_once")
def test_a_block_is_dropped_before_the_next_is_made(task: Task) -> None:
    originals, made, sizes = checkpoints(4), list[weakref.ref[Tensor]](), list[int]()

    def make(dataset: CheckpointDataset, num_models: int, generator: torch.Generator) -> Tensor:
        assert all(each() is None for each in made)
        params_BP = baselines.gaussian(dataset, num_models, generator)
        made.append(weakref.ref(params_BP))
        sizes.append(num_models)
        return params_BP

    evaluate_networks(
        build_network(SPEC),
        task,
        originals,
        originals.params_KP,
        deviation_r2=None,
        variants=[Variant("gaussian", "gaussian", make)],
        num_models=5,
    )
    assert sizes == [2, 2, 1]


def test_blocks_go_on_with_the_generator_and_few_networks_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    originals, variant = checkpoints(4), Variant("interpolation", "interpolation", baselines.interpolation)

    def made(number: int) -> list[Tensor]:
        return list(variant.blocks(originals, number, torch.Generator().manual_seed(3)))

    (whole_BP,) = made(7)
    assert torch.equal(whole_BP, baselines.interpolation(originals, 7, torch.Generator().manual_seed(3)))
    monkeypatch.setattr(baselines, "_BLOCK_BYTES", 3 * 4 * PARAMS)
    generator = torch.Generator().manual_seed(3)
    wanted = [baselines.interpolation(originals, number, generator) for number in (3, 3, 1)]
    assert all(torch.equal(one, other) for one, other in zip(made(7), wanted, strict=True))
    assert len(torch.cat(wanted).unique(dim=0)) == 7
    monkeypatch.setattr(baselines, "_BLOCK_BYTES", 1)
    assert [len(each) for each in made(3)] == [1, 1, 1]


def test_in_blocks_networks_are_measured_as_all_together(task: Task) -> None:
    originals, others_BP = checkpoints(5), checkpoints(7, seed=1).params_KP
    others_BP[5] = originals.params_KP[2]
    judge = Judge(build_network(SPEC), task, originals.layout, {})
    measure = Measure(judge, originals, list(range(5)), fitted(originals))
    together, blocks = measure(others_BP), measure.in_blocks(iter(others_BP.split(3)))
    assert float(blocks.nearest_l2_B[5]) == float(blocks.nearest_latent_B[5]) == 0.0 and len(blocks) == 7

    def numbers(of: Measured) -> list[Tensor]:
        both = [of.judged.validation, of.judged.test]
        answers = [each for one in both for each in (one.accuracy_B, one.wrong_BN, one.loss_B, one.confidence_B)]
        own = [of.max_iou_B, of.nearest_l2_B, of.nearest_latent_B, of.second_latent_B, of.traits_BF]
        return [each for each in (*answers, *own) if each is not None]

    assert len(numbers(together)) == 11
    for one, other in zip(numbers(together), numbers(blocks), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["linear", "conv"])
def test_networks_are_encoded_some_at_a_time(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    originals = checkpoints(5)
    autoencoder = fitted(originals)
    if form == "conv":
        torch.manual_seed(0)
        options = {"latent_length": 40, "kernel_size": 5, "encoder_widths": [4] * 4, "decoder_widths": [4] * 4}
        autoencoder = ParamAutoencoder(originals.layout.to_dict(), form="conv", latent_channels=4, **options)
        autoencoder.eval().requires_grad_(False)

    read: list[int] = []

    class Counted(TensorRows):
        def read(self, first: int, last: int, start: int, stop: int) -> Tensor:
            read.append(last - first)
            return super().read(first, last, start, stop)

    rows = Counted(originals.params_KP)
    whole_BN = latents_of(autoencoder, rows)
    assert set(read) == {5}
    monkeypatch.setattr(measuring, "_ENCODED_BYTES", 2 * 4 * max(b - a for a, b in autoencoder.slices))
    read.clear()
    torch.testing.assert_close(latents_of(autoencoder, rows), whole_BN, rtol=1e-4, atol=1e-4)
    assert set(read) == {2, 1}


def test_large_networks_with_small_activations_take_turns() -> None:
    device = torch.device("cpu")
    assert predictions._chunk_sizes(512, 512, 100, 64, device, 1_000_000) == (True, 67, 64)
    assert predictions._chunk_sizes(512, 512, 100, 64, device, 9000)[:2] == (True, 100)
    assert predictions._chunk_sizes(512, 512, 100, 64, device, 17_000_000)[:2] == (False, 1)
