"""`PDiffPipeline`, as users meet it: samples, fits, opens, saves, builds networks, and pushes to the Hub."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pdiff_hub.errors import PdiffError, require
from pdiff_hub.networks.beside import build_beside
from pdiff_hub.networks.dry_run import dry_run
from pdiff_hub.pipeline.fitting import (
    STEPS,
    centers,
    check_examples,
    conditions_and_latents,
    fit_latents,
    identity,
    with_gradients,
)
from pdiff_hub.pipeline.opening import download, load_arguments, rehearse
from pdiff_hub.pipeline.pushing import push_pipeline
from pdiff_hub.records import RunFolder
from pdiff_hub.records.fingerprint import fingerprint
from pdiff_hub.safe_files.lock import holding
from pdiff_hub.transfer import commit_of, require_own
from pdiff_hub.travelling import pipeline_pdiff
from pdiff_hub.travelling.pipeline_pdiff import COMPONENTS, CONDITIONER, PDiffPipelineOutput, require_finite


class PDiffPipeline(pipeline_pdiff.PDiffPipeline):
    """Generates networks (Neural Network Diffusion, arXiv 2402.13144): a latent DDPM over trained parameters.

    It extends the class that travels to the Hub. Both write the pipeline itself in the same way.

    Attributes:
        folder: the folder that it was opened from (from the Hub: the copy in the cache), or None.
        hub_id, hub_revision: the Hub id that it was opened from or pushed to, and the commit (40 hexadecimal digits),
            or None.
    """

    folder: Path | None = None
    hub_id: str | None = None
    hub_revision: str | None = None

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        torch_dtype: torch.dtype | None = None,
        **components: Any,
    ) -> PDiffPipeline:
        """Open a pipeline folder or Hub repository with this package's classes; downloaded code is never run.

        Args:
            revision, token, cache_dir, local_files_only: of a Hub repository, as in diffusers.
            components: by name, to use instead of those in the folder (`scheduler=...`).

        Raises:
            FileNotFoundError: no such folder or repository, or a folder that is no pipeline.
            ValueError: a repository that is no pipeline, a newer format, a file that is damaged or does not fit the
                rest; the message names the file.
            Others as `pdiff_hub.transfer.pull` raises them.
        """
        folder = Path(pretrained_model_name_or_path)
        hub_id = None if folder.is_dir() else str(pretrained_model_name_or_path)
        if hub_id is not None:
            folder = download(
                hub_id, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only
            )
        elif revision is not None:
            raise PdiffError(f"{folder} is a local folder, which has no revision {revision!r}.")
        pipe = cls(**load_arguments(folder, components))
        rehearse(pipe, folder)
        pipe.folder = folder.resolve()
        if hub_id is not None:
            pipe.hub_id, pipe.hub_revision = hub_id, commit_of(folder)
        return pipe.to(dtype=torch_dtype) if torch_dtype is not None else pipe

    def build_network(self, state_dict: dict[str, Tensor] | None = None, trust_remote_code: bool = False) -> nn.Module:
        """The target network in eval mode, with the weights of `state_dict` if it is given.

        Only networks that the package knows by name are built, so that somebody else's pipeline cannot run code of its
        choice. With `trust_remote_code=True`, a function that the pipeline names is called, too.
        """
        spec = self.autoencoder.config.network
        if spec is None:
            raise PdiffError(
                "this pipeline does not say which network it generates; build it yourself and load "
                "out.state_dicts[0] into it."
            )
        where = f"the network spec of {self.hub_id or self.folder or 'this pipeline'}"
        network = build_beside(dict(spec), self.autoencoder.layout, where, allow_factory=trust_remote_code)
        if state_dict is not None:
            network.load_state_dict(state_dict, strict=True)
        return network.eval()

    def fit(
        self,
        inputs: Tensor,
        labels: Tensor,
        num_models: int = 5,
        condition: Mapping[str, Any] | Tensor | None = None,
        generator: torch.Generator | None = None,
        *,
        num_steps: int = STEPS,
        trust_remote_code: bool = False,
    ) -> PDiffPipelineOutput:
        """Networks that give the labels of a few examples, out of those that the pipeline knows.

        The first is the most probable one, for use alone. The others differ from it where the labels do not decide, so
        that the mean of all answers says how sure one can be. Nothing else than the examples is needed.

        Args:
            inputs: float [N, channels, height, width] as the network takes them, such as `task.inputs` gives.
            labels: whole numbers [N], at least two different ones.
            num_models: 1 or more.
            condition: what is known of the task, as in a call.
            generator: of the draws that networks after the first are pulled to.
            num_steps: of Adam, 1 or more.
            trust_remote_code: as in `build_network`.

        Returns:
            params, state_dicts and latents, as a call does.

        Raises:
            ValueError: for examples that do not fit the network, and for arguments out of range.
        """
        spec = self.autoencoder.config.network
        if spec is None:
            raise PdiffError("this pipeline does not say which network it generates, so nothing can be fitted.")
        check_examples(inputs, labels, spec)
        require(type(num_steps) is int and num_steps >= 1, "num_steps", num_steps, "an integer of at least 1")
        network = self.build_network(trust_remote_code=trust_remote_code)
        dry_run(network, spec)
        network = with_gradients(network)
        device = self.autoencoder.device
        latents_of: Callable[[Tensor], Tensor] = identity
        if self.conditioner is not None and condition is None:
            conditioner = self.conditioner.to(device)
            latents_of = conditions_and_latents(conditioner)
            number = conditioner.spec.size + conditioner.std_CL.numel()
            where = device if generator is None else generator.device
            draws = torch.randn(num_models, number, generator=generator, device=where)
        else:
            (draws,) = self(
                num_models, generator=generator, output_type="latent", condition=condition, return_dict=False
            )
        center = centers(draws, conditional=condition is not None).to(device)
        frozen = {name: tensor.to(device) for name, tensor in self.autoencoder.frozen_state().items()}
        parts = center.split(self.default_batch_size())
        with self.progress_bar(total=num_steps * len(parts)) as bar:
            fitted = [
                fit_latents(
                    self.autoencoder,
                    network.to(device),
                    frozen,
                    inputs.to(device),
                    labels.to(device, torch.int64),
                    part,
                    steps=num_steps,
                    after_step=bar.update,
                    latents_of=latents_of,
                )
                for part in parts
            ]
        latents = torch.cat(fitted).cpu()
        params = self.decode_latents(latents)
        require_finite(params)
        return PDiffPipelineOutput(params=params, state_dicts=self.autoencoder.state_dicts(params), latents=latents)

    @holding("save_directory")
    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write the pipeline as a folder with the same files as its Hub repository, code included.

        `DiffusionPipeline.from_pretrained(..., trust_remote_code=True)` opens it without this package. Recipe, results,
        report, pictures and card are copied from the folder that the pipeline was opened from, unless the pipeline has
        changed since. If `save_directory` holds such files of another pipeline, all but its recipe are removed.
        """
        target = RunFolder(Path(save_directory).resolve())
        parts = [file for name in (*COMPONENTS, CONDITIONER) for file in (target.path / name).glob("*")]
        for file in (target.index, *parts, *target.companions()):
            require_own(file, target.path)  # a link there would let this write over a file elsewhere
        there = target.companions() if target.index.is_file() else []
        before = fingerprint(target) if there else None
        super().save_pretrained(target.path)
        if before is not None and before != fingerprint(target):
            stale = [file for file in there if file != target.recipe]
            for file in stale:
                file.unlink()
            if stale:
                warnings.warn(
                    f"{target.path} held another pipeline: {stale[0].name} and others, which told of that one, "
                    "were removed.",
                    stacklevel=2,
                )
        if self.folder is None or self.folder == target.path:
            return
        source = RunFolder(self.folder)
        if not (companions := source.companions()):
            return
        if fingerprint(source) != fingerprint(target):
            warnings.warn(
                f"the pipeline is not the one in {self.folder} any more, so {companions[0].name} and others "
                "there, which are of that one, were left out.",
                stacklevel=2,
            )
            return
        for file in companions:
            shutil.copyfile(require_own(file, source.path), target.path / file.name)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str = "Upload pipeline",
        create_pr: bool = False,
        token: str | bool | None = None,
    ) -> str:
        """Push the pipeline to the Hub repository `repo_id` in one commit; -> the commit's URL.

        The commit holds weights, configuration, code, a card, and the files that `save_pretrained` copies. Files that
        are on the Hub already are not uploaded. The repository is made if needed.

        Args:
            private: whether a new repository is private (None: what the account does by default).
            revision: a branch, by default main.
            create_pr: open a pull request instead; -> its URL.

        Errors as `pdiff_hub.transfer.push_files` raises them.
        """
        pushed = push_pipeline(
            self,
            repo_id,
            private=private,
            revision=revision,
            commit_message=commit_message,
            create_pr=create_pr,
            token=token,
        )
        self.hub_id, self.hub_revision = repo_id, pushed.commit
        return pushed.url
