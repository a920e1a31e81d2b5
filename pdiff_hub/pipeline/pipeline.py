"""`PDiffPipeline`, as users meet it: samples, fits, opens, saves, builds networks, and pushes to the Hub."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.ensembles import Ensemble, make_ensemble
from pdiff_hub.errors import PdiffError, require
from pdiff_hub.networks.beside import build_beside
from pdiff_hub.networks.dry_run import dry_run
from pdiff_hub.networks.given import supplied
from pdiff_hub.pipeline.companions import bring_companions, remove_stale
from pdiff_hub.pipeline.fitting import (
    STEPS,
    centers,
    check_examples,
    conditions_and_latents,
    fit_latents,
    identity,
    with_gradients,
)
from pdiff_hub.pipeline.on_gpus import SamplesOnGpus
from pdiff_hub.pipeline.opening import ARGUMENTS, download, load_arguments, rehearse
from pdiff_hub.pipeline.options import check_opening, check_saving, check_sharing, device_asked, dtype_of
from pdiff_hub.pipeline.pushing import push_pipeline
from pdiff_hub.progress import progress_bar
from pdiff_hub.recipes import recipe_of
from pdiff_hub.records import RunFolder
from pdiff_hub.records.fingerprint import fingerprint
from pdiff_hub.records.made_here import forget, is_trusted
from pdiff_hub.records.shipped import folder_or_shipped
from pdiff_hub.safe_files.lock import alone_in
from pdiff_hub.tasks import Task
from pdiff_hub.transfer import commit_of, require_own
from pdiff_hub.travelling import pipeline_pdiff
from pdiff_hub.travelling.pipeline_pdiff import (
    COMPONENTS,
    CONDITIONER,
    PDiffPipelineOutput,
    require_finite,
    require_generators,
)

if TYPE_CHECKING:
    from pdiff_hub.pipeline.calling import NetworksOutput


class PDiffPipeline(SamplesOnGpus):
    """Generates networks (Neural Network Diffusion, arXiv 2402.13144): a latent DDPM over trained parameters.

    It extends the class that travels to the Hub. Both write the pipeline itself in the same way.

    Attributes:
        folder: the folder that it was opened from (from the Hub: the copy in the cache), or None.
        hub_id: the Hub id that it was opened from or pushed to, or None.
        hub_revision: the commit there (40 hexadecimal digits), or None.
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
        subfolder: str | None = None,
        dtype: torch.dtype | None = None,
        torch_dtype: torch.dtype | None = None,
        device_map: str | torch.device | None = None,
        **components: Any,
    ) -> PDiffPipeline:
        """Open a pipeline with this package's classes; downloaded code is never run.

        Args:
            pretrained_model_name_or_path: a folder; else the name of a pipeline that comes with the package, such as
                "digits-mlp3"; else the id of a Hub repository.
            revision, token, cache_dir, local_files_only: of a Hub repository, as in diffusers.
            subfolder: in which the pipeline is; of a folder only.
            dtype, torch_dtype: of the components, by either name; None: float32.
            device_map: the device for all components; None: the CPU.
            components: by name, to use instead of those in the folder (`scheduler=...`). Other options of diffusers'
                `from_pretrained` are taken if they ask for what is done anyway (`use_safetensors=True`).

        Raises:
            FileNotFoundError: no such folder or repository, or a folder that is no pipeline.
            ValueError: a repository that is no pipeline, a recipe without weights, a newer format, a file that is
                damaged or does not fit the rest (the message names it), an option that cannot be had or is unknown.

        Others as `pdiff_hub.transfer.pull` raises them.
        """
        components = check_opening(components, ARGUMENTS)
        number, device = dtype_of(dtype, torch_dtype), device_asked(device_map)
        name = str(pretrained_model_name_or_path)
        found = folder_or_shipped(pretrained_model_name_or_path)
        if found is not None and revision is not None:
            what = "a local folder" if Path(name).is_dir() else "shipped with this package"
            raise PdiffError(f"{name} is {what}, which has no revision {revision!r}.")
        if found is None and subfolder is not None:
            raise PdiffError(
                f"subfolder is {subfolder!r}, and a Hub repository has its pipeline at its root: download {name} with "
                "`hf download`, and open the folder in it."
            )
        folder = found or download(
            name, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only
        )
        folder = folder if subfolder is None else folder / subfolder
        pipe = cls(**load_arguments(folder, components))
        rehearse(pipe, folder)
        pipe.folder = folder.resolve()
        if found is None:
            pipe.hub_id, pipe.hub_revision = name, commit_of(folder)
        moved = {key: value for key, value in (("dtype", number), ("device", device)) if value is not None}
        return pipe.to(**moved) if moved else pipe

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **components: Any) -> PDiffPipeline:
        """A pipeline with the components of another one, which take no further memory; it is of the same folder.

        components: by name, to use instead (`scheduler=...`, `default_num_inference_steps=...`). ValueError for a
        pipeline of another kind, and for an option that is unknown or cannot be had.
        """
        if not isinstance(pipeline, pipeline_pdiff.PDiffPipeline):
            raise PdiffError(
                f"from_pipe takes a PDiffPipeline, and this is a {type(pipeline).__name__} of other classes; open its "
                "folder with PDiffPipeline.from_pretrained."
            )
        check_sharing(components, ARGUMENTS)
        steps = pipeline.config.default_num_inference_steps
        made = cls(**{**pipeline.components, "default_num_inference_steps": steps, **components})
        for name in ("folder", "hub_id", "hub_revision"):
            setattr(made, name, getattr(pipeline, name, None))
        return made

    def build_network(
        self,
        state_dict: dict[str, Tensor] | None = None,
        trust_remote_code: bool = False,
        *,
        network: nn.Module | Callable[..., nn.Module] | None = None,
    ) -> nn.Module:
        """The target network in eval mode, with the weights of `state_dict` if it is given.

        Only networks that the package knows by name are built, so that somebody else's pipeline cannot run code of its
        choice. With `trust_remote_code=True`, a function that the pipeline names is called, too. The folder of a run
        that the user let call this function on this machine needs no flag. For a pipeline whose network no file
        describes, give `network`: a module, which is copied, or a function that makes one.
        """
        spec = self.autoencoder.config.network
        if network is not None:
            built = supplied(network, spec, self.autoencoder.layout)
        elif spec is None:
            raise PdiffError(
                "this pipeline does not say which network it generates; give it (network=...), or build it yourself "
                "and load out.state_dicts[0] into it."
            )
        else:
            where = f"the network spec of {self.hub_id or self.folder or 'this pipeline'}"
            allowed = is_trusted(spec, self.folder, trust_remote_code)
            built = build_beside(dict(spec), self.autoencoder.layout, where, allow_factory=allowed)
        if state_dict is not None:
            built.load_state_dict(state_dict, strict=True)
        return built.eval()

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
    ) -> NetworksOutput:
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
        require_generators(generator)
        if isinstance(generator, list | tuple):
            raise PdiffError("generator is a list, expected one: a fit draws for all networks together.")
        require(type(num_models) is int and num_models >= 1, "num_models", num_models, "an integer of at least 1")
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
        out: Any = PDiffPipelineOutput(params=params, state_dicts=self.autoencoder.state_dicts(params), latents=latents)
        return out

    def ensemble(
        self,
        num_models: int = 5,
        select: Literal["accuracy", "diverse"] | None = "accuracy",
        calibrate: bool = True,
        task: Task | str | Mapping[str, Any] | None = None,
        candidates: int | None = None,
        condition: Mapping[str, Any] | None = None,
        generator: torch.Generator | None = None,
        *,
        originals: CheckpointDataset | None = None,
        images: str | os.PathLike[str] | None = None,
        trust_remote_code: bool = False,
    ) -> Ensemble:
        """An ensemble of generated networks, chosen on validation; `print(ensemble.report)` says what it brings.

        Args:
            num_models: networks in it, 1 or more.
            select: "accuracy": those that are best alone; "diverse": each adds most to the others; None: the first.
            calibrate: set a temperature, if the validation images show that one helps.
            task: what they are chosen and judged by; None: the pipeline's own.
            candidates: networks to choose from. None: 50, or 5 for each network in the ensemble if that is more.
            condition: what all networks are asked to be, as in a call. It then also decides which answers are right.
            generator: of the candidates.
            originals: trained networks to compare with. None: those in the pipeline's folder, if it has them.
            images: where the images of the pipeline's own task are, as in `load_recorded_task`.
            trust_remote_code: as in `build_network`.

        Raises:
            ValueError: for an argument out of range, and for a task that does not fit the networks.
        """
        return make_ensemble(
            self,
            num_models,
            select=select,
            calibrate=calibrate,
            task=task,
            candidates=candidates,
            condition=condition,
            generator=generator,
            trust_remote_code=trust_remote_code,
            originals=originals,
            images=None if images is None else os.fspath(images),
            place=(self.folder, self.hub_id, self.hub_revision),
            recipe=None if self.folder is None else recipe_of(RunFolder(self.folder)),
        )

    def progress_bar(self, iterable: Iterable[Any] | None = None, total: int | None = None) -> Any:
        """As in diffusers. Where its bar would be hidden, since nobody watches a terminal, lines say how far it is."""
        config = dict(getattr(self, "_progress_bar_config", {}))
        if total is None or config.get("disable", False) is not None:
            return super().progress_bar(iterable, total)
        return progress_bar(total, config.get("desc", "generate"), config.get("unit", "step"))

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], safe_serialization: bool = True, **options: Any
    ) -> None:
        """Write the pipeline as a folder with the same files as its Hub repository, code included.

        `DiffusionPipeline.from_pretrained(..., trust_remote_code=True)` opens it without this package. Recipe, results,
        report, pictures, sources of functions and card are copied from the folder that the pipeline was opened from,
        unless the pipeline has changed since. If `save_directory` holds such files of another pipeline, all but its
        recipe are removed.

        ValueError for an option of diffusers that cannot be had (`safe_serialization=False`, `variant="fp16"`).
        """
        check_saving(safe_serialization, options)
        target = RunFolder(Path(save_directory).resolve())
        with alone_in(target.path):
            self._save(target)

    def _save(self, target: RunFolder) -> None:
        """Writes the pipeline, and what tells of it, into a folder that nobody else writes into."""
        parts = [file for name in (*COMPONENTS, CONDITIONER) for file in (target.path / name).glob("*")]
        for file in (target.index, *parts, *target.companions()):
            require_own(file, target.path)  # a link there would let this write over a file elsewhere
        there = target.companions() if target.index.is_file() else []
        before = fingerprint(target) if there else None
        super().save_pretrained(target.path)
        if self.folder != target.path:
            forget(target.path)
        if before is not None and before != fingerprint(target):
            remove_stale(target, there)
        if self.folder is not None and self.folder != target.path:
            bring_companions(RunFolder(self.folder), target)

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
