"""Networks from a few labelled examples of tasks that nobody trained, beside the other ways to use the same examples.

Shapes: T seen tasks, U held-out ones, n labelled examples of a task, m test images, P parameters, X one input,
N = C x L numbers of a latent, c answers.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pdiff_hub.collect.family import last_layer, train_trunk
from pdiff_hub.errors import PdiffError
from pdiff_hub.pipeline import PDiffPipeline
from pdiff_hub.runs.requests.by_condition import SeenTasks
from pdiff_hub.runs.requests.room import room
from pdiff_hub.runs.requests.task_networks import Examples, TaskNetworks
from pdiff_hub.seeds import generator_of

logger = logging.getLogger(__name__)
_TUNED: Mapping[str, Any] = {"steps": 100, "learning_rate": 3e-3}  # of networks that begin near what is wanted
_FROM_SCRATCH: Mapping[str, Any] = {"steps": 200, "learning_rate": 1e-2}
_TRUNK_STEPS = 1000
_TRUNK_IMAGES = 64, 4096  # in a step: 64 for each task, but no more than 4,096; with 512 it is a weaker rival
_KEPT_LIKELIEST = 20  # seen networks whose weights are averaged by their likelihood


@dataclass(frozen=True, eq=False)
class Fits:
    """What each way makes of the same examples: method -> networks [U,P]; and ensembles [U,s,P] of two of them."""

    single: dict[str, Tensor]
    ensembles: dict[str, Tensor]


def draw_examples(networks: TaskNetworks, condition_UD: Tensor, num_labels: int, *, seed: int) -> Examples:
    """So many training images of each task with their labels, drawn anew until there are two classes among them."""
    split, inputs, labels = networks.task.train, [], []
    for row, condition_D in enumerate(condition_UD):
        generator = generator_of(seed, "examples", num_labels, row)
        for _ in range(1000):
            index_n = torch.randperm(len(split), generator=generator)[:num_labels]
            images_1nX, labels_1n = networks.task.inputs(split, index_n)[None], split.labels_N[index_n][None]
            images_1nX, labels_1n = networks.family.view(images_1nX, labels_1n, condition_D[None])
            if len(labels_1n.unique()) > 1:
                break
        inputs.append(images_1nX)
        labels.append(labels_1n)
    return Examples(torch.cat(inputs), torch.cat(labels))


def fit_each(
    pipe: PDiffPipeline, examples: Examples, num_models: int, *, seed: int, trust_remote_code: bool = False
) -> Tensor:
    """Networks [U,s,P] that `pipe.fit` makes of each task's examples; it is told nothing of the condition."""
    made_UsP = room(len(examples.labels_Nn), num_models, pipe.autoencoder.layout.num_params)
    for row, (inputs_nX, labels_n) in enumerate(zip(examples.inputs_NnX, examples.labels_Nn, strict=True)):
        out = pipe.fit(
            inputs_nX,
            labels_n,
            num_models,
            generator=generator_of(seed, "fit", row),
            trust_remote_code=trust_remote_code,
        )
        assert out.params is not None
        made_UsP[row] = out.params
    return made_UsP


def other_ways(
    networks: TaskNetworks, seen: SeenTasks, start_P: Tensor, examples: Examples, num_models: int, *, seed: int
) -> Fits:
    """Networks that know the checkpoints and the examples, at the cost of one network, and one ensemble."""
    num_tasks = len(examples.labels_Nn)
    mean_UP = seen.mean_TP.mean(dim=0).expand(num_tasks, -1)
    likelihood_UT = _likelihoods(networks, seen.mean_TP, examples)
    likeliest_UP = seen.mean_TP[likelihood_UT.argmax(dim=1)]
    weight_Uk, rows_Uk = likelihood_UT.topk(min(_KEPT_LIKELIEST, len(seen.mean_TP)))
    averaged_UP = torch.stack(
        [weight_k.softmax(dim=0) @ seen.mean_TP[rows_k] for weight_k, rows_k in zip(weight_Uk, rows_Uk, strict=True)]
    )
    single = {
        "scratch": networks.fitted(start_P.expand(num_tasks, -1), examples, **_FROM_SCRATCH),
        "mean_tuned": networks.fitted(mean_UP, examples, **_TUNED),
        "likeliest": likeliest_UP,
        "likeliest_tuned": networks.fitted(likeliest_UP, examples, **_TUNED),
        "likelihood_average": averaged_UP,
        "probe": probe(networks, mean_UP[0], examples),
    }
    # Members differ as draws do: each begins at a seen task's network, drawn at random.
    generator = generator_of(seed, "ensemble of fine-tunes")
    drawn = [torch.randint(len(seen.mean_TP), (num_tasks,), generator=generator) for _ in range(num_models - 1)]
    members_UsP = room(num_tasks, num_models, seen.mean_TP.shape[1])
    members_UsP[:, 0] = single["mean_tuned"]
    for member, rows_U in enumerate(drawn, 1):
        members_UsP[:, member] = networks.fitted(seen.mean_TP[rows_U], examples, **_TUNED)
    return Fits(single, {"mean_tuned": members_UsP})


