"""Fine-tuning: which tensors change and which do not, and that a killed run ends with exactly the same checkpoints."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import processes
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.collect.finetune import FinetuneConfig, collect_finetune, collecting, image_batches
from pdiff_hub.collect.finetune import run as finetune_run
from pdiff_hub.collect.finetune.run import FinetuneRun
from pdiff_hub.collect.journal import CheckpointJournal, TrainingState
from pdiff_hub.networks import build_network, logits, prefix_recording, resolve_network
from pdiff_hub.recipes.recipe import recipe_from_dict
from pdiff_hub.tasks import Task, load_task

TINY = FinetuneConfig(num_checkpoints=7, save_every=2, epochs=1, label_smoothing=0.1)
MLP = {"name": "mlp3", "hidden": [8, 8]}
BATCH_NORM = {"name": "convnet3", "widths": [4, 4, 4], "norm": "batch"}


class Tied(nn.Module):
    """Has two layers that share one weight, dropout, and a bias that the network itself freezes."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.first = nn.Linear(64, 64)
        self.second = nn.Linear(64, 64)
        self.second.weight = self.first.weight
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(64, num_classes)
        self.head.bias.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.second(self.first(images.view(len(images), -1)).relu()).relu()
        output: Tensor = self.head(self.dropout(hidden))
        return output


