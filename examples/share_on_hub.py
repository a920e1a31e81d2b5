"""Share a pipeline and the checkpoints that it was trained on. Run: python examples/share_on_hub.py FOLDER USER/NAME

It needs `hf auth login` once. FOLDER is the output folder of `pdiff run`, e.g. pipelines/digits-mlp3.
"""

from __future__ import annotations

import sys

from pdiff_hub import PDiffPipeline
from pdiff_hub.hub import push_pipeline_folder


def main(folder: str, repo_id: str) -> None:
    url = push_pipeline_folder(folder, repo_id, checkpoints_id=f"{repo_id}-checkpoints")
    pipe = PDiffPipeline.from_pretrained(repo_id)  # anybody can now open it like this; no downloaded code is run
    print(f"{url}: {pipe(num_models=1, num_inference_steps=20).params.shape[1]:,} parameters per network")


if __name__ == "__main__":
    main(*sys.argv[1:])
