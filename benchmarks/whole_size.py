"""Networks of whole size, from checkpoints to networks that answer: a ViT-Base (86 million) and a ResNet-50.

The checkpoints are random perturbations of one network with random weights: good for time and memory, they say nothing
about quality. Each stage is measured in a process of its own, which has imported everything before. It needs up to 11
GB of disk in --work-dir, which are free again at the end. Of a GPU, the memory that tensors took is measured too.

    python benchmarks/whole_size.py --json benchmarks/whole-size.json --page benchmarks/GROWTH.md

adds its runs to the file, in place of those of the same network and device, and puts all runs in the file on the page.
`benchmarks/growth.py`, which writes that page anew, takes them from benchmarks/whole-size.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from growth_process import Cost, Waiting
from harness import ROOT, machine
from whole_size_page import put
from whole_size_stages import INFERENCE_STEPS, network_of, sample, save, train, use

from pdiff_hub.networks import build_network
from pdiff_hub.safe_files import replacing, write_json
from pdiff_hub.travelling.param_autoencoder import ParamLayout

NETWORKS = {"vit-base": "vit_base", "resnet50": "resnet50"}
"""By the name on the command line: the name in a recipe."""
KEPT = ROOT / "benchmarks" / "whole-size.json"
Run = dict[str, Any]
"""One network on one device: what was done, on which machine, and seconds and bytes by stage."""


def measure(
    name: str, device: str, work_dir: Path, *, checkpoints: int, steps: int, models: Sequence[int], image_size: int
) -> Run:
    """Does all stages with one network, in a folder in `work_dir` that is removed. device: "cpu" or "cuda"."""
    spec = network_of(NETWORKS[name], image_size, num_classes=1000)
    work_dir.mkdir(parents=True, exist_ok=True)
    folder = Path(mkdtemp(prefix="whole-size-", dir=work_dir))
    began = time.perf_counter()
    stages: dict[str, Waiting] = {}
    costs: dict[str, Cost] = {}
    try:
        stages["save"] = Waiting(save, folder, spec, checkpoints)
        stages["train"] = Waiting(train, folder, steps)
        for number in models:
            stages[f"sample {number}"] = Waiting(sample, folder, number, device)
        stages["use"] = Waiting(use, folder, spec, device)
        for stage in stages.values():  # all import at the same time, and nothing else runs while one is measured
            stage.ready()
        for what, stage in stages.items():
            costs[what] = stage.go()
            print(f"{name}, {device}: {what}: {told(costs[what])}", file=sys.stderr)
        num_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    finally:
        for stage in stages.values():
            stage.end()
        shutil.rmtree(folder, ignore_errors=True)
    return {
        "network": name,
        "device": device,
        "precision": precision(device),
        "num_params": num_params(spec),
        "checkpoints": checkpoints,
        "steps": steps,
        "inference_steps": INFERENCE_STEPS,
        "models": list(models),
        "machine": {**machine(), **({"gpu": torch.cuda.get_device_name()} if device == "cuda" else {})},
        "seconds_in_all": time.perf_counter() - began,
        "disk": num_bytes,
        "stages": {
            what: {"seconds": cost.seconds, "peak": cost.peak, "device_peak": cost.device_peak}
            for what, cost in costs.items()
        },
    }


def precision(device: str) -> str:
    """How the U-Net is trained: as `mixed_precision: auto` decides."""
    return "bf16" if device == "cuda" and torch.cuda.is_bf16_supported() else "float32"


def num_params(spec: dict[str, object]) -> int:
    with torch.device("meta"):
        return ParamLayout.from_module(build_network(spec)).num_params


def told(cost: Cost) -> str:
    """What a stage cost, in one line."""
    parts = ", ".join(f"{part} {seconds:.3g} s" for part, seconds in cost.seconds.items())
    gpu = f", {cost.device_peak / 2**20:,.0f} MiB of the GPU" if cost.device_peak else ""
    return f"{parts}; at most {cost.peak / 2**20:,.0f} MiB{gpu}"


def kept_runs(file: Path) -> list[Run]:
    """The runs in `file`; none if it does not exist."""
    runs: list[Run] = json.loads(file.read_text())["runs"] if file.exists() else []
    return runs


def keep(file: Path, run: Run) -> None:
    """Adds the run to `file`, in place of that of the same network and device."""
    others = [each for each in kept_runs(file) if (each["network"], each["device"]) != (run["network"], run["device"])]
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, {"runs": [*others, run]})


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=[*NETWORKS, "all"], default="all")
    parser.add_argument("--device", choices=["cpu", "cuda", "auto"], default="auto", help="auto: a GPU if there is one")
    parser.add_argument("--checkpoints", type=int, default=10, metavar="K", help="at least 4 (default: 10)")
    parser.add_argument("--steps", type=int, default=200, metavar="N", help="of the U-Net (default: 200)")
    parser.add_argument("--models", type=int, nargs="+", default=[1, 8], metavar="N", help="to sample (default: 1 8)")
    parser.add_argument("--image-size", type=int, default=224, metavar="PIXELS", help="(default: 224)")
    parser.add_argument("--work-dir", type=Path, default=ROOT / "runs", metavar="DIR", help="(default: runs)")
    parser.add_argument("--note", default="", metavar="TEXT", help="what a reader should know of this run")
    parser.add_argument("--json", type=Path, default=KEPT, metavar="FILE", help="keeps the runs (default: %(default)s)")
    parser.add_argument("--page", type=Path, metavar="FILE", help="gets all runs that are kept, e.g. GROWTH.md")
    options = parser.parse_args(arguments)
    if options.checkpoints < 4 or min(options.steps, *options.models) < 1:
        parser.error("expected at least 4 checkpoints, 1 step and 1 network")
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU here; give --device cpu")
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # training takes a GPU by itself
    for name in NETWORKS if options.network == "all" else [options.network]:
        try:
            run = measure(
                name,
                device,
                options.work_dir,
                checkpoints=options.checkpoints,
                steps=options.steps,
                models=sorted(set(options.models)),
                image_size=options.image_size,
            )
        except RuntimeError as error:
            raise SystemExit(f"{name}: {error}") from None
        print(f"{name}, {device}: {run['num_params']:,} numbers, {run['seconds_in_all']:.3g} s in all")
        keep(options.json, {**run, "note": options.note})
    if options.page is not None:
        with replacing(options.page) as temporary:
            temporary.write_text(
                put(options.page.read_text(encoding="utf-8"), kept_runs(options.json)), encoding="utf-8"
            )


if __name__ == "__main__":
    main()
