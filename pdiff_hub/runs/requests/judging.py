"""The audit of requests: a conditional pipeline's networks for held-out tasks, beside every simple way to get one.

Shapes: U held-out tasks, M networks for each, P parameters, D numbers of a condition.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.collect.family import Family
from pdiff_hub.evaluation.ensembles import EnsembleTotals
from pdiff_hub.evaluation.request_names import STEPS
from pdiff_hub.networks import build_network
from pdiff_hub.networks.dry_run import build_to_judge
from pdiff_hub.pipeline import PDiffPipeline
from pdiff_hub.progress import progress_bar
from pdiff_hub.records import EnsembleCurve, FitRequests, Requests
from pdiff_hub.runs.requests.bootstrap import interval
from pdiff_hub.runs.requests.by_condition import SeenTasks, further_training, simple_ways
from pdiff_hub.runs.requests.by_examples import (
    draw_examples,
    fit_each,
    multi_task_trunk,
    on_inputs,
    other_ways,
    probe,
    random_subspace,
    stacking,
)
from pdiff_hub.runs.requests.room import room
from pdiff_hub.runs.requests.sampling import quiet, sampled
from pdiff_hub.runs.requests.task_networks import Examples, TaskNetworks
from pdiff_hub.runs.requests.verdicts import fit_verdicts, unseen_verdicts
from pdiff_hub.seeds import derived_seed, generator_of
from pdiff_hub.tasks import Task

SIZES = (1, 5, 20)  # of ensembles
_AVERAGED = 5  # networks whose weights are averaged to one, which costs as much at use as one
_MOST_NUMBERS = 2**20  # of a network; a trunk of a larger one takes longer than all else


def judge_requests(
    pipe: PDiffPipeline,
    dataset: CheckpointDataset,
    unseen: CheckpointDataset,
    task: Task,
    family: Family,
    *,
    guidance_scale: float,
    num_fit_tasks: int,
    num_labels: tuple[int, ...],
    seed: int,
    trust_remote_code: bool = False,
) -> tuple[Requests, Tensor]:
    """What requests give on the tasks of `unseen`, on which nothing was trained; and the generated networks [U,P].

    Args:
        dataset: the networks of seen tasks. unseen: one network for each held-out task, the ceiling.
        num_fit_tasks: on how many held-out tasks, evenly spread, networks are fitted to examples; 0: on none.
        num_labels: how many labelled examples, each a row; those that the training split does not have are left out.
    """
    assert unseen.conditions_KD is not None
    network = build_to_judge(dataset.network, dataset.layout, "the data set", allow_factory=trust_remote_code)
    network.eval()
    network.requires_grad_(False)
    device = pipe.autoencoder.device
    frozen = {name: tensor.to(device) for name, tensor in pipe.autoencoder.frozen_state().items()}
    networks = TaskNetworks(network.to(device), dataset.layout, frozen, task, family)
    seen, asked_UD = SeenTasks.of(dataset), unseen.conditions_KD
    num_labels = tuple(number for number in num_labels if number <= len(task.train))  # no more than there are images
    num_fit_tasks = num_fit_tasks if num_labels else 0
    rounds = 3 if num_fit_tasks == 0 else 3 + len(num_labels)
    with quiet(pipe), progress_bar(rounds, "judge requests", "part") as progress:
        drawn_MUP = _asked(pipe, asked_UD, max(SIZES), guidance_scale, seed)
        each_U, ways = _by_condition(pipe, networks, seen, asked_UD, unseen.params_KP, drawn_MUP, guidance_scale, seed)
        progress.update()
        untrained = _untrained(dataset, seed, trust_remote_code)
        start_P = dataset.layout.flatten(untrained.state_dict())
        averaged_UP = ways["ensemble"]
        mean_UP = seen.mean_TP.mean(dim=0).expand(len(asked_UD), -1)
        starts = {"scratch": start_P.expand(len(asked_UD), -1), "mean": mean_UP, "generated": drawn_MUP[0]}
        starts |= {"average": ways["average"], "ensemble": averaged_UP}
        further = further_training(starts, STEPS, asked_UD, networks, seed=seed)
        each_U |= {"warm_start": further["generated_25"], **further}
        progress.update()
        ensembles = {"generated": _ensembles(networks, drawn_MUP.transpose(0, 1), asked_UD)}
        progress.update()
        fit = None
        if num_fit_tasks:
            picked = torch.linspace(0, len(asked_UD) - 1, min(num_fit_tasks, len(asked_UD))).round().long()
            fit = _by_examples(
                pipe, networks, seen, untrained, asked_UD[picked], num_labels, progress.update, seed, trust_remote_code
            )
    inside_U = torch.tensor([not seen.spec.outside(one_D[None]) for one_D in asked_UD])
    within = {} if bool(inside_U.all()) else {name: float(each[inside_U].mean()) for name, each in each_U.items()}
    requests = Requests(
        unseen={name: float(each.mean()) for name, each in each_U.items()},
        intervals={name: interval(each, seed, "tasks") for name, each in each_U.items()},
        ensembles=ensembles,
        fit=fit,
        num_seen=len(seen.condition_TD),
        num_unseen=len(asked_UD),
        inside=within if bool(inside_U.any()) else {},
        rule=str(dataset.collect.get("rule", "")),
        verdicts=[*unseen_verdicts(each_U, len(seen.condition_TD), seed), *([] if fit is None else fit_verdicts(fit))],
    )
    return requests, drawn_MUP[0]


def _by_condition(
    pipe: PDiffPipeline,
    networks: TaskNetworks,
    seen: SeenTasks,
    asked_UD: Tensor,
    trained_UP: Tensor,
    drawn_MUP: Tensor,
    guidance_scale: float,
    seed: int,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Accuracies [U] by method, and the networks [U,P] of those that have one for each task."""

    def accuracy(params_UP: Tensor) -> Tensor:
        return networks.accuracy(params_UP, asked_UD)

    # Every task gets what another one asked for: a cycle through all of them, in random order, leaves none its own.
    order_U = torch.randperm(len(asked_UD), generator=generator_of(seed, "shuffled requests"))
    other_UD = torch.empty_like(asked_UD).index_copy_(0, order_U, asked_UD[order_U.roll(1)])
    ways = simple_ways(seen, asked_UD, networks)
    ways |= {"gaussian": _gaussian(pipe, asked_UD, seed), "ensemble": drawn_MUP[:_AVERAGED].mean(dim=0)}
    ways |= {
        "shuffled": _asked(pipe, other_UD, 1, guidance_scale, seed)[0],
        "unconditional": sampled(pipe, None, len(asked_UD), guidance_scale=1.0, seed=derived_seed(seed, "request", 0)),
    }
    each_U = {
        "trained": accuracy(trained_UP),
        "generated": torch.stack([accuracy(drawn_UP) for drawn_UP in drawn_MUP[:_AVERAGED]]).mean(dim=0),
    }
    return {**each_U, **{name: accuracy(made_UP) for name, made_UP in ways.items()}}, ways


