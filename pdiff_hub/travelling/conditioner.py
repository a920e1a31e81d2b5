"""`ConditionSpec`, what the networks of a pipeline can be asked for, and `Conditioner`, what it says of their latents.

This file travels to the Hub beside the weights, so it imports only the standard library, torch and diffusers.
Shapes: N networks, K networks to learn from, M known conditions, D numbers of a condition, E = D + 1 channels for it,
C latent channels, L latent length.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor


class ConditionError(ValueError):
    """A condition is wrong, or none; the message is a sentence that says what to do."""


_LARGEST = 1e37  # float32 holds it, and twice as much
_KINDS = ("bits", "class", "scalar", "vector", "text")


@dataclass(frozen=True)
class ConditionSpec:
    """What the networks of a set, or of a pipeline, can be asked for.

    Attributes:
        name: what a request calls it: `condition={name: value}`.
        kind: "bits" (a subset of `names`), "class" (one of `names`), "scalar", "vector", or "text" (the vector that
            an encoder gives for a text).
        size: D, how many numbers a condition has.
        names: of the bits, the classes or the numbers of a vector; empty if they have none. For "text", the encoder's.
        low: the least that was seen, of a scalar or of each number of a vector.
        high: the largest.
        period: of a scalar that comes round again, as 360 for an angle in degrees. It is given as sine and cosine, so
            that D = 2.
    """

    name: str
    kind: str
    size: int
    names: tuple[str, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    period: float | None = None

    def __post_init__(self) -> None:
        asked = {"scalar": 1, "vector": self.size}.get(self.kind, 0)
        named = {"bits": (self.size,), "class": (self.size,), "scalar": (0,), "vector": (0, self.size), "text": (1,)}
        numbers = (*self.low, *self.high, 1.0 if self.period is None else self.period)
        if (
            not (isinstance(self.name, str) and self.name and self.kind in _KINDS and type(self.size) is int)
            or self.size < 1
            or (self.kind == "scalar" and self.size != (1 if self.period is None else 2))
            or len(self.names) not in named[self.kind]
            or not all(isinstance(each, str) for each in self.names)
            or len(set(self.names)) != len(self.names)
            or not len(self.low) == len(self.high) == asked
            or not all(isinstance(each, (int, float)) and abs(each) < _LARGEST for each in numbers)
            or not all(low <= high for low, high in zip(self.low, self.high, strict=True))
            or (self.period is not None and (self.kind != "scalar" or self.period <= 0))
        ):
            raise ConditionError(f"{self} describes no condition: its parts do not fit together.")

    def to_dict(self) -> dict[str, Any]:
        """As `from_dict` reads it; JSON-able."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ConditionSpec:
        """Raises ValueError for what `to_dict` did not write."""
        known = {each.name for each in fields(cls)}
        if not isinstance(data, Mapping) or not {"name", "kind", "size"} <= data.keys() <= known:
            raise ConditionError(f"{data!r} describes no condition: expected {', '.join(sorted(known))}.")
        options: dict[str, Any] = {k: tuple(each) if isinstance(each, list) else each for k, each in data.items()}
        try:
            return cls(**options)
        except TypeError as error:  # a value that is no text, number or list
            raise ConditionError(f"{data!r} describes no condition: {error}.") from error

    def encode(self, value: Any) -> Tensor:
        """What one network is asked for -> float32 [D]. A text as on a command line is read too: "0,3,7".

        value: of "bits" the names, or the numbers from 0, of those that are set; of "class" one of them; of "scalar" a
        number; of "vector" D numbers; of "text" the D numbers that the encoder gave.
        """
        if hasattr(value, "tolist"):  # a tensor or an array
            value = value.tolist()
        if self.kind in ("bits", "class"):
            several = self.kind == "bits"
            if isinstance(value, str):
                value = [each.strip() for each in value.split(",") if each.strip()] if several else [value]
            chosen = value if isinstance(value, (list, tuple, set, frozenset, range)) else [value]
            picked = [self._index(each) for each in chosen]
            if not several and len(picked) != 1:
                raise ConditionError(f"condition {self.name!r} is {value!r}, expected one of {', '.join(self.names)}.")
            return torch.zeros(self.size).index_fill_(0, torch.tensor(picked, dtype=torch.int64), 1.0)
        values = value if isinstance(value, (list, tuple)) else [value]
        if isinstance(value, str) and self.kind != "text":
            values = value.split(",")
        try:
            numbers = torch.tensor([float(each) for each in values], dtype=torch.float64)
        except (TypeError, ValueError):
            numbers = torch.tensor([math.nan])
        asked = 1 if self.kind == "scalar" else self.size
        if len(numbers) != asked or not bool(numbers.isfinite().all()):
            how = f" that {self.names[0]} gives for the text" if self.kind == "text" else ""
            raise ConditionError(f"condition {self.name!r} is {value!r}, expected {asked} finite number(s){how}.")
        if self.period is not None:
            angle = numbers * (2 * math.pi / self.period)
            numbers = torch.cat([angle.sin(), angle.cos()])
        return numbers.float()

    def example(self) -> dict[str, Any]:
        """Something that can be asked for, as a pipeline takes it."""
        values = {"bits": list(self.names[:2]), "class": self.names[:1] and self.names[0], "vector": list(self.low)}
        return {self.name: values.get(self.kind, self.low[0] if self.low else [0.0] * self.size)}

    def _index(self, value: Any) -> int:
        if str(value) in self.names:
            return self.names.index(str(value))
        if type(value) is int and 0 <= value < self.size:  # True is no class: a list of booleans is a mask
            return value
        (near,) = difflib.get_close_matches(str(value), self.names, n=1, cutoff=0.0)
        raise ConditionError(
            f"unknown {self.name}: {value!r}; the nearest known one is {near!r} ({', '.join(self.names)})."
        )

    def values(self, conditions_ND: Tensor) -> Tensor:
        """The numbers [N] that scalar conditions [N,D] stand for; of those with a period, the ones from `low` on."""
        if self.period is None:
            return conditions_ND[:, 0]
        value_N = torch.atan2(conditions_ND[:, 0], conditions_ND[:, 1]) * (self.period / (2 * math.pi))
        slack = 1e-4 * self.period
        return self.low[0] + torch.remainder(value_N - self.low[0] + slack, self.period) - slack

    def outside(self, conditions_ND: Tensor) -> str:
        """A sentence if a request lies outside what was seen; empty if it does not."""
        if self.kind in ("bits", "class"):
            odd_ND = (conditions_ND != 0) & (conditions_ND != 1)
            if bool(odd_ND.any()):
                row, column = odd_ND.nonzero()[0].tolist()
                found = float(conditions_ND[row, column])
                return (
                    f"condition {self.name!r} ({self.names[column]}) is {found:.6g}, and the generator has seen 0 and "
                    "1 only: what it makes there is a guess."
                )
        values_NA = self.values(conditions_ND)[:, None] if self.period is not None else conditions_ND
        for index, (low, high) in enumerate(zip(self.low, self.high, strict=True)):
            slack = 1e-4 * (high - low) + 1e-6
            for value in values_NA[:, index].tolist():
                if value < low - slack or value > high + slack:
                    which = f" ({self.names[index]})" if self.names else ""
                    return (
                        f"condition {self.name!r}{which} is {value:.6g}, outside what the generator has seen "
                        f"({low:.6g} to {high:.6g}): what it makes there is a guess."
                    )
        return ""

    def channels(self, conditions_ND: Tensor) -> Tensor:
        """Conditions [N,D] as the U-Net gets them, [N,E]: numbers of about -1 to 1, and whether there is a condition.

        A row of NaN is no condition: all its channels are 0.
        """
        scaled_ND = conditions_ND
        if self.kind == "bits":
            scaled_ND = 2 * conditions_ND - 1
        elif self.low and self.period is None:
            low, high = conditions_ND.new_tensor(self.low), conditions_ND.new_tensor(self.high)
            scaled_ND = (conditions_ND - (low + high) / 2) / torch.where(high > low, (high - low) / 2, 1.0)
        channels_NE = torch.cat([scaled_ND, torch.ones_like(scaled_ND[:, :1])], dim=1)
        return torch.where(channels_NE.isnan().any(dim=1, keepdim=True), 0.0, channels_NE)


