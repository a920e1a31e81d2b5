"""A user's network is made plain, and checked by one forward pass that changes nothing, before any work is done."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import odd_networks
import pytest
import torch
from torch import nn

from pdiff_hub import ParamLayout
from pdiff_hub.collect.family import FamilyConfig, collect_family
from pdiff_hub.collect.finetune import FinetuneConfig, collect_finetune
from pdiff_hub.collect.population import PopulationConfig, collect_population
from pdiff_hub.networks import build_network, resolve_network
from pdiff_hub.networks.dry_run import build_checked, build_to_judge, dry_run
from pdiff_hub.prediction.predictions import predict_logits
from pdiff_hub.recipes import load_recipe
from pdiff_hub.runs.collecting import collect
from pdiff_hub.tasks import Task, load_task

IMAGES = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
TINY = FinetuneConfig(num_checkpoints=2, save_every=1, epochs=1, batch_size=64)


def spec_of(name: str, num_classes: int = 10, **options: Any) -> dict[str, Any]:
    full = name if name in ("mlp", "convnet3", "resnet18") else f"odd_networks:{name}"
    return resolve_network({"name": full, **options}, in_channels=1, image_size=8, num_classes=num_classes)


@pytest.fixture(scope="module")
def task() -> Task:
    return load_task({"dataset": "digits", "train_size": 128})


@pytest.mark.parametrize("name", ["compiled", "compiled_in_place", "parallel", "compiled_and_parallel"])
def test_a_wrapped_network_is_the_one_inside(name: str) -> None:
    network, expected = build_checked(spec_of(name), seed=4), build_network(spec_of("mlp", hidden=[8]), seed=4)
    assert type(network) is nn.Sequential and network.training
    assert list(network.state_dict()) == list(odd_networks.mlp().state_dict())
    assert all(map(torch.equal, network.state_dict().values(), expected.state_dict().values()))
    assert torch.equal(network(IMAGES), expected(IMAGES))


def test_wrappers_inside_a_network_keep_their_names_and_only_pass_on() -> None:
    network: Any = build_checked(spec_of("wrapped_inside"), seed=4)
    plain = build_network(spec_of("mlp", hidden=[8]), seed=4)
    assert list(network.state_dict()) == ["1._orig_mod.weight", "1._orig_mod.bias", "3.module.weight", "3.module.bias"]
    assert network[1].in_features == 64 and not hasattr(network[1], "nothing")
    assert torch.equal(copy.deepcopy(network)(IMAGES), plain(IMAGES))


def test_lazy_layers_get_their_shapes_from_the_task() -> None:
    network = build_checked(spec_of("lazy"), seed=4)
    again = build_network(spec_of("lazy"), seed=4)
    assert ParamLayout.from_module(network).num_params == 64 * 8 + 8 + 4 * 8 + 90
    assert all(map(torch.equal, network.state_dict().values(), again.state_dict().values()))
    state = network.state_dict()
    assert int(state["2.num_batches_tracked"]) == 0 and torch.equal(state["2.running_mean"], torch.zeros(8))


@pytest.mark.parametrize("name", ["bfloat16", "float64", "lazy_and_half"])
def test_a_network_keeps_its_dtype_and_takes_float32_images(name: str) -> None:
    network = build_checked(spec_of(name))
    dtype = torch.float64 if name == "float64" else torch.bfloat16
    assert {tensor.dtype for tensor in network.state_dict().values()} == {dtype}
    answers = network(IMAGES)
    assert answers.dtype == dtype and torch.equal(answers, network(IMAGES.to(dtype)))
    assert copy.deepcopy(network).double()(IMAGES).dtype == torch.float64  # as alignment works with it


def test_a_network_that_converts_its_images_gets_them_as_they_are() -> None:
    assert build_checked(spec_of("KnowsItsDtype"))(IMAGES).dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["bfloat16", "float64"])
@pytest.mark.parametrize("method", ["finetune", "population"])
def test_other_dtypes_are_collected_and_judged_in_their_own(name: str, method: str, task: Task, tmp_path: Path) -> None:
    if method == "finetune":
        dataset = collect_finetune(task, spec_of(name), "all", TINY, tmp_path, seed=0, progress=False)
    else:
        config = PopulationConfig(num_checkpoints=2, epochs=1, align_rounds=1)
        dataset = collect_population(task, spec_of(name), "all", config, tmp_path, seed=0, progress=False)
    assert {entry.dtype for entry in dataset.layout.entries} == {name}
    network = build_to_judge(dataset.network, dataset.layout, "the data set", allow_factory=True)
    found = predict_logits(network, dataset.layout, dataset.frozen, dataset.params_KP, IMAGES)
    for row in range(2):
        state = dataset.state_dict(row)
        assert {tensor.dtype for tensor in state.values()} == {getattr(torch, name)}
        network.load_state_dict(state, strict=True)
        assert torch.allclose(found[row], network(IMAGES).float(), atol=1e-6 if name == "float64" else 2e-2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("one_logit", r"it has 1 logits, and the task has 10 classes; give its last layer 10 outputs"),
        ("nine_logits", r"answers 2 images with float32 numbers \[2, 9\], expected float numbers \[2, 10\]"),
        ("eleven_logits", "it has 11 logits, and the task has 10 classes"),
        ("map_of_logits", r"numbers \[2, 10, 1, 1\], expected float numbers \[2, 10\]: flatten or average"),
        ("one_row", r"numbers \[10\], expected float numbers \[2, 10\]: one row per image"),
        ("Answer", r"int64 numbers \[2\]"),
        ("Tuple", "tensor of logits, or an object or a dict with logits, found tuple"),
        ("other_size", r"cannot take images \[2, 1, 8, 8\] .*RuntimeError.* shapes .*take in_channels and image_size"),
        ("other_channels", r"cannot take images \[1, 1, 8, 8\] .*to have 3 channels, but got 1 channels"),
        ("TwoInputs", "TypeError.*missing 1 required positional argument: 'more'"),
        ("on_meta", "tensor '1.weight' .* is on the meta device, where it has no numbers"),
        ("no_numbers", "tensor '1.weight' .* is on the meta device, where it has no numbers"),
        ("scripted", "is scripted .*return the network from before torch.jit.script"),
        ("lazy_unused", "tensor 'unused.weight' has no shape; remove the layer, or give its size"),
        ("ExtraState", r"saves '_extra_state', which is extra state \(get_extra_state\).*register_buffer"),
        ("LeavesOut", "leaves its parameter 'net.1.bias' out of its state dict"),
        ("ChangesInEval", "changes its tensor 'seen' in eval mode"),
        ("ChangesImages", "changes the images that it is given"),
        ("Sparse", r"tensor 'mask' .* is sparse or nested \(torch.sparse_coo\)"),
        ("HiddenNumbers", "has other numbers in 'scale' each time .* or save them"),
        (
            "drawn_from_the_system",
            "has other numbers in '1.weight' each time that it is built with the same seed; take",
        ),
        ("other_width_each_time", r"is another one each time that it is built: tensor '1.bias' is float32 \[\d+\] and"),
        ("fails", r"could not be built: KeyError: 'width' \(odd_networks.py, line \d+\)"),
    ],
)
def test_what_cannot_work_is_one_sentence_with_its_name(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        build_checked(spec_of(name))
    text = str(caught.value)
    assert f"network 'odd_networks:{name}'" in text and "\n" not in text and len(text) < 600


@pytest.mark.parametrize(
    "name", ["ForgetsToReturn", "Dictionary", "Counts", "drawn_elsewhere", "drawn_from_the_system"]
)
def test_what_people_write_works(name: str) -> None:
    network = build_checked(spec_of(name), from_files=name == "drawn_from_the_system")
    assert network.training and all(module.training for module in network.modules())


def test_numbers_drawn_from_other_generators_follow_from_the_seed() -> None:
    random.seed(1)
    np.random.seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist()
    one, same, other = (build_network(spec_of("drawn_elsewhere"), seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["1.weight"], other["1.weight"]) and not torch.equal(one["3.bias"], other["3.bias"])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


@pytest.mark.parametrize("name", ["Dictionary", "ChangesInEval", "Counts", "lazy"])
def test_a_dry_run_changes_nothing(name: str) -> None:
    network: Any = build_network(spec_of(name))
    if name == "lazy":
        network[2].eval()  # as people freeze a norm
    state = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    modes, generator = [module.training for module in network.modules()], torch.get_rng_state()
    try:
        dry_run(network, spec_of(name))
    except ValueError:
        assert name == "ChangesInEval"
    assert all(torch.equal(state[key], tensor) for key, tensor in network.state_dict().items())
    assert [module.training for module in network.modules()] == modes
    assert torch.equal(torch.get_rng_state(), generator)
    assert getattr(network, "calls", 0) == 0


def test_a_dry_run_is_one_forward_pass_of_two_images() -> None:
    network, sizes = build_network(spec_of("convnet3", norm="batch")), []
    network.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(inputs[0].shape)))
    dry_run(network, spec_of("convnet3", norm="batch"))
    assert sizes == [(2, 1, 8, 8)]


def test_random_answers_are_warned_of() -> None:
    with pytest.warns(UserWarning, match="'odd_networks:Random' draws random numbers in eval mode"):
        build_checked(spec_of("Random"))


@pytest.mark.parametrize("method", ["finetune", "population", "family", "import"])
def test_every_way_to_collect_checks_first(method: str, task: Task, tmp_path: Path) -> None:
    place = tmp_path / "set"
    population = PopulationConfig(num_checkpoints=2)
    family = FamilyConfig(num_tasks=2, held_out_tasks=0)
    options: dict[str, Any] = {"seed": 0, "progress": False}
    (tmp_path / "recipe.yaml").write_text(
        "task: digits\nnetwork: {name: 'odd_networks:one_logit'}\ncollect: {method: import, source: nowhere}\n"
    )
    ways: dict[str, Callable[[], object]] = {
        "finetune": lambda: collect_finetune(task, spec_of("one_logit"), "all", TINY, place, **options),
        "population": lambda: collect_population(task, spec_of("one_logit"), "all", population, place, **options),
        "family": lambda: collect_family(task, spec_of("one_logit", 2), "all", family, place, **options),
        "import": lambda: collect(load_recipe(tmp_path), place, trust_remote_code=True),
    }
    with pytest.raises(ValueError, match=r"network 'odd_networks:one_logit' .*it has 1 logits, and the task has"):
        ways[method]()
    assert not place.exists() or not list(place.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("hidden", "message"),
    [
        ([10**6, 10**9], r"network 'mlp' of this size takes 4,\d\d\d,\d\d\d GB, and this machine has"),
        ([10**12, 10**12], r"the spec of network 'mlp' describes no network that can be built \(.{1,300}\)\.$"),
    ],
)
def test_a_named_network_larger_than_the_machine_is_refused(hidden: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_checked(spec_of("mlp", hidden=hidden))
