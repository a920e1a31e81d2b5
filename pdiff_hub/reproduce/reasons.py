"""Why an ordering of the paper may not hold here: a sentence out of what was measured, for readers of "NOT held"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pdiff_hub.records import AccuracySummary, Measurements
from pdiff_hub.reproduce.results import percent

Generated = Mapping[str, AccuracySummary]
"""Accuracies of generated networks, by what the rows of a table are called."""


def luck_of_the_best(generated: Generated) -> str:
    """Best networks differ, or lie below others."""
    return (
        "Best means best on validation, so on test it is partly luck: networks of one row differ by "
        f"{_range([row.std for row in generated.values()])} points (standard deviation)."
    )


def means_alike(generated: Generated) -> str:
    """Means are not in the expected order."""
    means = [row.mean for row in generated.values()]
    apart, most = max(means) - min(means), max(row.std for row in generated.values())
    known = f"All means lie within {percent(apart)} points, and networks of one row differ by up to {percent(most)}"
    if apart <= most:
        return f"{known} (standard deviation): too little to see an order."
    return f"{known} (standard deviation): the order here is another."


def one_checkpoint(one: Measurements, many: Measurements, number: int) -> str:
    """K = 1 is better than a large K."""
    alone, together = (percent(each.accuracy["original"].mean) for each in (one, many))
    return (
        f"K = 1 repeats one checkpoint under noise, which has {alone} %; those of K = {number} have {together} % on "
        "average, and generated networks are about as good as what they were made from."
    )


def not_averaged(runs: Sequence[tuple[str, Measurements]]) -> str:
    """The generated mean is below the originals', or generated networks are no more alike than originals."""
    spreads = {name: measured.audit.spread_ratio for name, measured in runs if measured.audit is not None}
    known = ", ".join(f"{name} {spread:.2f}" for name, spread in spreads.items() if spread is not None)
    return (
        "A higher mean and networks that are more alike are what drawing near to the average of the checkpoints gives. "
        f"The spread of generated networks over that of originals is {known or 'not known'}: near 1 they are no nearer "
        "to the average than the originals are."
    )


def other_copies(similarity: Mapping[int, float]) -> str:
    """K = 1 is not the most similar, or not similar enough. similarity: mean highest IoU of errors, by K."""
    if similarity[1] < 0.95:
        return "Input noise of sigma 0.001 on every number is enough to change answers of networks this small."
    return (
        "Where fine-tuning hardly changes answers, many checkpoints make the same errors, and with more of them a "
        "generated network finds its own errors in one of them more often."
    )


def two_decide_a_range(num_networks: int) -> str:
    """Ranges of similarity do not widen with K."""
    return (
        f"Two networks of {num_networks} make a range, the most and the least similar; and every further checkpoint is "
        "one more to be similar to, which narrows it again."
    )


def like_their_originals(originals: Mapping[str, float]) -> str:
    """Means of generated networks are not in the order of the paper. originals: means of theirs, by row."""
    known = ", ".join(f"{name} {percent(mean)}" for name, mean in originals.items())
    return f"Generated networks are about as good as those they were made from, whose means are {known} %."


def decoder_of_the_mean(deviation_r2: Mapping[str, float | None]) -> str:
    """Noises do not differ as in the paper."""
    known = ", ".join(f"{name} {'undefined' if r2 is None else f'{r2:.2f}'}" for name, r2 in deviation_r2.items())
    return (
        f"Deviation R2 is {known}: where it is at or below 0, the decoder answers with about the mean network whatever "
        "the latent, and accuracies do not tell the noises apart."
    )


def _range(fractions: Sequence[float]) -> str:
    low, high = percent(min(fractions)), percent(max(fractions))
    return low if low == high else f"{low} to {high}"
