"""What came of requests, as results and as pictures. Shapes: U held-out tasks, H held-out networks, K others."""

from __future__ import annotations

import torch
from torch import Tensor

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.checkpoints.rows import Rows, as_rows
from pdiff_hub.evaluation.copies import count_copies, nearest_two
from pdiff_hub.evaluation.figures import fit_figure, requests_figure, training_figure
from pdiff_hub.records import LossCurve, Measurements, Requests, RunFolder
from pdiff_hub.travelling.param_autoencoder import ParamAutoencoder


def measured_requests(
    requests: Requests,
    generated_UP: Tensor,
    known: CheckpointDataset,
    unseen: CheckpointDataset,
    autoencoder: ParamAutoencoder,
    curve: LossCurve | None,
) -> Measurements:
    """The requests, and how many of the networks that were generated for them are copies of known ones.

    Fresh networks are those that were trained on the held-out tasks: what a perfect answer would be.
    """
    known_KN, fresh_UN, made_UN = (
        _latents(autoencoder, as_rows(each)) for each in (known.rows, unseen.rows, generated_UP)
    )
    own_K, _ = nearest_two(known_KN, known_KN, leave_one_out=True)
    fresh_U, _ = nearest_two(fresh_UN, known_KN)
    made_U, _ = nearest_two(made_UN, known_KN)
    return Measurements(
        num_checkpoints=len(known) + len(unseen),
        num_generated=len(generated_UP),
        copies=count_copies(made_U, fresh_U, own_K),
        training=curve,
        requests=requests,
    )


def draw_requests(measured: Measurements, folder: RunFolder) -> None:
    """The pictures of `measured.requests`, and of training."""
    requests = measured.requests
    assert requests is not None
    requests_figure(requests, folder.path / "requests")
    if requests.fit is not None:
        fit_figure(requests.fit, folder.path / "fit")
    if measured.training is not None:
        training_figure(measured.training, folder.path / "training")


@torch.no_grad()
def _latents(autoencoder: ParamAutoencoder, rows: Rows) -> Tensor:
    latent_BCL = autoencoder.encode_slices(lambda start, stop: rows.read(0, rows.num_rows, start, stop))
    return latent_BCL.flatten(1).cpu()
