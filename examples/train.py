"""Train a pipeline on a set of checkpoints, in as many processes as the launcher starts.

One machine with GPUs:  accelerate launch examples/train.py --dataset checkpoints --output-dir my-pipeline
Two CPU processes:      torchrun --nproc_per_node 2 examples/train.py --dataset checkpoints --output-dir my-pipeline
If it is started again with the same folder, it goes on from the newest save.
"""

from __future__ import annotations

import argparse

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.recipes import load_recipe
from pdiff_hub.training.loop import build_accelerator
from pdiff_hub.training.pipeline import require_processes, train_pipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="folder or Hub id of a CheckpointDataset")
    parser.add_argument("--output-dir", required=True, help="where the pipeline will be")
    parser.add_argument("--recipe", default="digits-mlp3", help="whose autoencoder and diffusion options to use")
    parser.add_argument("--override", action="append", default=[], help="e.g. diffusion.steps=5000 (repeatable)")
    parser.add_argument("--num-processes", type=int, help="stop if another number of processes runs")
    parser.add_argument("--log-with", help="an Accelerate tracker, e.g. tensorboard")
    args = parser.parse_args()
    accelerator = build_accelerator()
    require_processes(accelerator, args.num_processes)
    recipe = load_recipe(args.recipe, args.override)
    summary = train_pipeline(
        CheckpointDataset.from_pretrained(args.dataset),
        args.output_dir,
        recipe.autoencoder,
        recipe.diffusion,
        seed=recipe.seed,
        num_inference_steps=recipe.generate.num_inference_steps,
        log_with=args.log_with,
    )
    if accelerator.is_main_process:
        print(
            f"{summary.num_processes} processes, held-out deviation R2 {summary.deviation_r2}, "
            f"loss {summary.loss:.4f}: the pipeline is in {args.output_dir}"
        )


if __name__ == "__main__":
    main()
