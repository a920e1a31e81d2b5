"""`PDiffTrainer`: a run from Python, from a network and a task to judged networks. The command is one, too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.errors import PdiffError
from pdiff_hub.evaluation.table import result_tables, verdict
from pdiff_hub.pipeline import PDiffPipeline, write_card
from pdiff_hub.processes import this_run
from pdiff_hub.recipes import Recipe, functions_of
from pdiff_hub.records import Results, RunFolder, TrainingSummary
from pdiff_hub.runs import stages
from pdiff_hub.runs.arguments import PDiffArguments
from pdiff_hub.runs.callbacks import Calls, PDiffCallback
from pdiff_hub.runs.collecting import collect
from pdiff_hub.runs.inputs import Checkpoints, Inputs, Network, inputs_of
from pdiff_hub.transfer.cards import markdown_table
from pdiff_hub.travelling.pipeline_pdiff import PDiffPipelineOutput


class PDiffTrainer:
    """Collects checkpoints of a network, trains a pipeline on them, generates networks and judges them.

    Each method does what is still to do before it: `run()` does all. Everything is kept in `args.output_dir`, so a run
    that was stopped goes on with a new `PDiffTrainer` of the same arguments. Under a launcher, do the same in every
    process.

    Args:
        network: what the checkpoints are of, one of

            - a module, which is copied. A fine-tune starts from its weights. Where each checkpoint has a seed of its
              own (`population`, `family`), they are made anew by its layers' `reset_parameters`.
            - a class or function that makes one; arguments called in_channels, image_size and num_classes are filled
              in from the task, and its random numbers are those of the seed.
            - a name, a dotted path or a mapping, as in a recipe; in a mapping, `name` may be any of the above.
        task: the images, one of

            - tensors or arrays, `(images, labels)` or `((images, labels), (test_images, test_labels))`; a
              `datasets.Dataset` or `DatasetDict`; a torch `Dataset`: all that `keep_images` takes.
            - a name, a folder, a Hub id or a mapping, as in a recipe; in a mapping, `dataset` may be any of the above.
            - a `Task` of `load_task`.
        args: `PDiffArguments`, or the name of the output folder.
        checkpoints: those that are there already, instead of collecting: a `CheckpointDataset`, its folder or Hub id,
            which says itself which network and task they are of; or a list of state dicts, or of modules.
        callbacks: objects of subclasses of `PDiffCallback`.
        name: of the pipeline in its report and card; by default the folder's name.
        say: is told what begins; None for silence.

    Networks, images and checkpoints in memory get names that begin with "memory:", after what they are. Files hold only
    these names, and the checkpoints. So in another process, give the same objects again.

    Attributes:
        recipe: what is done, with every default.
        folder: the run's files.

    Raises:
        ValueError: what was given cannot be used; the message says why.
    """

    def __init__(
        self,
        network: Network | None = None,
        task: Any = None,
        args: PDiffArguments | str | Path | None = None,
        *,
        checkpoints: Checkpoints | None = None,
        callbacks: Sequence[PDiffCallback] = (),
        name: str = "",
        say: Callable[[str], None] | None = print,
    ):
        if args is None:
            raise PdiffError("nothing says where the run should be: give args=PDiffArguments(output_dir), or a folder.")
        if not isinstance(args, PDiffArguments):
            args = PDiffArguments(args)
        self._begin(args, inputs_of(network, task, checkpoints, args), callbacks, name, say, False)

    @classmethod
    def from_recipe(
        cls,
        recipe: Recipe,
        output_dir: str | Path,
        *,
        device: str = "cpu",
        log_with: str | None = None,
        checkpoints: CheckpointDataset | None = None,
        callbacks: Sequence[PDiffCallback] = (),
        name: str = "",
        say: Callable[[str], None] | None = print,
        trust_remote_code: bool = False,
    ) -> PDiffTrainer:
        """The trainer of a whole recipe (`load_recipe`).

        Args:
            checkpoints: the recipe's, if they are collected already.
            trust_remote_code: whether functions that the recipe's file names may be called.
            others: as in `PDiffArguments` and above.
        """
        trainer = cls.__new__(cls)
        args = PDiffArguments.of(recipe, output_dir, device=device, log_with=log_with)
        trainer._begin(args, Inputs(recipe, checkpoints), callbacks, name, say, trust_remote_code)
        return trainer

    def _begin(
        self,
        args: PDiffArguments,
        inputs: Inputs,
        callbacks: Sequence[PDiffCallback],
        name: str,
        say: Callable[[str], None] | None,
        trust_remote_code: bool,
    ) -> None:
        self.args, self.recipe, self.folder = args, inputs.recipe, RunFolder(Path(args.output_dir))
        self._inputs, self._trust_remote_code = inputs, trust_remote_code
        self._calls = Calls(callbacks, args)
        self._stages = stages.Stages(
            self.recipe,
            self.folder.path,
            device=args.device,
            log_with=args.log_with,
            name=name,
            dataset=inputs.dataset,
            say=say or (lambda text: None),
            around=self._calls.stage,
            trust_remote_code=trust_remote_code,
        )

    def collect(self, directory: str | Path | None = None) -> CheckpointDataset:
        """The checkpoints, in the run's `checkpoints/`.

        directory: for a data set alone: it is collected there, and the run's own folder is left as it is.
        """
        if directory is None:
            self._inputs.keep(self.folder)
            return self._stages.collect()
        with self._calls.stage("collect"):
            return collect(
                self.recipe, Path(directory), device=self.args.device, trust_remote_code=self._trust_remote_code
            )

    def train(self, directory: str | Path | None = None) -> TrainingSummary:
        """Trains the pipeline, and says what came of it.

        directory: for a pipeline alone: it is written there, and the run's own folder is left as it is. The checkpoints
            must then be given, or collected.
        """
        if directory is None:
            self._inputs.keep(self.folder)
            self._stages.train()
            summary = self.folder.training.read_summary()
            assert summary is not None
            return summary
        dataset = self._inputs.dataset or self.collect()
        with self._calls.stage("train"):
            return stages.train(self.recipe, dataset, Path(directory), log_with=self.args.log_with)

    @property
    def pipeline(self) -> PDiffPipeline:
        """The trained pipeline, opened from the run's folder; it is trained now if it was not yet."""
        self._inputs.keep(self.folder)
        return self._stages.train()

    def generate(
        self, num_models: int | None = None, *, condition: Mapping[str, Any] | None = None, guidance_scale: float = 1.0
    ) -> PDiffPipelineOutput:
        """Networks by `args.seed`, as a call of the pipeline gives them: in memory.

        num_models: by default `args.generate.num_models`, which are the networks that `evaluate` judges (fewer if they
        are large, `evaluate.most_numbers`). condition, guidance_scale: as in a call of the pipeline.
        """
        pipe = self.pipeline
        with self._calls.stage("generate"):
            output = pipe(
                self.recipe.generate.num_models if num_models is None else num_models,
                generator=torch.Generator().manual_seed(self.recipe.seed),
                condition=condition,
                guidance_scale=guidance_scale,
            )
        assert isinstance(output, PDiffPipelineOutput)
        return output

    def evaluate(self) -> Results:
        """Judges generated networks beside the checkpoints and simple baselines; writes results, report and card."""
        self._inputs.keep(self.folder)
        results = self._stages.evaluate()
        if this_run().is_main:
            write_card(self.folder.path)
        self._calls.evaluated(results)
        return results

    def run(self) -> Results:
        """All stages, each from where it was stopped."""
        return self.evaluate()

    @property
    def results(self) -> Results | None:
        """What was measured; None if nothing was yet."""
        return self.folder.read_results()

    @property
    def verdict(self) -> str:
        """What was measured, in a few sentences: are the networks copies, and what is better?"""
        results = self.results
        return "Nothing is judged yet: call run()." if results is None else verdict(results)

    @property
    def report(self) -> Path:
        """The page with all tables and pictures, once networks are judged."""
        return self.folder.report

    def build_network(self, state_dict: dict[str, Tensor] | None = None) -> nn.Module:
        """The network in eval mode, with the weights of `state_dict`, such as `generate().state_dicts[0]`."""
        own = self.recipe.file is None and bool(functions_of(self.recipe))  # named in Python
        return self.pipeline.build_network(state_dict, trust_remote_code=own or self._trust_remote_code)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Pushes the pipeline with its results and card; -> the commit's URL. Options: `PDiffPipeline.push_to_hub`."""
        return self.pipeline.push_to_hub(repo_id, **options)

    def __repr__(self) -> str:
        network, task = self.recipe.network, self.recipe.task
        shown = {
            "network": network if isinstance(network, str) else network["name"],
            "task": task if isinstance(task, str) else task["dataset"],
            "output_dir": str(self.args.output_dir),
        }
        return f"PDiffTrainer({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    def _repr_markdown_(self) -> str:
        """What a notebook shows: the verdict and the accuracies."""
        results = self.results
        measured = None if results is None else results.measured
        table = None if measured is None else result_tables(measured).get("accuracy")
        shown = [f"`{self!r}`", f"**{self.verdict}**"]
        if table is not None:
            shown += [table.title, markdown_table(table.columns, table.rows), table.note]
        return "\n\n".join([*shown, f"Everything is in `{self.report}`."] if results else shown)