def random_subspace(pipe: PDiffPipeline, examples: Examples, *, seed: int, trust_remote_code: bool = False) -> Tensor:
    """The same fit in as many random directions of the same lengths, [U,P]: what knowing the directions is worth."""
    other = copy.copy(pipe)
    other.autoencoder = copy.deepcopy(pipe.autoencoder)
    generator = generator_of(seed, "random directions")
    for part_NS in other.autoencoder.components:
        random_NS = torch.randn(part_NS.shape, generator=generator)
        part_NS.data.copy_(random_NS * (part_NS.norm(dim=1) / random_NS.norm(dim=1))[:, None])
    return fit_each(other, examples, 1, seed=seed, trust_remote_code=trust_remote_code)[:, 0]


def multi_task_trunk(networks: TaskNetworks, seen: SeenTasks, network: nn.Module, *, seed: int) -> Tensor | None:
    """A network [P] whose layers but the last were trained on all data of all seen tasks, each with its own last layer.

    It needs the images and labels of every seen task, which those who share checkpoints do not have to give.
    network: untrained; it is trained in place. None, and a warning, for one that cannot be trained so.
    """
    try:
        train_trunk(
            network.to(networks.device),
            networks.family,
            seen.condition_TD,
            networks.task,
            _TRUNK_STEPS,
            images=min(_TRUNK_IMAGES[0] * len(seen.condition_TD), _TRUNK_IMAGES[1]),
            learning_rate=_FROM_SCRATCH["learning_rate"],
            seed=seed,
            progress=False,
        )
    except PdiffError as error:
        logger.warning("the multi-task trunk is left out of the tables: %s", error)
        return None
    return networks.layout.flatten(network.cpu().state_dict())


def probe(networks: TaskNetworks, trunk_P: Tensor, examples: Examples) -> Tensor:
    """The network with a last layer trained on the examples of each task, and the rest as it is; [U,P]."""
    trunk_UP = trunk_P.expand(len(examples.labels_Nn), -1)
    return networks.fitted(trunk_UP, examples, **_FROM_SCRATCH, trained_P=numbers_of_last_layer(networks))


def stacking(networks: TaskNetworks, seen: SeenTasks, examples: Examples, test: Examples) -> Tensor:
    """Accuracy [U] of a logistic regression on the answers of a network of each seen task: T times the cost at use."""
    known_UnF, test_UmF = (_all_answers(networks, seen.mean_TP, each) for each in (examples, test))
    return _logistic(known_UnF, test_UmF, examples, test)


def on_inputs(examples: Examples, test: Examples) -> Tensor:
    """Accuracy [U] of a logistic regression on the inputs themselves."""
    return _logistic(examples.inputs_NnX.flatten(2), test.inputs_NnX.flatten(2), examples, test)


def numbers_of_last_layer(networks: TaskNetworks) -> Tensor:
    """Which of the P numbers are those of the last layer, its weights and its bias; bool [P]."""
    split = networks.task.train
    names = last_layer(networks.network, networks.task.inputs(split, slice(0, 2)).to(networks.device))
    last_P = torch.zeros(networks.layout.num_params, dtype=torch.bool)
    for entry in networks.layout.entries:
        if entry.name in names:
            last_P[entry.start : entry.stop] = True
    return last_P


def _likelihoods(networks: TaskNetworks, params_TP: Tensor, examples: Examples) -> Tensor:
    """Log-likelihood [U,T] of each task's examples under each of these networks."""
    rows = []
    for inputs_nX, labels_n in zip(examples.inputs_NnX, examples.labels_Nn, strict=True):
        same = Examples(inputs_nX.expand(len(params_TP), *inputs_nX.shape), labels_n.expand(len(params_TP), -1))
        rows.append(networks.log_likelihood(params_TP, same))
    return torch.stack(rows)


def _all_answers(networks: TaskNetworks, params_TP: Tensor, examples: Examples) -> Tensor:
    """Log probabilities [U,n,T c] of all these networks for each task's examples."""
    rows = []
    for inputs_nX in examples.inputs_NnX:
        log_Tnc = networks.log_probabilities(params_TP, inputs_nX.expand(len(params_TP), *inputs_nX.shape))
        rows.append(log_Tnc.transpose(0, 1).flatten(1))
    return torch.stack(rows)


def _logistic(known_UnF: Tensor, test_UmF: Tensor, examples: Examples, test: Examples) -> Tensor:
    """Accuracy [U] on test of a logistic regression per task, with scikit-learn's own regularisation."""
    from sklearn.linear_model import LogisticRegression

    scores = []
    for known_nF, labels_n, test_mF, labels_m in zip(
        known_UnF.numpy(), examples.labels_Nn.numpy(), test_UmF.numpy(), test.labels_Nn.numpy(), strict=True
    ):
        fitted = LogisticRegression(max_iter=1000).fit(known_nF, labels_n)
        scores.append(float((fitted.predict(test_mF) == labels_m).mean()))
    return torch.tensor(scores, dtype=torch.float64)
