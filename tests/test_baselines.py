"""Each baseline in evaluation/baselines.py and fine_tuning.py does what its naively written definition does."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from checkpoint_sets import dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.checkpoints.rows import Rows, evenly_spaced
from pdiff_hub.evaluation import baselines, fine_tuning
from pdiff_hub.evaluation.baselines import Make, baseline_variants
from pdiff_hub.tasks import Task, load_task
from pdiff_hub.travelling.param_autoencoder import ParamAutoencoder, ParamLayout

DRAWS = 20_000


class Classifier(nn.Module):
    """A small network. Its dropout would change results if it were on. `awkward` adds a step that vmap refuses."""

    def __init__(self, awkward: bool = False) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)
        self.dropout, self.head = nn.Dropout(0.5), nn.Linear(108, 10)
        self.awkward = awkward

    def forward(self, images: Tensor) -> Tensor:
        hidden: Tensor = self.dropout(self.norm(self.conv(images)).relu().flatten(1))
        output: Tensor = self.head(hidden)
        return output * (1.0 if not self.awkward or output.sum().item() < 1e9 else 2.0)


@pytest.fixture(scope="module")
def task() -> Task:
    return load_task({"dataset": "digits", "augment": {"flip": False, "crop_padding": 1}})


@pytest.fixture(params=["one slice", "many slices"])
def slices(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "many slices":
        monkeypatch.setattr(baselines, "_SLICE_BYTES", 8 * 30 * 7)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def plain(params_KP: Tensor, module: nn.Module | None = None) -> CheckpointDataset:
    """A data set of checkpoints of `module`, by default of one linear layer without bias."""
    module = module or nn.Linear(params_KP.shape[1], 1, bias=False)
    layout = ParamLayout.from_module(module)
    return CheckpointDataset(params_KP, layout, network={"name": "x"}, frozen=layout.frozen_state(module.state_dict()))


def classifiers(count: int, select: str = "all", module: nn.Module | None = None) -> CheckpointDataset:
    torch.manual_seed(0)
    module = module or Classifier()
    layout = ParamLayout.from_module(module, select)
    params_KP = layout.flatten(module.state_dict()) * (1 + 0.05 * torch.randn(count, layout.num_params))
    return CheckpointDataset(params_KP, layout, network={"name": "x"}, frozen=layout.frozen_state(module.state_dict()))


def fitted(of: CheckpointDataset) -> ParamAutoencoder:
    torch.manual_seed(3)
    model = ParamAutoencoder(
        of.layout.to_dict(), latent_channels=2, latent_length=3, num_components=5, normalization="none", slice_size=7
    )
    components_NP = torch.linalg.qr(torch.randn(of.layout.num_params, 5)).Q.T
    for part_NS, (start, stop) in zip(model.components, model.slices, strict=True):
        part_NS.data = components_NP[:, start:stop].contiguous()
    model.mean_P.copy_(of.params_KP.mean(dim=0))
    return model.eval().requires_grad_(False)


CHEAP: dict[str, Make] = {
    "original": baselines.original,
    "ensemble": baselines.ensemble,
    "average": baselines.average_of,
    "gaussian": baselines.gaussian,
    "low rank": baselines.low_rank_gaussian,
    "noise": lambda *given: baselines.noise_raw(*given, sigma=0.1),
    "noise standardised": lambda *given: baselines.noise_standardised(*given, sigma=0.1),
    "interpolation": baselines.interpolation,
}


@pytest.mark.usefixtures("slices")
@pytest.mark.parametrize("name", CHEAP)
def test_the_generator_decides_everything(name: str, tmp_path: Path) -> None:
    memory = dataset(20)
    memory.save_pretrained(tmp_path)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = CHEAP[name](memory, 6, rng())
    assert first.shape == (1 if name == "ensemble" else 6, memory.layout.num_params) and first.dtype == torch.float32
    assert torch.equal(first, CHEAP[name](CheckpointDataset.from_pretrained(tmp_path), 6, rng()))
    assert torch.equal(first, CHEAP[name](memory, 6, rng(1))) == (name in ("original", "ensemble"))
    assert torch.equal(torch.get_rng_state(), before)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300))
def test_evenly_spaced(num_rows: int, count: int) -> None:
    rows = evenly_spaced(num_rows, count)
    assert len(rows) == min(num_rows, count) and rows[0] >= 0 and rows[-1] < num_rows
    assert rows[0] - (num_rows - 1 - rows[-1]) in (0, 1)  # both ends are equally far away, up to one row
    gaps = {after - before for before, after in itertools.pairwise(rows)}
    assert all(gap > 0 for gap in gaps) and max(gaps, default=0) - min(gaps, default=0) <= 1


@pytest.mark.usefixtures("slices")
def test_original_and_ensemble() -> None:
    checkpoints = dataset(9)
    assert torch.equal(baselines.original(checkpoints, 3, rng()), checkpoints.params_KP[[1, 4, 7]])
    assert torch.equal(baselines.original(checkpoints, 50, rng()), checkpoints.params_KP)
    positive = plain(checkpoints.params_KP.abs())
    mean_1P = positive.params_KP.double().mean(dim=0, keepdim=True).float()
    assert torch.equal(baselines.ensemble(positive, 5, rng()), mean_1P)


@pytest.mark.usefixtures("slices")
def test_averages_and_interpolations_are_of_different_checkpoints() -> None:
    unit = plain(torch.eye(24))  # so a network made from these holds the weights of its mixture
    average_BK = baselines.average_of(unit, 40, rng())
    assert ((average_BK == 1 / 16).sum(dim=1) == 16).all() and ((average_BK == 0).sum(dim=1) == 8).all()
    assert len(average_BK.unique(dim=0)) == 40
    assert ((baselines.average_of(unit, 9, rng(), num_averaged=5) > 0).sum(dim=1) == 5).all()
    few = plain(torch.eye(24)[:5])
    torch.testing.assert_close(baselines.average_of(few, 3, rng()), few.params_KP.mean(dim=0).expand(3, -1))
    line_BK = baselines.interpolation(unit, 4000, rng())
    assert ((line_BK > 0).sum(dim=1) == 2).all()
    torch.testing.assert_close(line_BK.sum(dim=1), torch.ones(4000))
    weight_B = line_BK.max(dim=1).values  # the larger of w and 1 - w, uniform in 1/2..1
    assert weight_B.mean() == pytest.approx(0.75, abs=0.01) and weight_B.std() == pytest.approx(0.5 / 12**0.5, abs=0.01)
    torch.testing.assert_close((line_BK > 0).float().mean(dim=0), torch.full((24,), 2 / 24), atol=0.02, rtol=0)


@pytest.mark.usefixtures("slices")
def test_gaussian_has_the_mean_and_std_of_the_checkpoints() -> None:
    params_KP = 5 + torch.randn(4, 9, generator=rng()) * torch.logspace(-2, 2, 9)
    drawn_BP = baselines.gaussian(plain(params_KP), DRAWS, rng()).double()
    std_P = params_KP.double().std(dim=0)  # unbiased
    torch.testing.assert_close(
        (drawn_BP.mean(dim=0) - params_KP.double().mean(dim=0)) / std_P, torch.zeros(9).double(), atol=0.03, rtol=0
    )
    torch.testing.assert_close(drawn_BP.std(dim=0) / std_P, torch.ones(9).double(), atol=0.03, rtol=0)
    torch.testing.assert_close(drawn_BP.T.corrcoef(), torch.eye(9).double(), atol=0.04, rtol=0)


@pytest.mark.usefixtures("slices")
@pytest.mark.parametrize("num_checkpoints", [8, 26])
def test_low_rank_gaussian_has_swags_covariance(num_checkpoints: int) -> None:
    params_KP = torch.randn(num_checkpoints, 5, generator=rng()) @ torch.randn(5, 5, generator=rng(1))
    params_KP[:6] *= 3  # of 26 checkpoints, these are not among the last 20
    drawn_BP = baselines.low_rank_gaussian(plain(params_KP), DRAWS, rng()).double()
    mean_P, std_P = params_KP.double().mean(dim=0), params_KP.double().std(dim=0)
    last_RP = params_KP.double()[-20:] - mean_P
    covariance = 0.5 * torch.diag(std_P**2) + last_RP.T @ last_RP / (2 * (len(last_RP) - 1))
    torch.testing.assert_close(drawn_BP.mean(dim=0) / std_P, mean_P / std_P, atol=0.03, rtol=0)
    torch.testing.assert_close(
        drawn_BP.T.cov() / torch.outer(std_P, std_P), covariance / torch.outer(std_P, std_P), atol=0.04, rtol=0
    )
    if num_checkpoints == 8:
        torch.testing.assert_close(covariance.diag(), std_P**2)


@pytest.mark.usefixtures("slices")
def test_noise_is_in_the_units_that_it_says() -> None:
    module = nn.Sequential(nn.Linear(30, 20, bias=False), nn.LayerNorm(20))
    params_KP = torch.randn(12, 640, generator=rng())
    params_KP[:, :600] = 100 + 0.01 * params_KP[:, :600]
    params_KP[:, 600:620] = 0.3  # a tensor that never changes
    checkpoints = plain(params_KP, module)

    def deviations(made_BP: Tensor) -> Tensor:
        source_B = torch.cdist(made_BP[:, 620:], params_KP[:, 620:]).argmin(dim=1)  # the checkpoint each is made from
        assert len(source_B.unique()) > 8
        return (made_BP - params_KP[source_B]).double()

    raw_BP = deviations(baselines.noise_raw(checkpoints, 50, rng(), sigma=0.06))
    for tensor in (raw_BP[:, :600], raw_BP[:, 600:620], raw_BP[:, 620:]):
        assert tensor.std() == pytest.approx(0.06, rel=0.1) and abs(float(tensor.mean())) < 0.006
    own_BP = deviations(baselines.noise_standardised(checkpoints, 50, rng(), sigma=0.15))
    assert (own_BP[:, 600:620] == 0).all()
    for part in (slice(0, 600), slice(620, 640)):
        assert own_BP[:, part].std() == pytest.approx(0.15 * float(params_KP[:, part].double().std()), rel=0.1)


@pytest.mark.usefixtures("slices")
def test_no_running_variance_is_negative() -> None:
    checkpoints = dataset(20)
    checkpoints.params_KP.abs_()
    (variance,) = [entry for entry in checkpoints.layout.entries if entry.log]
    for make in (CHEAP["gaussian"], CHEAP["low rank"], CHEAP["noise"]):
        made_BP = make(checkpoints, 200, rng())
        assert made_BP[:, variance.start : variance.stop].min() == 0.0 and made_BP.min() < 0


def test_autoencoder_draws_each_latent_coordinate() -> None:
    checkpoints = plain(torch.randn(8, 23, generator=rng()))
    model = fitted(checkpoints)
    made_BP = baselines.autoencoder(checkpoints, DRAWS, rng(), model)
    assert made_BP.shape == (DRAWS, 23) and not made_BP.requires_grad
    found, expected = model.encode(made_BP), model.encode(checkpoints.params_KP)
    torch.testing.assert_close(found.mean(dim=0), expected.mean(dim=0), atol=0.05, rtol=0)
    torch.testing.assert_close(found.std(dim=0), expected.std(dim=0), atol=0.05, rtol=0)
    noise = torch.randn(4, 2, 3, generator=rng())
    torch.testing.assert_close(
        baselines.autoencoder(checkpoints, 4, rng(), model),
        model.decode(noise * expected.std(dim=0) + expected.mean(dim=0)),
    )
    with pytest.raises(ValueError, match="trained on this data set"):
        baselines.autoencoder(dataset(4), 4, rng(), model)


def naive_fine_tune(
    checkpoints: CheckpointDataset,
    num_models: int,
    generator: torch.Generator,
    module: nn.Module,
    task: Task,
    steps: int,
    group: int,
) -> Tensor:
    """Fine-tunes one network after another, with torch's own optimiser on the selected parameters of the module."""
    names = {entry.name for entry in checkpoints.layout.entries}
    made = []
    for b in range(0, num_models, group):
        rows = torch.randperm(len(checkpoints), generator=generator)[: min(group, num_models - b)].tolist()
        batches = []
        for _ in range(steps):
            index = torch.randint(len(task.train), (64,), generator=generator)
            inputs = task.augment(task.inputs(task.train)[index], generator)
            batches.append((inputs, task.train.labels_N[index]))
        for row in rows:
            network = copy.deepcopy(module).eval()
            network.load_state_dict(checkpoints.state_dict(row))
            trained = [tensor for name, tensor in network.named_parameters() if name in names]
            optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.01)
            for inputs, labels in batches:
                network.zero_grad()
                torch.autograd.backward(F.cross_entropy(network(inputs), labels))
                optimizer.step()
            made.append(checkpoints.layout.flatten(network.state_dict()))
    return torch.stack(made)


