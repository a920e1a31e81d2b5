"""The card (README.md) of a data set on the Hub, rendered from its dataset.json: nothing in it is typed by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pdiff_hub.checkpoints.files import viewer_configs
from pdiff_hub.safe_files import flattened
from pdiff_hub.transfer.cards import markdown_table, render_card

_MOST_TENSORS = 40
_MOST_CHARACTERS = 200  # of one value in a table
_SIZES = (("n<1K", 10**3), ("1K<n<10K", 10**4), ("10K<n<100K", 10**5), ("100K<n<1M", 10**6))

_TEMPLATE = Path(__file__).with_name("card_template.md")


def render_dataset_card(index: Mapping[str, Any], repo_id: str, unseen: Mapping[str, Any] | None = None) -> str:
    """The card of the set that `index` (a checked dataset.json) describes, for the Hub's repository `repo_id`.

    unseen: the index of the held-out set that travels with it.
    """
    from huggingface_hub import DatasetCardData

    data = DatasetCardData(
        license="apache-2.0",
        tags=["neural-network-diffusion", "weight-space", "weight-generation", "pdiff-hub"],
        pretty_name=repo_id.split("/")[-1],
        size_categories=[_size_category(index["num_checkpoints"])],
        configs=viewer_configs(held_out=unseen is not None),
    )
    return render_card(
        _TEMPLATE,
        data,
        name=repo_id.split("/")[-1],
        repo_id=repo_id,
        index=index,
        num_checkpoints=f"{index['num_checkpoints']:,}",
        num_params=f"{index['num_params']:,}",
        total=_bytes(4 * index["num_checkpoints"] * index["num_params"]),
        collect=_settings(index["collect"]),
        network=_settings({"network": index["network"], "task": index["task"]}),
        layout=_layout(index["layout"]["entries"]),
        statistics=_statistics(index["data"]),
        files=_files(index),
        unseen=unseen,
    )


def _size_category(rows: int) -> str:
    return next((name for name, limit in _SIZES if rows < limit), "n>1M")


def _settings(settings: Mapping[str, Any]) -> str:
    return markdown_table(("setting", "value"), ((f"`{name}`", _text(value)) for name, value in flattened(settings)))


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}…"


def _layout(entries: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (
            f"`{each['name']}`",
            " x ".join(map(str, each["shape"])) or "1",
            each["dtype"],
            f"{each['stop'] - each['start']:,}",
        )
        for each in entries[:_MOST_TENSORS]
    ]
    table = markdown_table(("tensor", "shape", "type", "numbers"), rows)
    rest = entries[_MOST_TENSORS:]
    if not rest:
        return table
    return f"{table}\n\nand {len(rest)} more tensors with {sum(e['stop'] - e['start'] for e in rest):,} numbers."


def _statistics(data: Sequence[Mapping[str, Any]]) -> str:
    """The statistics of the whole set, from those of its files."""
    names = dict.fromkeys(name for entry in data for name in entry["statistics"])
    rows = []
    for name in names:
        parts = [entry["statistics"][name] for entry in data if name in entry["statistics"]]
        count = sum(part["count"] for part in parts)
        mean = sum(part["mean"] * (part["count"] / count) for part in parts)
        extremes = mean, min(part["min"] for part in parts), max(part["max"] for part in parts)
        rows.append((f"`{name}`", str(count), *(f"{value:.6g}" for value in extremes)))
    return (
        markdown_table(("column", "known", "mean", "min", "max"), rows)
        if rows
        else "No losses or accuracies are known."
    )


def _files(index: Mapping[str, Any]) -> str:
    parts = {"data/": index["data"], "shards/": index["shards"], "frozen": [index["frozen"]] if index["frozen"] else []}
    holds = {
        "data/": "metadata" if index["shards"] else "metadata and parameters",
        "shards/": "parameters",
        "frozen": "tensors that all checkpoints share",
    }
    return markdown_table(
        ("where", "files", "size", "holds"),
        (
            (f"`{where}`", str(len(entries)), _bytes(sum(entry["bytes"] for entry in entries)), holds[where])
            for where, entries in parts.items()
            if entries
        ),
    )


def _bytes(number: int) -> str:
    size, units = float(number), ["bytes", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.3g} {units[0]}"
