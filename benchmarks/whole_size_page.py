"""The section of benchmarks/GROWTH.md about networks of whole size, from the runs that `whole_size.py` keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

HEADING = "## Whole networks"
_MIB = 2**20
_NETWORKS = {"vit-base": "ViT-Base", "resnet50": "ResNet-50"}
_HEADER = ["network", "stage", "CPU (s)", "peak (MiB)", "GPU (s)", "peak beside it (MiB)", "tensors on it (MiB)"]
_NOT_RUN = "not run"
_RPG = """RPG ([arXiv 2501.11587](https://arxiv.org/abs/2501.11587)) is the published method for networks of this size:
up to 198 million numbers (ConvNeXt-L), about 20 GB of a GPU and minutes to generate one. These are its paper's figures,
not measured here, and not of the same work: its recurrent model makes every weight, while here a network is a mixture
of principal components, which are as large as so many networks and lie in files."""


def section(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The lines of the section. A network that has no run on a device is said to have none."""
    by = {(run["network"], run["device"]): run for run in runs}
    text = [
        HEADING,
        "",
        "A ViT-Base and a ResNet-50 for images of 224 x 224 and 1,000 classes (`network: vit_base`, `resnet50`), built "
        "with random weights and generated whole, made by `python benchmarks/whole_size.py`. The checkpoints are "
        "perturbations of one random network, as above, and say nothing about quality. *Save* writes them; *fit "
        "autoencoder*, *U-Net steps* and *write pipeline* are one process; *sample* opens the pipeline (*open*) and "
        "writes each network as a file; *use* is, per network, loading it with `strict=True` and asking it about two "
        "images, which it must answer with finite numbers. *Peak* is resident memory, interpreter and mapped files "
        "included; *tensors on it* is `torch.cuda.max_memory_allocated`.",
        "",
    ]
    if not runs:
        return [*text, "Not run yet.", ""]
    rows = [_HEADER]
    for name in dict.fromkeys([*_NETWORKS, *(run["network"] for run in runs)]):
        rows += _rows(name, by.get((name, "cpu")), by.get((name, "cuda")))
    text += [f"| {' | '.join(row)} |" for row in (rows[0], ["---", "---", *["---:"] * 5], *rows[1:])]
    text += ["", *(f"- {_told(run)}" for run in runs), "", *_RPG.split("\n"), ""]
    return text


def put(page: str, runs: Sequence[Mapping[str, Any]]) -> str:
    """The page with this section in the place of the one that it has, or before its last section."""
    lines = page.split("\n")
    headings = [index for index, line in enumerate(lines) if line.startswith("## ")]
    first = last = headings[-1] if headings else len(lines)
    if HEADING in lines:
        first = lines.index(HEADING)
        last = min((index for index in headings if index > first), default=len(lines))
    return "\n".join([*lines[:first], *section(runs), *lines[last:]])


def _rows(name: str, cpu: Mapping[str, Any] | None, gpu: Mapping[str, Any] | None) -> list[list[str]]:
    """A row per part of each stage; memory is that of the stage's process, and stands at its first part."""
    title = _NETWORKS.get(name, name)
    stages = {**(cpu or {"stages": {}})["stages"], **(gpu or {"stages": {}})["stages"]}
    if not stages:
        return [[title, "all", *[_NOT_RUN] * 5]]
    rows = []
    for what, stage in stages.items():
        for index, part in enumerate(stage["seconds"]):
            row = [title, part]
            for each, memories in ((cpu, ("peak",)), (gpu, ("peak", "device_peak"))):
                cost = None if each is None else each["stages"].get(what)
                row.append(_NOT_RUN if cost is None else f"{cost['seconds'][part]:.3g}")
                row += ["" if cost is None or index else f"{round(cost[memory] / _MIB):,}" for memory in memories]
            rows.append(row)
    return rows


def _told(run: Mapping[str, Any]) -> str:
    machine = run["machine"]
    where = f"{machine['gpu']}, {machine['cores']} cores" if "gpu" in machine else f"{machine['cpu']}"
    precision = f"{run['steps']} steps of the U-Net in {run['precision']}"
    threads = f"{machine['threads']} thread{'s' * (machine['threads'] > 1)}"
    return (
        f"{_NETWORKS.get(run['network'], run['network'])} on {where}, {threads}, torch "
        f"{machine['torch']}, {machine['date']}: {run['num_params']:,} numbers, {run['checkpoints']} checkpoints, "
        f"{precision}, weights generated in float32 in {run['inference_steps']} steps; {run['disk'] / 1e9:.1f} GB of "
        f"disk, {run['seconds_in_all']:.0f} s in all, imports included." + (f" {run['note']}" if run["note"] else "")
    )
