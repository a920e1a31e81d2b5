"""benchmarks/whole_size*.py: a small network goes through every stage, and the page says what was run and what not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import whole_size
import whole_size_page
import whole_size_stages
from growth_process import Waiting
from safetensors.torch import save_file

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.networks import build_network, resolve_network


def made_up(network: str, device: str, **options: Any) -> dict[str, Any]:
    gpu = device == "cuda"
    stages = {
        "save": {"save": 1.25},
        "train": {"fit autoencoder": 20.0, "U-Net steps": 2.0, "write pipeline": 3.0},
        "sample 1": {"open": 0.5, "sample 1": 4.0},
    }
    return {
        **{"network": network, "device": device, "num_params": 86_567_656, "checkpoints": 10, "steps": 200},
        **{"precision": "bf16" if gpu else "float32", "inference_steps": 20, "models": [1], "note": ""},
        "machine": {"cpu": "made up", "cores": 2, "threads": 1, "torch": "2", "date": "2026-01-01"}
        | ({"gpu": "H"} if gpu else {}),
        **{"seconds_in_all": 60.0, "disk": 10**10},
        "stages": {
            name: {"seconds": seconds, "peak": 700 << 20, "device_peak": 6000 << 20 if gpu else 0}
            for name, seconds in stages.items()
        },
        **options,
    }


def test_every_stage_of_a_small_network(tmp_path: Path) -> None:
    """In this process; processes of their own are tested with `growth_process`."""
    spec = resolve_network({"name": "convnet3", "norm": "batch"}, in_channels=3, image_size=8, num_classes=5)
    assert whole_size.num_params(spec) > 1000
    seconds = whole_size_stages.save(tmp_path, spec, 6)
    seconds |= whole_size_stages.train(tmp_path, 2)
    for number in (1, 3):
        seconds |= whole_size_stages.sample(tmp_path, number, "cpu")
    seconds |= whole_size_stages.use(tmp_path, spec, "cpu")
    parts = ["save", "fit autoencoder", "U-Net steps", "write pipeline", "open", "sample 1", "sample 3", "use"]
    assert list(seconds) == parts and min(seconds.values()) > 0
    assert len(list(tmp_path.glob("generated-3/*.safetensors"))) == 3
    rows_KP = CheckpointDataset.from_pretrained(tmp_path / "checkpoints").params_KP
    assert torch.linalg.matrix_rank(rows_KP - rows_KP[0]) == 5  # six different networks


def test_a_network_that_answers_with_nan_is_no_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = resolve_network("convnet3", in_channels=3, image_size=8, num_classes=5)
    (tmp_path / "generated-1").mkdir()
    state = {name: torch.full_like(tensor, torch.nan) for name, tensor in build_network(spec).state_dict().items()}
    save_file(state, tmp_path / "generated-1" / "model-00000.safetensors")
    with pytest.raises(RuntimeError, match=r"model-00000\.safetensors does not answer with finite logits"):
        whole_size_stages.use(tmp_path, spec, "cpu")


def test_perturbations_are_the_same_in_any_rectangle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole_size_stages, "_BLOCK", 16)
    monkeypatch.setattr(whole_size_stages, "_POOL", 50)
    rows = whole_size_stages.Perturbations(torch.arange(90.0), 5)
    whole_KP = rows.read(0, 5, 0, 90)
    assert torch.allclose(whole_KP, torch.arange(90.0).expand(5, -1), atol=0.1) and rows.seconds > 0
    for start, stop in ((0, 16), (3, 35), (17, 18), (60, 90)):
        torch.testing.assert_close(rows.read(1, 4, start, stop), whole_KP[1:4, start:stop])


def test_the_networks_have_their_sizes() -> None:
    sizes = {
        name: whole_size.num_params(whole_size_stages.network_of(recipe, 224, 1000))
        for name, recipe in whole_size.NETWORKS.items()
    }
    assert sizes == {"vit-base": 86_567_656, "resnet50": 25_610_152}


def test_stages_wait_in_processes_of_their_own_and_the_folder_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    began: list[str] = []

    class Started(Waiting):
        def __init__(self, work: Any, folder: Path, *arguments: Any):
            began.append(work.__name__)
            (folder / work.__name__).write_bytes(b"12345")
            super().__init__(dict, {"nothing": 0.5})

    monkeypatch.setattr(whole_size, "Waiting", Started)
    monkeypatch.setattr(whole_size, "num_params", lambda spec: 7)
    page = tmp_path / "page.md"
    page.write_text("# How it grows\n\n## Machine and versions\n\nAs before.\n")
    options = ["--network", "resnet50", "--device", "cpu", "--json", str(tmp_path / "runs.json"), "--models", "3"]
    whole_size.main([*options, "--work-dir", str(tmp_path / "work"), "--page", str(page), "--note", "Shared."])
    assert began == ["save", "train", "sample", "use"] and not list((tmp_path / "work").iterdir())
    (run,) = json.loads((tmp_path / "runs.json").read_text())["runs"]
    assert run["disk"] == 20 and list(run["stages"]) == ["save", "train", "sample 3", "use"]
    assert run["stages"]["train"]["peak"] > 2**22 and run["stages"]["train"]["device_peak"] == 0
    text = page.read_text()
    assert "Shared." in text and text.endswith("\n\n## Machine and versions\n\nAs before.\n")
    assert "resnet50, cpu: 7 numbers" in capsys.readouterr().out


def test_the_page_has_both_devices_side_by_side_and_says_what_was_not_run() -> None:
    runs = [made_up("vit-base", "cpu", note="The machine was shared."), made_up("vit-base", "cuda")]
    text = "\n".join(whole_size_page.section(runs))
    for part in (
        "| ViT-Base | fit autoencoder | 20 | 700 | 20 | 700 | 6,000 |",
        "| ViT-Base | U-Net steps | 2 |  | 2 |  |  |",
        "| ResNet-50 | all | not run | not run | not run | not run | not run |",
        "200 steps of the U-Net in bf16",
        "The machine was shared.",
        "arxiv.org/abs/2501.11587",
    ):
        assert part in text, part
    one_sided = "\n".join(whole_size_page.section(runs[:1]))
    assert "| ViT-Base | save | 1.25 | 700 | not run |  |  |" in one_sided
    assert "Not run yet." in "\n".join(whole_size_page.section([]))
    rows = [line for line in one_sided.splitlines() if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1


def test_the_section_is_put_into_a_page_once() -> None:
    page = "# How it grows\n\n## In short\n\nx\n\n## Machine and versions\n\ny\n"
    once = whole_size_page.put(page, [made_up("vit-base", "cpu")])
    assert once.index("## In short") < once.index("## Whole networks") < once.index("## Machine and versions")
    assert whole_size_page.put(once, [made_up("vit-base", "cpu")]) == once
    assert whole_size_page.put(once, []).count("## Whole networks") == 1


def test_what_cannot_be_measured_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in (["--checkpoints", "2"], ["--models", "0"], ["--network", "vgg"]):
        with pytest.raises(SystemExit):
            whole_size.main(wrong)
    assert "expected at least 4 checkpoints, 1 step and 1 network" in capsys.readouterr().err


def test_a_run_takes_the_place_of_the_same_network_and_device(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "runs.json"
    assert whole_size.kept_runs(file) == []
    for run in (made_up("vit-base", "cpu"), made_up("vit-base", "cuda"), made_up("vit-base", "cpu", steps=7)):
        whole_size.keep(file, run)
    assert [(run["device"], run["steps"]) for run in whole_size.kept_runs(file)] == [("cuda", 200), ("cpu", 7)]
