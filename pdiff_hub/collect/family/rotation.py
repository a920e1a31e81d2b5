"""The family "rotation": the images are turned by an angle, which is the condition, in degrees.

Shapes: T seen tasks, U held-out ones, K networks, B batch, C channels, H, W pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pdiff_hub.collect.family.split import TaskSplit
from pdiff_hub.errors import require
from pdiff_hub.tasks import Task
from pdiff_hub.travelling.conditioner import ConditionSpec

_FULL = 360.0


class Rotation:
    """Images turned counter-clockwise about their middle; what comes in from outside is black.

    Args:
        low (below gap_low): the least seen angle, in degrees.
        high (above gap_high): the largest seen angle.
        gap_low (below gap_high): where the gap begins: held out, inside the seen range.
        gap_high (above gap_low): where the gap ends.
        beyond (above 0): held out, too: from `high` so many degrees on.

    Raises ValueError unless low < gap_low < gap_high < high, beyond > 0, and all of it is less than a full turn.
    """

    def __init__(
        self,
        task: Task,
        low: float = -60.0,
        high: float = 60.0,
        gap_low: float = 10.0,
        gap_high: float = 30.0,
        beyond: float = 20.0,
    ) -> None:
        ordered = low < gap_low < gap_high < high and beyond > 0 and high + beyond - low < _FULL
        found = f"low={low}, gap_low={gap_low}, gap_high={gap_high}, high={high}, beyond={beyond}"
        require(ordered, "collect.options", found, "low < gap_low < gap_high < high, and beyond above 0")
        self.num_classes = task.num_classes
        self._low, self._high, self._gap, self._beyond = low, high, (gap_low, gap_high), beyond
        self._black = [-mean / std for mean, std in zip(task.mean, task.std, strict=True)]

    def split(self, num_tasks: int, num_held_out: int, seed: int) -> TaskSplit:
        """Evenly spaced angles; half of the held-out ones lie in the gap, half beyond. Nothing is random."""
        (gap_low, gap_high), width = self._gap, self._gap[1] - self._gap[0]
        seen_T = torch.linspace(self._low, self._high - width, num_tasks, dtype=torch.float64)
        seen_T = torch.where(seen_T > gap_low, seen_T + width, seen_T)
        inside = (num_held_out + 1) // 2
        steps = torch.arange(1, inside + 1, dtype=torch.float64) / (inside + 1)
        further = torch.arange(1, num_held_out - inside + 1, dtype=torch.float64) / max(num_held_out - inside, 1)
        held_out_U = torch.cat([gap_low + width * steps, self._high + self._beyond * further])
        spec = ConditionSpec("angle", "scalar", 2, low=(self._low,), high=(self._high,), period=_FULL)
        return TaskSplit(
            spec,
            torch.stack([spec.encode(angle) for angle in seen_T.tolist()]),
            torch.stack([spec.encode(angle) for angle in held_out_U.tolist()]) if num_held_out else torch.empty(0, 2),
            tuple(f"angle {angle:.6g}" for angle in seen_T.tolist()),
            tuple(f"angle {angle:.6g}" for angle in held_out_U.tolist()),
            f"No angle between {gap_low:g} and {gap_high:g} degrees was seen, and none above {self._high:g}.",
        )

    def view(self, inputs_KBX: Tensor, labels_KB: Tensor, conditions_KD: Tensor) -> tuple[Tensor, Tensor]:
        """Turned images [K,B,C,H,W], bilinear; the same labels."""
        networks, batch = inputs_KBX.shape[:2]
        sine_K, cosine_K = conditions_KD.to(inputs_KBX).unbind(1)
        zero_K = torch.zeros_like(sine_K)
        # Pixels are fetched from where they come from, and rows count downwards.
        rows = [torch.stack([cosine_K, -sine_K, zero_K], dim=1), torch.stack([sine_K, cosine_K, zero_K], dim=1)]
        theta = torch.stack(rows, dim=1).repeat_interleave(batch, dim=0)
        flat = inputs_KBX.flatten(0, 1) - (black := inputs_KBX.new_tensor(self._black)[:, None, None])
        grid = F.affine_grid(theta, list(flat.shape), align_corners=False)
        turned = F.grid_sample(flat, grid, mode="bilinear", padding_mode="zeros", align_corners=False) + black
        return turned.view(networks, batch, *turned.shape[1:]), labels_KB