def _by_examples(
    pipe: PDiffPipeline,
    networks: TaskNetworks,
    seen: SeenTasks,
    untrained: nn.Module,
    asked_UD: Tensor,
    num_labels: tuple[int, ...],
    done: Callable[[], object],
    seed: int,
    trust_remote_code: bool,
) -> FitRequests:
    labels: dict[str, dict[str, float]] = {}
    intervals: dict[str, dict[str, tuple[float, float]]] = {}
    ensembles: dict[str, dict[str, EnsembleCurve]] = {}
    test, trunk_P = _all_test(networks, asked_UD), None
    start_P = networks.layout.flatten(untrained.state_dict())
    if networks.layout.num_params <= _MOST_NUMBERS:
        trunk_P = multi_task_trunk(networks, seen, untrained, seed=seed)
    for number in num_labels:
        examples = draw_examples(networks, asked_UD, number, seed=seed)
        fits_UMP = fit_each(pipe, examples, max(SIZES), seed=seed, trust_remote_code=trust_remote_code)
        others = other_ways(networks, seen, start_P, examples, max(SIZES), seed=seed)
        single = {"fit": fits_UMP[:, 0], **others.single}
        if pipe.autoencoder.config.form == "linear":
            single["random_subspace"] = random_subspace(pipe, examples, seed=seed, trust_remote_code=trust_remote_code)
        if trunk_P is not None:
            single["multi_task_trunk"] = probe(networks, trunk_P, examples)
        each_U = {name: networks.accuracy(made_UP, asked_UD) for name, made_UP in single.items()}
        each_U |= {"inputs": on_inputs(examples, test), "stacking": stacking(networks, seen, examples, test)}
        labels[str(number)] = {name: float(each.mean()) for name, each in each_U.items()}
        intervals[str(number)] = {name: interval(each, seed, "tasks") for name, each in each_U.items()}
        ensembles[str(number)] = {
            name: _ensembles(networks, made_UMP, asked_UD)
            for name, made_UMP in {"fit": fits_UMP, **others.ensembles}.items()
        }
        done()
    return FitRequests(labels, intervals, ensembles, len(asked_UD))


