"""The card (README.md) of a data set on the Hub, rendered from its dataset.json: nothing in it is typed by hand."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_MOST_TENSORS = 40
_MOST_CHARACTERS = 200  # of one value in a table
_SIZES = (("n<1K", 10**3), ("1K<n<10K", 10**4), ("10K<n<100K", 10**5), ("100K<n<1M", 10**6))

_TEMPLATE = """# {name}

{num_checkpoints:,} checkpoints of one network, {num_params:,} numbers each ({total} of parameters), collected
with pdiff-hub to train generators of weights on ([Neural Network Diffusion](https://arxiv.org/abs/2402.13144)).

```python
from pdiff_hub import CheckpointDataset
dataset = CheckpointDataset.from_pretrained("{repo_id}")  # rows=[0, 5, 7] downloads those alone
state_dict = dataset.state_dict(0)  # loads with strict=True
params_KP = dataset.params_KP  # float32 [{num_checkpoints}, {num_params}]
```

Without pdiff-hub:

```python
{snippet}
```

## How they were collected

{collect}

## Network and data

{network}

## What the numbers are

Row by row, the tensors of `state_dict()` flattened one after another (`select: {select}`).{frozen}

{layout}

## Statistics

{statistics}

## Files

{files}

`dataset.json` has all of this for programs; `index` counts the checkpoints from 0.
"""

_SMALL = """import torch
from datasets import load_dataset
rows = load_dataset("{repo_id}", split="train").with_format("numpy")
params_P = torch.from_numpy(rows[0]["params"])  # float32 [{num_params}]"""

_LARGE = """from datasets import load_dataset
from huggingface_hub import hf_hub_download
from safetensors import safe_open
row = load_dataset("{repo_id}", split="train")[0]  # the metadata, and where the parameters are
file = safe_open(hf_hub_download("{repo_id}", row["shard"], repo_type="dataset"), framework="pt")
params_P = file.get_slice("params")[row["shard_row"]]  # float32 [{num_params}]"""


def render_dataset_card(index: Mapping[str, Any], repo_id: str) -> str:
    """The card of the set that `index` (a checked dataset.json) describes, for the Hub's repository `repo_id`."""
    from huggingface_hub import DatasetCardData

    data = DatasetCardData(
        license="apache-2.0",
        tags=["neural-network-diffusion", "weight-space", "weight-generation", "pdiff-hub"],
        pretty_name=repo_id.split("/")[-1],
        size_categories=[_size_category(index["num_checkpoints"])],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}],
    )
    numbers = {"num_checkpoints": index["num_checkpoints"], "num_params": index["num_params"], "repo_id": repo_id}
    layout = index["layout"]
    frozen = ""
    if index["frozen"]:
        frozen = (
            f" The rest is the same in all checkpoints (tensors: {len(layout['frozen'])}) and lies once in\n"
            f"`{index['frozen']['path']}`."
        )
    text = _TEMPLATE.format(
        name=repo_id.split("/")[-1],
        snippet=(_LARGE if index["shards"] else _SMALL).format(**numbers),
        total=_bytes(4 * index["num_checkpoints"] * index["num_params"]),
        collect=_settings(index["collect"]),
        network=_settings({"network": index["network"], "task": index["task"]}),
        select=layout["select"],
        frozen=frozen,
        layout=_layout(layout["entries"]),
        statistics=_statistics(index["data"]),
        files=_files(index),
        **numbers,
    )
    return f"---\n{data.to_yaml()}\n---\n\n{text}"


def _size_category(rows: int) -> str:
    return next((name for name, limit in _SIZES if rows < limit), "n>1M")


def _settings(settings: Mapping[str, Any]) -> str:
    return _table(("setting", "value"), ((f"`{name}`", _text(value)) for name, value in _flattened(settings)))


def _flattened(settings: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """(dotted name, value), the dicts in `settings` taken apart."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


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
    table = _table(("tensor", "shape", "type", "numbers"), rows)
    rest = entries[_MOST_TENSORS:]
    if not rest:
        return table
    return f"{table}\n\nand {len(rest)} more tensors with {sum(e['stop'] - e['start'] for e in rest):,} numbers."


def _statistics(data: Sequence[Mapping[str, Any]]) -> str:
    """The files' statistics as those of the whole."""
    names = dict.fromkeys(name for entry in data for name in entry["statistics"])
    rows = []
    for name in names:
        parts = [entry["statistics"][name] for entry in data if name in entry["statistics"]]
        count = sum(part["count"] for part in parts)
        mean = sum(part["mean"] * (part["count"] / count) for part in parts)
        extremes = mean, min(part["min"] for part in parts), max(part["max"] for part in parts)
        rows.append((f"`{name}`", str(count), *(f"{value:.6g}" for value in extremes)))
    return _table(("column", "known", "mean", "min", "max"), rows) if rows else "No losses or accuracies are known."


def _files(index: Mapping[str, Any]) -> str:
    parts = {"data/": index["data"], "shards/": index["shards"], "frozen": [index["frozen"]] if index["frozen"] else []}
    holds = {
        "data/": "metadata" if index["shards"] else "metadata and parameters",
        "shards/": "parameters",
        "frozen": "tensors that all checkpoints share",
    }
    return _table(
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


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; line breaks and bars in cells are taken out of its way."""
    cells = [[" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in [columns, ["---"] * len(columns), *cells])