@pytest.mark.parametrize("awkward", [False, True])
@pytest.mark.parametrize(("select", "group"), [("all", 4), ("last_norms:1", 2)])
def test_fine_tuned_equals_one_after_another(
    task: Task, monkeypatch: pytest.MonkeyPatch, awkward: bool, select: str, group: int
) -> None:
    module = Classifier(awkward).train()
    checkpoints = classifiers(4, select, module)
    before = copy.deepcopy(module.state_dict())
    monkeypatch.setattr(fine_tuning, "_step_bytes", lambda *_: fine_tuning._GROUP_BYTES // group)
    made_BP = fine_tuning.fine_tuned(checkpoints, 6, rng(), module, task, 5)
    expected_BP = naive_fine_tune(checkpoints, 6, rng(), module, task, 5, group)
    torch.testing.assert_close(made_BP, expected_BP, rtol=1e-3, atol=2e-5)
    assert (made_BP - expected_BP).abs().mean() < 0.01 * (made_BP - checkpoints.params_KP[0]).abs().mean()
    assert module.training and all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    if select == "all":  # running statistics are selected too, and must not change
        (variance,) = [entry for entry in checkpoints.layout.entries if entry.log]
        columns = slice(variance.start, variance.stop)
        same = (made_BP[:, None, columns] == checkpoints.params_KP[None, :, columns]).all(dim=2)
        assert (same.sum(dim=1) == 1).all()


def test_a_network_too_large_for_its_batch_is_fine_tuned_on_pieces_of_it(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = Classifier()
    seen: list[int] = []
    checkpoints = classifiers(3, "all", module)
    monkeypatch.setattr(fine_tuning, "_GROUP_BYTES", 1)
    whole_BP = fine_tuning.fine_tuned(checkpoints, 2, rng(), module, task, 4)
    monkeypatch.setattr(fine_tuning, "_PIECE_BYTES", 1 << 16)
    module.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    made_BP = fine_tuning.fine_tuned(checkpoints, 2, rng(), module, task, 4)
    assert max(seen[-8:]) < 32 and sum(seen) > 2 * 4 * 64
    torch.testing.assert_close(made_BP, whole_BP, rtol=1e-3, atol=2e-5)


def test_fine_tuning_learns_and_bounds_its_memory(task: Task) -> None:
    module = Classifier()
    checkpoints = classifiers(3, "head", module)
    made_BP = fine_tuning.fine_tuned(checkpoints, 3, rng(), module, task, 30)

    @torch.no_grad()
    def loss(params_P: Tensor) -> float:
        network = copy.deepcopy(module).eval()
        network.load_state_dict({**checkpoints.frozen, **checkpoints.layout.unflatten(params_P)})
        return float(F.cross_entropy(network(task.inputs(task.validation)), task.validation.labels_N))

    assert max(map(loss, made_BP)) < 0.95 * min(map(loss, checkpoints.params_KP))
    own = {name: tensor for name, tensor in module.state_dict().items() if name.startswith("head")}

    def forward(state: object, inputs: Tensor) -> Tensor:
        assert isinstance(state, dict)
        return F.linear(inputs, state["head.weight"], state["head.bias"])

    inputs = torch.randn(64, 108)
    found = fine_tuning._step_bytes(forward, own, list(own), inputs)
    assert found == 16 * checkpoints.layout.num_params + 2 * 4 * inputs.numel()


def test_variants(task: Task) -> None:
    module = Classifier()
    checkpoints = classifiers(5, "all", module)
    variants = baseline_variants(module, task, fitted(checkpoints), fine_tune_steps=1)
    assert [(each.name, each.method) for each in variants] == [
        ("original", "original"),
        ("ensemble", "ensemble"),
        ("average_16", "average_16"),
        ("gaussian", "gaussian"),
        ("low_rank_gaussian", "low_rank_gaussian"),
        ("noise_raw_0.06", "noise_raw"),
        ("noise_raw_0.12", "noise_raw"),
        ("noise_standardised_0.001", "noise_standardised"),
        ("noise_standardised_0.05", "noise_standardised"),
        ("noise_standardised_0.15", "noise_standardised"),
        ("interpolation", "interpolation"),
        ("fine_tuned", "fine_tuned"),
        ("autoencoder", "autoencoder"),
    ]
    for each in variants:
        made_BP = each.make(checkpoints, 4, rng())
        assert made_BP.shape == (1 if each.name == "ensemble" else 4, checkpoints.layout.num_params), each.name
        assert made_BP.dtype == torch.float32 and made_BP.isfinite().all() and not made_BP.requires_grad


def test_bad_input(task: Task) -> None:
    module = Classifier()
    checkpoints = classifiers(5, "all", module)
    for variant in baseline_variants(module, task, fitted(checkpoints), fine_tune_steps=1):
        with pytest.raises(ValueError, match="num_models is 0"):
            variant.make(checkpoints, 0, rng())
    for least, make in (
        (3, baselines.gaussian),
        (3, baselines.low_rank_gaussian),
        (2, baselines.average_of),
        (2, baselines.interpolation),
    ):
        with pytest.raises(ValueError, match=f"needs at least {least}"):
            make(dataset(least - 1), 4, rng())
        assert make(dataset(least), 4, rng()).isfinite().all()
    with pytest.raises(ValueError, match="needs at least 3"):
        baselines.autoencoder(dataset(2), 4, rng(), fitted(dataset(4)))
    with pytest.raises(ValueError, match="num_averaged is 1"):
        baselines.average_of(checkpoints, 4, rng(), num_averaged=1)
    noisy: Callable[..., Tensor]
    for noisy in (baselines.noise_raw, baselines.noise_standardised):
        for sigma in (0.0, -1.0, float("nan"), float("inf")):
            with pytest.raises(ValueError, match="sigma is"):
                noisy(checkpoints, 4, rng(), sigma=sigma)
        assert noisy(checkpoints.select_rows([0]), 4, rng(), sigma=0.1).isfinite().all()


def test_bad_input_of_fine_tuning(task: Task) -> None:
    module = Classifier()
    checkpoints = classifiers(3, "all", module)
    with pytest.raises(ValueError, match="steps is 0"):
        fine_tuning.fine_tuned(checkpoints, 2, rng(), module, task, 0)
    with pytest.raises(ValueError, match="expected the network that the layout was made from"):
        fine_tuning.fine_tuned(checkpoints, 2, rng(), nn.Linear(64, 10), task, 1)
    layout = ParamLayout.from_module(module, ["norm.running_mean"])
    buffers = CheckpointDataset(
        torch.zeros(3, 3), layout, network={"name": "x"}, frozen=layout.frozen_state(module.state_dict())
    )
    with pytest.raises(ValueError, match="no parameter that can be trained"):
        fine_tuning.fine_tuned(buffers, 2, rng(), module, task, 1)
    with pytest.raises(ValueError, match="diverged"):
        fine_tuning.fine_tuned(
            plain(torch.full((3, checkpoints.layout.num_params), 1e30), module), 2, rng(), module, task, 2
        )


class _Counted:
    """Rows that count how many were read."""

    def __init__(self, rows: Rows) -> None:
        self.rows, self.read_rows = rows, 0
        self.num_rows, self.num_params = rows.num_rows, rows.num_params

    def read(self, first: int, last: int, start: int, stop: int) -> Tensor:
        self.read_rows += last - first
        return self.rows.read(first, last, start, stop)


@pytest.mark.parametrize("name", ["noise_raw_0.06", "interpolation"])
def test_a_few_of_many_checkpoints_are_read_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = plain(torch.randn(40, 30, generator=rng()))
    make: dict[str, Make] = {
        "noise_raw_0.06": partial(baselines.noise_raw, sigma=0.06),
        "interpolation": baselines.interpolation,
    }
    made, read = [], []
    for few in (0.0, 0.25):
        monkeypatch.setattr(baselines, "_FEW", few)
        counted = _Counted(checkpoints.rows)
        made.append(make[name](checkpoints.with_rows(counted), 3, rng(1)))
        read.append(counted.read_rows)
    assert torch.equal(*made)
    assert read[0] == 40
    assert 1 <= read[1] <= 6
