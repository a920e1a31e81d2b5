"""What came of requests, as results and as pictures. Shapes: U held-out tasks, K networks that the
generator was trained on, P parameters, N numbers of a latent.
"""

from __future__ import annotations

from torch import Tensor

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.checkpoints.rows import as_rows
from pdiff_hub.evaluation.copies import count_copies, nearest_two
from pdiff_hub.evaluation.figures import fit_figure, requests_figure, training_figure
from pdiff_hub.evaluation.measuring import latents_of
from pdiff_hub.evaluation.on_device import judging_device
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
    device = judging_device(autoencoder.device)
    known_KN, fresh_UN = (latents_of(autoencoder, each.rows).to(device) for each in (known, unseen))
    made_UN = latents_of(autoencoder, as_rows(generated_UP), decoded=True).to(device)
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
