"""Upload a pipeline folder to the Hub. Run: python examples/share_on_hub.py FOLDER USER/NAME (needs `hf auth login`)"""

from __future__ import annotations

import sys

from huggingface_hub import HfApi

from pdiff_hub import PDiffPipeline


def main(folder: str, repo_id: str) -> None:
    PDiffPipeline.from_pretrained(folder)  # what does not open here would not open there
    api = HfApi()
    api.create_repo(repo_id, exist_ok=True)
    # What only resuming needs stays here.
    done = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload pipeline",
                             ignore_patterns=["training/**", "checkpoints/**", "generated/**"])
    print(f"{done.commit_url}: open it with PDiffPipeline.from_pretrained({repo_id!r})")


if __name__ == "__main__":
    main(*sys.argv[1:])