_MOST_KNOWN = 1024  # conditions that the regression keeps: its time grows with their cube
_SHARES = tuple(10.0 ** (power / 2) for power in range(-8, 7))  # of a network's own variance in that of conditions
_LEAST_STD = 0.01  # of scaled latents


class Conditioner(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """The normal distribution of the latents that a condition asks for. The U-Net learns what is different from it.

    Its mean is a Gaussian process regression from conditions to scaled latents (Rasmussen & Williams 2006, ch. 2; a
    linear and a squared-exponential kernel), and its standard deviations are those of networks of one condition. With
    tens of tasks, a U-Net alone learns the way from conditions to networks worse than this regression does
    (docs/measurements.md, "Asking"). No condition: N(0, I), which scaled latents are.

    Args:
        condition: `ConditionSpec.to_dict()`.
        latent_channels, latent_length: C and L.
        num_known: M.
        squared_length: of the kernel exp(-|a - b|^2 / squared_length), in the units of the U-Net's channels; above 0.

    ValueError for a squared length out of range.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(
        self,
        condition: Mapping[str, Any],
        latent_channels: int,
        latent_length: int,
        num_known: int = 1,
        squared_length: float = 1.0,
    ):
        super().__init__()
        if not isinstance(squared_length, (int, float)) or not 0 < squared_length < math.inf:
            raise ConditionError(f"squared_length is {squared_length!r}, expected a finite number above 0.")
        self.spec = ConditionSpec.from_dict(condition)
        self.known_MD: Tensor
        self.weight_MCL: Tensor
        self.std_CL: Tensor
        self.register_buffer("known_MD", torch.zeros(num_known, self.spec.size))
        self.register_buffer("weight_MCL", torch.zeros(num_known, latent_channels, latent_length))
        self.register_buffer("std_CL", torch.ones(latent_channels, latent_length))

    @classmethod
    @torch.no_grad()
    def fit(cls, spec: ConditionSpec, conditions_KD: Tensor, latent_KCL: Tensor) -> Conditioner:
        """Learns from networks with these conditions (NaN: none) and scaled latents, in closed form.

        The kernel's squared length is the mean squared distance between conditions (as the median heuristic, arXiv
        1707.07269). How much of each latent is a network's own is seen directly where conditions recur; elsewhere it is
        what is most likely (Rasmussen & Williams, eq. 5.8). Of more than 1,024 different conditions so many are taken,
        evenly.
        """
        there_K = ~conditions_KD.isnan().any(dim=1)
        latent_KN = latent_KCL.flatten(1)[there_K].double()
        known_MD, row_K = torch.unique(conditions_KD[there_K], dim=0, return_inverse=True)
        if len(known_MD) == 0:
            raise ConditionError(f"no network has a condition {spec.name!r}, expected at least one that has.")
        count_M = torch.bincount(row_K, minlength=len(known_MD)).double()
        mean_MN = torch.zeros(len(known_MD), latent_KN.shape[1], dtype=torch.float64)
        mean_MN = mean_MN.index_add(0, row_K, latent_KN) / count_M[:, None]
        again = len(latent_KN) - len(known_MD)
        own_N = (latent_KN - mean_MN[row_K]).square().sum(dim=0) / again if again else None
        if len(known_MD) > _MOST_KNOWN:
            picked = torch.linspace(0, len(known_MD) - 1, _MOST_KNOWN).round().long()
            known_MD, mean_MN, count_M = known_MD[picked], mean_MN[picked], count_M[picked]
        channels_MD = spec.channels(known_MD)[:, :-1].double()
        squared_length = float(torch.cdist(channels_MD, channels_MD).square().mean()) or 1.0
        weight_MN, own_N = _regression(_kernel(channels_MD, channels_MD, squared_length), mean_MN, own_N, count_M)
        shape = latent_KCL.shape[1:]
        fitted = cls(spec.to_dict(), *shape, num_known=len(known_MD), squared_length=squared_length)
        fitted.known_MD.copy_(known_MD)
        fitted.weight_MCL.copy_(weight_MN.view(-1, *shape))
        fitted.std_CL.copy_(own_N.sqrt().clamp(_LEAST_STD, 1.0).view(shape))
        return fitted

    def gaussian(self, channels_NE: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [N,C,L] of the latents for `ConditionSpec.channels`; float32 at any dtype."""
        known_MD = self.spec.channels(self.known_MD.float())[:, :-1]
        channels_NE = channels_NE.to(known_MD)
        likeness_NM = _kernel(channels_NE[:, :-1], known_MD, self.config.squared_length)
        asked_N11 = channels_NE[:, -1:, None]
        mean_NCL = torch.einsum("nm,mcl->ncl", likeness_NM, self.weight_MCL.float())
        return asked_N11 * mean_NCL, 1 + asked_N11 * (self.std_CL.float() - 1)

    @staticmethod
    def prediction(noisy_NCL: Tensor, alpha: Tensor, mean_NCL: Tensor, std_NCL: Tensor, kind: str) -> Tensor:
        """What a denoiser that expects N(0, I) has to add, to expect N(mean, std^2); 0 for N(0, I).

        alpha: the scheduler's cumulative product, one for each network as [N,1,1]. kind: "v_prediction", the velocity
        sqrt(alpha) noise - sqrt(1 - alpha) clean, or "epsilon", the noise.
        """
        root = alpha.sqrt()
        gain = root * std_NCL.square() / (alpha * std_NCL.square() + 1 - alpha)
        clean_NCL = mean_NCL + gain * (noisy_NCL - root * mean_NCL)
        velocity_NCL = (root * noisy_NCL - clean_NCL) / (1 - alpha).sqrt()
        return velocity_NCL if kind == "v_prediction" else root * velocity_NCL