class Drifting(nn.Module):
    """Changes a buffer wherever its head is trained, also in eval mode of its own."""

    count: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(64, num_classes)
        self.register_buffer("count", torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        if self.head.training:
            self.count += 1
        output: Tensor = self.head(images.flatten(1))
        return output


@pytest.fixture(scope="module")
def task() -> Task:
    return load_task({"dataset": "digits", "train_size": 320, "augment": {"crop_padding": 1}})


def collect(
    task: Task, directory: Path, network: Any = MLP, select: Any = "all", seed: int = 3, config: FinetuneConfig = TINY
) -> CheckpointDataset:
    return collect_finetune(task, network, select, config, directory, seed=seed, progress=False)


def assert_same(found: CheckpointDataset, expected: CheckpointDataset) -> None:
    assert torch.equal(found.params_KP, expected.params_KP)
    assert found.metadata == expected.metadata
    assert found.collect == expected.collect
    assert found.frozen.keys() == expected.frozen.keys()
    assert all(torch.equal(found.frozen[name], tensor) for name, tensor in expected.frozen.items())


def test_checkpoints_learn_move_and_are_judged(task: Task, tmp_path: Path) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    config = FinetuneConfig(num_checkpoints=5, save_every=3, epochs=15, batch_size=32, label_smoothing=0.0)
    dataset = collect(task, tmp_path, {"name": "mlp3", "hidden": [32, 32]}, config=config)
    assert torch.equal(torch.get_rng_state(), before)
    assert dataset.params_KP.shape == (5, dataset.layout.num_params)
    assert [row["step"] for row in dataset.metadata] == [3, 6, 9, 12, 15]
    assert {row["seed"] for row in dataset.metadata} == {3} and len({row["run"] for row in dataset.metadata}) == 1
    assert (dataset.params_KP.diff(dim=0).abs().amax(1) > 0).all()
    assert dataset.collect["method"] == "finetune" and dataset.collect["settings"]["save_every"] == 3
    network = build_network(dataset.network).eval()
    for index, row in enumerate(dataset.metadata):
        network.load_state_dict(dataset.state_dict(index), strict=True)
        with torch.no_grad():
            output = logits(network(task.inputs(task.validation)))
        accuracy = (output.argmax(1) == task.validation.labels_N).double().mean().item()
        assert row["validation_accuracy"] == pytest.approx(accuracy, abs=1e-12) and accuracy > 0.7
        loss = F.cross_entropy(output, task.validation.labels_N).item()
        assert row["validation_loss"] == pytest.approx(loss, rel=1e-4)
        assert 0 < row["train_loss"] < 1.5


def test_result_follows_from_the_seed_and_nothing_else(task: Task, tmp_path: Path) -> None:
    first = collect(task, tmp_path / "first")
    torch.manual_seed(99)
    assert_same(collect(task, tmp_path / "second"), first)
    assert_same(collect(task, tmp_path / "first"), first)  # it is finished, so it is only opened
    other = collect(task, tmp_path / "other", seed=4)
    assert not torch.equal(other.params_KP, first.params_KP)


def test_unselected_tensors_and_running_statistics_stand_still(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    after_training: list[TrainingState] = []
    save_state = CheckpointJournal.save_state

    def spy(journal: CheckpointJournal, state: TrainingState) -> None:
        after_training.append(TrainingState({name: each.clone() for name, each in state.tensors.items()}, state.info))
        save_state(journal, state)

    monkeypatch.setattr(CheckpointJournal, "save_state", spy)
    dataset = collect(task, tmp_path, BATCH_NORM, "last_norms:1")
    assert [entry.name for entry in dataset.layout.entries] == ["norm3.weight", "norm3.bias"]
    start = after_training[-1]
    assert start.info == {"phase": "finetune", "step": 0}
    whole = {name.partition("/")[2]: tensor for name, tensor in start.tensors.items()}
    assert whole["norm3.num_batches_tracked"] == 5  # the first phase did update the statistics
    assert dataset.frozen.keys() == whole.keys() - {"norm3.weight", "norm3.bias"}
    assert all(torch.equal(tensor, whole[name]) for name, tensor in dataset.frozen.items())
    assert (dataset.params_KP != torch.cat([whole["norm3.weight"], whole["norm3.bias"]])).any(1).all()


def test_selected_running_statistics_train_on(task: Task, tmp_path: Path) -> None:
    dataset = collect(task, tmp_path / "all", BATCH_NORM)
    moved = (dataset.params_KP[0] != dataset.params_KP[-1]).tolist()
    for entry in dataset.layout.entries:
        assert any(moved[entry.start : entry.stop]), entry.name
    assert all(not tensor.is_floating_point() for tensor in dataset.frozen.values())
    config = FinetuneConfig(num_checkpoints=2, save_every=1, epochs=0, buffers=True)
    dataset = collect(task, tmp_path / "one", BATCH_NORM, "last_norms:1", config=config)
    entries = {entry.name: entry for entry in dataset.layout.entries}
    mean_KC = dataset.params_KP[:, entries["norm3.running_mean"].start : entries["norm3.running_mean"].stop]
    assert not torch.equal(mean_KC[0], mean_KC[1])
    assert not dataset.frozen["norm1.running_mean"].any()


def test_tied_weights_are_one_and_frozen_ones_stay(task: Task, tmp_path: Path) -> None:
    dataset = collect(task, tmp_path, {"name": f"{__name__}:Tied"}, ["first.weight", "head.weight", "head.bias"])
    entries = {entry.name: entry for entry in dataset.layout.entries}
    assert entries["first.weight"].aliases == ("second.weight",)
    states = [dataset.state_dict(index) for index in (0, 6)]
    for state in states:
        assert torch.equal(state["first.weight"], state["second.weight"])
    assert not torch.equal(states[0]["first.weight"], states[1]["first.weight"])
    assert not torch.equal(states[0]["head.weight"], states[1]["head.weight"])
    assert torch.equal(states[0]["head.bias"], states[1]["head.bias"])
    # The tied weight is trained once per step, not twice. A step of AdamW moves no number by more than the rate and the
    # decay.
    step = (states[1]["first.weight"] - states[0]["first.weight"]).abs().max()
    assert step < 12 * TINY.finetune_learning_rate * 1.5


class Stop(Exception):
    pass


def stopping(function: Callable[..., Any], calls: int, *, before: bool) -> Callable[..., Any]:
    """`function`, but its `calls`-th call raises Stop, before or after it does its work."""
    left = [calls]

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] == 0 and before:
            raise Stop
        result = function(*args, **kwargs)
        if left[0] == 0:
            raise Stop
        return result

    return wrapped


@pytest.mark.parametrize(
    ("network", "select", "precision"),
    [(BATCH_NORM, "all", "no"), (BATCH_NORM, "all", "bf16"), ({"name": f"{__name__}:Tied"}, "head", "no")],
    ids=["all", "bf16", "head"],
)
@pytest.mark.parametrize("often", [True, False])
def test_a_stopped_run_goes_on_bit_for_bit(
    task: Task,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    network: Any,
    select: str,
    precision: str,
    often: bool,
) -> None:
    config = replace(TINY, mixed_precision=precision)
    expected = collect(task, tmp_path / "whole", network, select, config=config)
    monkeypatch.setattr(collecting, "_PART_ROWS", 3)
    if often:
        monkeypatch.setattr(collecting, "_STATE_SECONDS", 0.0)
    places: list[tuple[type, str, int, bool]] = [
        (FinetuneRun, "take_step", 3, True),
        (FinetuneRun, "take_step", 4, False),
        (CheckpointJournal, "save_state", 1, False),
        (CheckpointJournal, "append", 1, True),
        (CheckpointJournal, "append", 1, False),
        (FinetuneRun, "validate", 2, False),
        (CheckpointJournal, "finish", 1, True),
    ]
    for owner, name, calls, before in places:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, stopping(getattr(owner, name), calls, before=before))
            try:
                collect(task, tmp_path / "parts", network, select, config=config)
            except Stop:
                continue
    assert_same(collect(task, tmp_path / "parts", network, select, config=config), expected)


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import test_finetune as t
from pdiff_hub.collect.finetune import collecting
collecting._PART_ROWS, collecting._STATE_SECONDS = 2, 0.003
folder, task = Path(sys.argv[1]), t.load_task({"dataset": "digits", "augment": {"crop_padding": 1}})
config = t.FinetuneConfig(num_checkpoints=12, save_every=2, epochs=2)
begin = time.monotonic()
whole = t.collect(task, folder / "whole", t.BATCH_NORM, config=config)
seconds, chance, killed = time.monotonic() - begin, random.Random(0), 0
for _ in range(12):
    child = os.fork()
    if child == 0:
        t.collect(task, folder / "parts", t.BATCH_NORM, config=config)
        os._exit(0)
    time.sleep(chance.uniform(0.03, 0.25) * seconds)
    os.kill(child, signal.SIGKILL)
    killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