def _asked(pipe: PDiffPipeline, asked_UD: Tensor, number: int, guidance_scale: float, seed: int) -> Tensor:
    """So many networks for each request, [M,U,P]."""
    made_MUP = room(number, len(asked_UD), pipe.autoencoder.layout.num_params)
    for index, made_UP in enumerate(made_MUP):
        made_UP.copy_(
            sampled(
                pipe,
                asked_UD,
                len(asked_UD),
                guidance_scale=guidance_scale,
                seed=derived_seed(seed, "request", index),
            )
        )
    return made_MUP


@torch.no_grad()
def _gaussian(pipe: PDiffPipeline, asked_UD: Tensor, seed: int) -> Tensor:
    """A draw from the normal distribution that the pipeline starts from; its U-Net has no part in it."""
    mean_UCL, std_UCL = pipe.conditioner.gaussian(pipe.conditions.channels(asked_UD).to(pipe.conditioner.device))
    noise_UCL = torch.randn(mean_UCL.shape, generator=generator_of(seed, "gaussian request")).to(mean_UCL.device)
    return pipe.decode_latents(mean_UCL + std_UCL * noise_UCL)


def _ensembles(networks: TaskNetworks, made_UMP: Tensor, asked_UD: Tensor) -> EnsembleCurve:
    """Mean accuracy, NLL and calibration error over the tasks, of ensembles of their networks."""
    split, num_models = networks.task.test, made_UMP.shape[1]
    sizes = [size for size in SIZES if size <= num_models]
    totals = [{size: EnsembleTotals(num_models // size) for size in sizes} for _ in made_UMP]
    for task, made_MP in enumerate(made_UMP):
        same_MD = asked_UD[task].expand(num_models, -1)
        parts: dict[int, list[tuple[Tensor, Tensor]]] = {}
        for rows, log_bnc, labels_bn in networks.answers(made_MP, same_MD, split):
            parts.setdefault(rows.start, []).append((log_bnc, labels_bn[0]))
        for chunks in zip(*parts.values(), strict=True):
            log_Mnc, labels_n = torch.cat([log_bnc for log_bnc, _ in chunks]).double(), chunks[0][1]
            for size, total in totals[task].items():
                total.add(log_Mnc[: total.num_groups * size].unflatten(0, (total.num_groups, size)), labels_n)
    means = [[each[size].means(len(split)) for each in totals] for size in sizes]
    accuracy, nll, error = (
        tuple(sum(task[part] for task in tasks) / len(tasks) for tasks in means) for part in range(3)
    )
    return EnsembleCurve(tuple(sizes), accuracy, nll, error)


def _all_test(networks: TaskNetworks, asked_UD: Tensor) -> Examples:
    """The test images and labels as each task has them."""
    split = networks.task.test
    inputs_mX = networks.task.inputs(split)
    seen = networks.family.view(
        inputs_mX.expand(len(asked_UD), *inputs_mX.shape), split.labels_N.expand(len(asked_UD), -1), asked_UD
    )
    return Examples(*seen)


def _untrained(dataset: CheckpointDataset, seed: int, trust_remote_code: bool) -> nn.Module:
    """The network of the family's seed before any training."""
    settings = dataset.collect.get("settings", {})
    began = int(settings.get("seed", seed))
    return build_network(dataset.network, seed=began, pretrained=False, allow_factory=trust_remote_code)