def _kernel(one_ND: Tensor, other_MD: Tensor, squared_length: float) -> Tensor:
    """How alike conditions are, [N,M]: a linear part, which carries a trend on, and a local one."""
    linear_NM = (one_ND @ other_MD.T + 1) / one_ND.shape[1]
    return linear_NM + (-torch.cdist(one_ND, other_MD).square() / squared_length).exp()


def _regression(kernel_MM: Tensor, mean_MN: Tensor, own_N: Tensor | None, count_M: Tensor) -> tuple[Tensor, Tensor]:
    """The weights [M,N] of the known conditions, and the variance [N] of a network's own.

    mean_MN: of count_M networks each. own_N: None if it has to be told from what conditions explain.
    """
    values_M, vectors_MM = torch.linalg.eigh(kernel_MM)
    values_M, turned_MN = values_M.clamp_min(0), vectors_MM.T @ mean_MN
    if own_N is None:
        total_RM = values_M + torch.tensor(_SHARES, dtype=values_M.dtype)[:, None]
        explained_RN = (1 / total_RM @ turned_MN.square()).clamp_min(1e-12) / len(mean_MN)
        loss_RN = len(mean_MN) * explained_RN.log() + total_RM.log().sum(dim=1, keepdim=True)
        best_N = loss_RN.argmin(dim=0)
        share_N = torch.tensor(_SHARES, dtype=values_M.dtype)[best_N]
        own_N = explained_RN[best_N, torch.arange(len(best_N))] * share_N
    else:
        noise_N = own_N / count_M.mean()
        explained_N = (mean_MN.square().mean(dim=0) - noise_N) / kernel_MM.diagonal().mean()
        share_N = (noise_N / explained_N.clamp_min(1e-6)).clamp(_SHARES[0], _SHARES[-1])
    return vectors_MM @ (turned_MN / (values_M[:, None] + share_N)), own_N