t.assert_same(t.collect(task, folder / "parts", t.BATCH_NORM, config=config), whole)
(folder / "killed").write_text(str(killed))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    processes.run(KILLED, str(tmp_path))  # it has one thread, so it may fork
    assert int((tmp_path / "killed").read_text()) >= 1


def test_divergence_stops_and_keeps_what_is_committed(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"steps 1 to 5 of the train phase.*lower learning_rate \(it is 1e\+30\)"):
        collect(task, tmp_path / "train", config=FinetuneConfig(epochs=2, learning_rate=1e30))
    monkeypatch.setattr(collecting, "_PART_ROWS", 1)
    take_step = FinetuneRun.take_step

    def spoiled(run: FinetuneRun) -> Tensor:
        return take_step(run) * (float("nan") if run.phase == "finetune" and run.step == 7 else 1.0)

    with monkeypatch.context() as patch:
        patch.setattr(FinetuneRun, "take_step", spoiled)
        with pytest.raises(ValueError, match=r"steps 7 to 8 of the finetune phase.*lower finetune_learning_rate"):
            collect(task, tmp_path / "finetune")
    assert len(list((tmp_path / "finetune" / "parts").glob("part-*"))) == 3
    assert len(collect(task, tmp_path / "finetune")) == 7


def test_pretrained_weights_are_loaded_once_and_not_needed_again(task: Task, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    folder = tmp_path / "pretrained"
    spec = {"name": "vit_tiny", "patch_size": 4, "in_channels": 1, "image_size": 8, "num_classes": 10}
    source = build_network(resolve_network(spec, in_channels=1, image_size=8, num_classes=10), seed=9)
    cast(Any, source).save_pretrained(folder)
    config = FinetuneConfig(num_checkpoints=2, save_every=1, epochs=0)
    dataset = collect(task, tmp_path / "set", {"name": "vit_tiny", "pretrained": str(folder)}, "head", config=config)
    shutil.rmtree(folder)
    network = build_network(dataset.network, pretrained=False)
    network.load_state_dict(dataset.state_dict(1), strict=True)
    assert all(
        torch.equal(dataset.frozen[name], tensor)
        for name, tensor in source.state_dict().items()
        if not name.startswith("classifier.")
    )
    collect(task, tmp_path / "set", dataset.network, "head", config=config)


def test_a_shared_first_phase_gives_the_same_checkpoints(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, trained = {"name": f"{__name__}:Tied"}, tmp_path / "trained"
    for number, (select, every) in enumerate([("all", 2), ("head", 3)]):
        config = FinetuneConfig(num_checkpoints=3, save_every=every, epochs=2)
        alone = collect(task, tmp_path / f"alone-{number}", network, select, config=config)
        if number == 1:  # the first phase is saved already, so it must not run again
            monkeypatch.setattr(collecting, "_train", lambda *_arguments: pytest.fail("trained again"))
        shared = collect_finetune(
            task, network, select, config, tmp_path / f"shared-{number}", seed=3, trained=trained, progress=False
        )
        assert_same(shared, alone)
    assert len(list(trained.iterdir())) == 1


def test_a_first_phase_of_another_precision_is_not_shared(task: Task, tmp_path: Path) -> None:
    trained = tmp_path / "trained"
    for precision in ("no", "bf16"):
        config = FinetuneConfig(num_checkpoints=2, save_every=1, epochs=1, mixed_precision=precision)
        collect_finetune(task, MLP, "all", config, tmp_path / precision, seed=3, trained=trained, progress=False)
    assert len(list(trained.iterdir())) == 2


def test_a_first_phase_that_stops_before_it_is_shared_is_shared_once_it_goes_on(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, trained = FinetuneConfig(num_checkpoints=2, save_every=1, epochs=1), tmp_path / "trained"

    def again(name: str) -> CheckpointDataset:
        return collect_finetune(
            task, BATCH_NORM, "all", config, tmp_path / name, seed=3, trained=trained, progress=False
        )

    with monkeypatch.context() as patch:
        patch.setattr(collecting, "write_safetensors", lambda *_arguments: (_ for _ in ()).throw(OSError("full disk")))
        with pytest.raises(OSError, match="full disk"):
            again("set")
    resumed = again("set")
    assert [file.suffix for file in trained.iterdir()] == [".safetensors"]
    assert_same(resumed, collect(task, tmp_path / "alone", BATCH_NORM, "all", config=config))


def test_images_too_large_to_keep_give_the_same(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = collect(task, tmp_path / "kept")
    monkeypatch.setattr(image_batches, "_MAX_RESIDENT_BYTES", 0)
    assert_same(collect(task, tmp_path / "made"), kept)


def test_bad_input_leaves_nothing_behind(task: Task, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    with pytest.raises(ValueError, match="has no parameter of"):
        collect(task, folder, BATCH_NORM, ["norm1.running_mean"])
    with pytest.raises(ValueError, match="matches no module"):
        collect(task, folder, MLP, "modules:nothing")
    with pytest.raises(ValueError, match="nearest known one is 'mlp3'"):
        collect(task, folder, {"name": "mlp33"})
    assert not folder.exists()
    collect(task, folder)
    with pytest.raises(ValueError, match="seed was 3 and is 5"):
        collect(task, folder, seed=5)
    with pytest.raises(ValueError, match="'count' is not selected"):
        collect(task, tmp_path / "drifting", {"name": f"{__name__}:Drifting"}, "head")


@pytest.mark.parametrize(
    "option",
    [
        {"num_checkpoints": 1},
        {"save_every": 0},
        {"epochs": -1},
        {"batch_size": 2.0},
        {"learning_rate": 0},
        {"finetune_learning_rate": float("nan")},
        {"weight_decay": -0.1},
        {"label_smoothing": 1.0},
        {"buffers": "yes"},
        {"learning_rate": "1e-3"},
        {"epochs": True},
        {"weight_decay": float("inf")},
        {"mixed_precision": "fp16"},
        {"mixed_precision": True},
    ],
)
def test_options_out_of_range_are_named(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(option))} must be"):
        FinetuneConfig(**option)


def test_judging_with_shared_activations_gives_the_plain_figures(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = collect(task, tmp_path / "shared", BATCH_NORM, "last_norms:1")
    recorded: list[bool] = []
    monkeypatch.setattr(finetune_run, "record", lambda *arguments: recorded.append(True) or {})
    monkeypatch.setattr(finetune_run, "_MAX_SHARED_BYTES", -1)
    plain = collect(task, tmp_path / "plain", BATCH_NORM, "last_norms:1")
    assert not recorded and torch.equal(shared.params_KP, plain.params_KP)
    for one, other in zip(shared.metadata, plain.metadata, strict=True):
        assert one["validation_loss"] == pytest.approx(other["validation_loss"], rel=1e-5)
        assert one["validation_accuracy"] == other["validation_accuracy"]


def test_mixed_precision_trains_in_bfloat16_and_judges_in_float32(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: dict[bool, set[torch.dtype]] = {True: set(), False: set()}
    convolve = F.conv2d

    def watched(*arguments: Any, **options: Any) -> Tensor:
        output = convolve(*arguments, **options)
        computed[output.requires_grad].add(output.dtype)
        return output

    monkeypatch.setattr(F, "conv2d", watched)
    plain = collect(task, tmp_path / "no", BATCH_NORM)
    assert computed == {True: {torch.float32}, False: {torch.float32}}
    computed = {True: set(), False: set()}
    mixed = collect(task, tmp_path / "bf16", BATCH_NORM, config=replace(TINY, mixed_precision="bf16"))
    assert computed == {True: {torch.bfloat16}, False: {torch.float32}}
    assert mixed.params_KP.dtype == torch.float32
    apart = (mixed.params_KP - plain.params_KP).norm() / plain.params_KP.norm()
    assert 1e-6 < float(apart) < 0.05, "the same training, but for rounding"
    # A set that was begun before there was this option goes on.
    assert "mixed_precision" not in plain.collect["settings"]
    assert mixed.collect["settings"]["mixed_precision"] == "bf16"
    with pytest.raises(ValueError, match="mixed_precision"):
        collect(task, tmp_path / "bf16", BATCH_NORM)


@pytest.mark.parametrize("able", [True, False])
def test_automatic_precision_is_that_of_the_machine_where_the_set_was_begun(
    able: bool, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(TINY, mixed_precision="auto")
    monkeypatch.setattr(collecting, "multiplies_bf16", lambda device: able)
    with monkeypatch.context() as patch:
        patch.setattr(FinetuneRun, "take_step", stopping(FinetuneRun.take_step, 9, before=True))
        patch.setattr(collecting, "_PART_ROWS", 1)
        with pytest.raises(Stop):
            collect(task, tmp_path / "auto", config=config)
    expected = collect(task, tmp_path / "named", config=replace(TINY, mixed_precision="bf16" if able else "no"))
    monkeypatch.setattr(collecting, "multiplies_bf16", lambda device: not able)  # the folder was carried elsewhere
    assert_same(collect(task, tmp_path / "auto", config=config), expected)
    assert_same(collect(task, tmp_path / "auto", config=config), expected)


def test_runs_begun_before_there_was_mixed_precision_go_on() -> None:
    data = {"task": "digits", "network": "mlp3"}
    assert "mixed_precision" not in recipe_from_dict(data).to_dict()["collect"]
    mixed = recipe_from_dict({**data, "collect": {"mixed_precision": "bf16"}})
    assert recipe_from_dict(mixed.to_dict()).collect == FinetuneConfig(mixed_precision="bf16")


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("network", [BATCH_NORM, {"name": f"{__name__}:Dropping"}], ids=["batch_norm", "dropout"])
def test_training_on_shared_activations_is_the_plain_training(
    network: Any, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = load_task({"dataset": "digits", "train_size": 96})
    # Long enough to see every image again.
    longer = replace(TINY, num_checkpoints=6, save_every=5, mixed_precision=precision)
    recorded: list[object] = []

    def record_all(*arguments: Any) -> Any:
        recorded.append(prefix_recording.record_all(*arguments))
        return recorded[-1]

    monkeypatch.setattr(finetune_run, "record_all", record_all)
    select = "last_norms:1" if network is BATCH_NORM else "head"
    shared = collect(task, tmp_path / "shared", network, select, config=longer)
    monkeypatch.setattr(finetune_run, "_MAX_SHARED_BYTES", -1)
    plain = collect(task, tmp_path / "plain", network, select, config=longer)
    # Dropout before the selected tensors differs from step to step, so nothing can be shared.
    assert [each is not None for each in recorded] == ([True] if network is BATCH_NORM else [])
    torch.testing.assert_close(shared.params_KP, plain.params_KP, rtol=1e-4, atol=1e-5)
    assert float((plain.params_KP[-1] - plain.params_KP[0]).abs().max()) > 1e-3, "it trained"


class Dropping(nn.Module):
    """Has dropout before the layer that is trained."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.first, self.drop, self.head = nn.Linear(64, 8), nn.Dropout(0.5), nn.Linear(8, num_classes)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        out: Tensor = self.head(self.drop(self.first(images_BCHW.flatten(1))))
        return out
