"""Data sets on the Hub: plain `datasets` reads them, they can grow, parts can be read, and hostile ones are refused.

The tests use the loopback Hub and the unmodified client.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_sets import FORMS, assert_same, contents, dataset, use_small_files
from huggingface_hub import DatasetCard
from loopback_hub import Fault, LoopbackHub, Request
from no_waiting import without_pauses

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.checkpoints import dataset as checkpoints
from pdiff_hub.checkpoints.card import render_dataset_card
from pdiff_hub.checkpoints.index import read_index
from pdiff_hub.hub import push_folder

ID = "user/set"


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    use_small_files(request.param, monkeypatch)
    return str(request.param)


@pytest.fixture(autouse=True)
def quick(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    without_pauses(monkeypatch)


def opened(**options: Any) -> CheckpointDataset:
    return CheckpointDataset.from_pretrained(ID, **options)


def fetched(hub: LoopbackHub, since: int) -> set[str]:
    return {
        request.path.split("/resolve/")[1].split("/", 1)[1].split("?")[0]
        for request in hub.requests[since:]
        if "/resolve/" in request.path and request.method == "GET"
    }


def card(hub: LoopbackHub) -> str:
    return hub.files(ID, "dataset")["README.md"].decode()


def test_what_is_pushed_comes_back(hub: LoopbackHub, tmp_path: Path, form: str) -> None:
    original = dataset(7)
    assert (original.hub_id, original.hub_revision) == (None, None)
    url = original.push_to_hub(ID, private=True)
    head = hub.head(ID, "dataset")
    assert url.endswith(f"/datasets/{ID}/commit/{head}") and (original.hub_id, original.hub_revision) == (ID, head)
    back = opened()
    assert (back.hub_id, back.hub_revision) == (ID, head)
    assert_same(back, original)
    assert_same(opened(revision=head, local_files_only=True), original)
    # A folder that did not change is pushed as it is. Nothing in it is new, so no commit is made.
    back.save_pretrained(tmp_path / "folder")
    before = len(hub.requests)
    folder = CheckpointDataset.from_pretrained(tmp_path / "folder")
    for push in (
        lambda: back.push_to_hub(ID),
        lambda: folder.push_to_hub(ID),
        lambda: push_folder(tmp_path / "folder", ID),
        lambda: opened().push_to_hub(ID),
    ):
        assert push().endswith(head)
    assert not any("/commit/" in request.path or request.method == "PUT" for request in hub.requests[before:])


def test_an_unchanged_folder_is_not_written_again(
    hub: LoopbackHub, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset(5).save_pretrained(tmp_path)
    unchanged, changed, loaded = (CheckpointDataset.from_pretrained(tmp_path) for _ in range(3))
    changed.metadata[2]["note"] = "new"
    loaded.params_KP[1, 2] = 7.0
    picked = unchanged.select_rows([3, 1])
    written = []
    monkeypatch.setattr(checkpoints, "write_folder", lambda *args: written.append(args) or write_folder(*args))
    unchanged.push_to_hub("user/a")
    assert written == []
    for number, each in enumerate((changed, loaded, picked)):
        each.push_to_hub(f"user/b{number}")
        assert_same(CheckpointDataset.from_pretrained(f"user/b{number}"), each)
    assert len(written) == 3


write_folder = checkpoints.write_folder


def test_plain_datasets_reads_and_streams_it(hub: LoopbackHub, tmp_path: Path, form: str) -> None:
    import datasets

    original = dataset(7)
    original.push_to_hub(ID)
    dataset(3, seed=1).push_to_hub(ID, append=True)
    rows = datasets.load_dataset(ID, split="train", cache_dir=str(tmp_path))
    assert rows["index"][:] == list(range(10))
    stream = list(datasets.load_dataset(ID, split="train", streaming=True, cache_dir=str(tmp_path)))
    assert [row["note"] for row in stream] == [f"n{k}" for k in (*range(7), *range(3))]
    if form == "parquet":
        assert torch.equal(torch.tensor([row["params"] for row in stream[:7]]), original.params_KP)
        snippet = card(hub).split("```python\n")[2].split("```")[0]
        names: dict[str, Any] = {}
        exec(snippet.replace('split="train"', f'split="train", cache_dir={str(tmp_path)!r}'), names)
        assert torch.equal(names["params_P"], original.params_KP[0])
    else:
        snippet = card(hub).split("```python\n")[2].split("```")[0]
        names = {}
        exec(snippet.replace('split="train"', f'split="train", cache_dir={str(tmp_path)!r}'), names)
        assert torch.equal(names["params_P"], original.params_KP[0])


def test_append_uploads_only_what_is_new(hub: LoopbackHub, tmp_path: Path, form: str) -> None:
    first, second, third = dataset(7), dataset(4, seed=1), dataset(2, seed=2)
    first.push_to_hub(ID, append=True)  # there is no set yet, so this is a plain push
    old = hub.files(ID, "dataset")
    before, uploads = len(hub.requests), hub.uploads.copy()
    second.frozen = {name: tensor.clone() for name, tensor in first.frozen.items()}
    second.push_to_hub(ID, append=True)
    third.push_to_hub(ID, append=True)
    new = hub.files(ID, "dataset")
    assert {name: new[name] for name in old if name not in ("dataset.json", "README.md")} == {
        name: old[name] for name in old if name not in ("dataset.json", "README.md")
    }
    assert fetched(hub, before) == {"dataset.json"}
    assert all(hub.uploads[oid] == number for oid, number in uploads.items())
    whole = opened()
    assert len(whole) == 13
    assert torch.equal(whole.params_KP, torch.cat([first.params_KP, second.params_KP, third.params_KP]))
    assert whole.metadata == first.metadata + second.metadata + third.metadata
    assert torch.equal(opened(rows=[12, 6, 7]).params_KP, whole.params_KP[[12, 6, 7]])
    whole.save_pretrained(tmp_path / "again")
    assert_same(CheckpointDataset.from_pretrained(tmp_path / "again"), whole)
    # The statistics cover all rows, although the old rows were not downloaded.
    losses = [row["train_loss"] for row in whole.metadata]
    line = next(line for line in card(hub).splitlines() if "train_loss" in line)
    assert [float(cell) for cell in line.split("|")[2:6]] == pytest.approx(
        [13, sum(losses) / 13, min(losses), max(losses)], rel=1e-5
    )


def test_the_same_rows_are_not_appended_twice(hub: LoopbackHub, form: str) -> None:
    dataset(5).push_to_hub(ID)
    more = dataset(3, seed=1)
    committed: list[bool] = []

    def committing(request: Request) -> bool:
        if "/commit/" in request.path:
            committed.append(True)
        return "/commit/" in request.path

    hub.fail(Fault.drop_after_commit(), committing)
    hub.fail(Fault.status(503), lambda request: committed and request.method == "GET", times=50)
    with pytest.raises(ConnectionError):  # the commit was made, but its answer was lost
        more.push_to_hub(ID, append=True)
    committed.clear()
    head = hub.head(ID, "dataset")
    assert more.push_to_hub(ID, append=True).endswith(head)
    assert len(opened()) == 8


def test_append_of_what_does_not_fit(hub: LoopbackHub, form: str) -> None:
    dataset(5).push_to_hub(ID)
    head = hub.head(ID, "dataset")
    other_network, other_task, other_frozen, other_column, other_type = (dataset(2) for _ in range(5))
    other_network.network = {"name": "y", "width": 5}
    other_task.task = None
    other_frozen.frozen = {name: tensor + 1 for name, tensor in other_frozen.frozen.items()}
    other_column.metadata[0]["extra"] = 1
    for row in other_type.metadata:
        row["note"] = 3
    for wrong, message in (
        (other_network, "name was 'x' and is 'y'"),
        (other_task, "task was {'name': 'digits'} and is None"),
        (other_frozen, "frozen tensor '1.num_batches_tracked' is not the one"),
        (other_column, "metadata column 'extra' is not in the set"),
        (other_type, "metadata column 'note' is string"),
        (dataset(2, width=6), r"layout: tensor '0.weight' float32 \[5, 3\] there and '0.weight' float32 \[6, 3\] here"),
        (dataset(2, select="head"), "layout: tensor"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong.push_to_hub(ID, append=True)
    assert hub.head(ID, "dataset") == head


def test_an_append_that_somebody_overtook(hub: LoopbackHub, form: str) -> None:
    dataset(5).push_to_hub(ID)
    hub.fail(Fault.stale_parent(), lambda request: "/commit/" in request.path)
    with pytest.raises(ValueError, match="somebody else pushed"):
        dataset(2, seed=1).push_to_hub(ID, append=True)
    assert len(opened()) == 5
    with pytest.raises(FileNotFoundError, match="has no revision 'none'"):
        dataset(2, seed=1).push_to_hub(ID, append=True, revision="none")


def test_how_appended_rows_were_collected_is_kept(hub: LoopbackHub) -> None:
    dataset(5).push_to_hub(ID)
    more = dataset(2, seed=1)
    more.collect = {"method": "other"}
    more.push_to_hub(ID, append=True)
    assert opened().collect == {"method": "test", "rate": 0.1, "appended": [{"num_checkpoints": 2, "method": "other"}]}
    assert "| `appended` |" in card(hub)


def test_rows_are_read_without_the_others(hub: LoopbackHub, tmp_path: Path, form: str) -> None:
    original = dataset(31)
    original.push_to_hub(ID)
    index = json.loads(hub.files(ID, "dataset")["dataset.json"])
    before = len(hub.requests)
    some = opened(rows=[30, 2, 2], cache_dir=tmp_path)
    assert torch.equal(some.params_KP, original.params_KP[[30, 2, 2]])
    assert [row["step"] for row in some.metadata] == [30, 2, 2]
    large = index["shards"] or index["data"]
    wanted = {"dataset.json", index["frozen"]["path"], large[0]["path"], large[1]["path"], large[-1]["path"]}
    if form == "shards":
        wanted.add(index["data"][0]["path"])
    assert fetched(hub, before) <= wanted and len(large) > 8
    size = sum(request.status == 200 and "/resolve/" in request.path for request in hub.requests[before:])
    assert size <= 2 * len(wanted)  # one HEAD and one GET per file
    assert_same(opened(rows=[30, 2], cache_dir=tmp_path, local_files_only=True), original.select_rows([30, 2]))
    some.save_pretrained(tmp_path / "some")
    assert_same(CheckpointDataset.from_pretrained(tmp_path / "some"), some)
    assert_same(CheckpointDataset.from_pretrained(tmp_path / "some", rows=[1]), some.select_rows([1]))
    for rows in ([31], [-1], []):
        with pytest.raises(ValueError, match=r"checkpoint .* does not exist; there are 31|rows is empty"):
            opened(rows=rows)


def test_the_card(hub: LoopbackHub, form: str) -> None:
    dataset(7).push_to_hub(ID)
    content = DatasetCard(card(hub))
    content.validate(repo_type="dataset")
    data = content.data.to_dict()
    assert data["license"] == "apache-2.0" and data["size_categories"] == ["n<1K"]
    assert {"neural-network-diffusion", "weight-space", "pdiff-hub"} <= set(data["tags"])
    assert data["configs"][0]["data_files"] == [{"split": "train", "path": "data/train-*.parquet"}]
    for text in (
        "7 checkpoints",
        "52 numbers each",
        "| `method` | test |",
        "| `rate` | 0.1 |",
        "`network.width` | 5",
        "| `task.name` | digits |",
        "| `0.weight` | 5 x 3 | float32 | 15 |",
        "| `train_loss` | 7 |",
        f'from_pretrained("{ID}")',
        "the same in all checkpoints (tensors: 1)",
        "`data/`",
    ):
        assert text in content.text, text
    assert ("safe_open" in content.text) == (form == "shards")


def test_the_card_of_many_tensors_and_odd_words(tmp_path: Path) -> None:
    original = dataset(2)
    original.collect = {"a|b": "x\n# y | z", "deep": {"er": [1, 2]}, "long": "l" * 1000, "empty": {}}
    for row in original.metadata:
        row["train_loss"] = None
    original.save_pretrained(tmp_path)
    index = read_index(tmp_path)
    entry = index["layout"]["entries"][0]
    index["layout"]["entries"] = [{**entry, "name": f"t{k}"} for k in range(100)]
    text = render_dataset_card({**index, "num_checkpoints": 5000}, "me/it")
    DatasetCard(text).validate(repo_type="dataset")
    assert "and 60 more tensors with 900 numbers" in text and "| `t39` |" in text and "| `t40` |" not in text
    assert r"| `a\|b` | x # y \| z |" in text and "| `deep.er` | [1, 2] |" in text and "No losses or accuracies" in text
    assert "1K<n<10K" in text and max(map(len, text.splitlines())) < 400


def test_a_damaged_folder_is_not_pushed(hub: LoopbackHub, tmp_path: Path) -> None:
    dataset().save_pretrained(tmp_path)
    next(tmp_path.glob("data/*.parquet")).write_bytes(b"short")
    with pytest.raises(ValueError, match="truncated"):
        push_folder(tmp_path, ID)
    with pytest.raises(FileNotFoundError, match=r"no dataset\.json"):
        push_folder(tmp_path / "data", ID)
    assert hub.requests == []


def test_a_folder_of_an_older_version_gets_what_it_lacks(hub: LoopbackHub, tmp_path: Path, form: str) -> None:
    dataset(5).save_pretrained(tmp_path)
    index = json.loads((tmp_path / "dataset.json").read_text())
    del index["columns"]
    for entry in index["data"]:
        del entry["statistics"]
    (tmp_path / "dataset.json").write_text(json.dumps(index))
    before = contents(tmp_path)
    push_folder(tmp_path, ID)
    assert contents(tmp_path) == before
    dataset(2, seed=1).push_to_hub(ID, append=True)
    assert len(opened()) == 7 and "| `train_loss` | 7 |" in card(hub)


def hostile(files: dict[str, bytes], form: str) -> dict[str, dict[str, bytes]]:
    """Message of the expected error -> the files of a repository that causes it."""
    index = json.loads(files["dataset.json"])
    large = (index["shards"] or index["data"])[0]

    def with_index(**changes: Any) -> dict[str, bytes]:
        return {**files, "dataset.json": json.dumps({**index, **changes}).encode()}

    def with_file(entry: dict[str, Any], content: bytes) -> dict[str, bytes]:
        text = json.dumps(index).replace(json.dumps(entry), json.dumps({**entry, "bytes": len(content)}))
        return {**files, "dataset.json": text.encode(), entry["path"]: content}

    header = json.dumps(
        {"params": {"dtype": "F32", "shape": [large["rows"], 52], "data_offsets": [0, 20 << 30]}}
    ).encode()
    claims = struct.pack("<Q", len(header)) + header + bytes(1000)
    huge = struct.pack("<Q", 20 << 30) + bytes(1000)
    layout = index["layout"]
    grown = {**layout, "entries": [{**layout["entries"][0], "shape": [50, 3]}, *layout["entries"][1:]]}
    whole = files[large["path"]]
    cases = {
        "format version 2": with_index(format_version=2),
        "does not describe": with_index(format="else"),
        "the name of a file of this format": with_index(frozen={"path": "../../x.safetensors", "bytes": 1}),
        "a file of this format, found": with_index(data=[{"path": "/etc/passwd", "bytes": 1, "rows": 7}], shards=[]),
        "not JSON": {**files, "dataset.json": b"[" * 100_000},
        "not JSON ": {**files, "dataset.json": b"\xff\xfe"},
        "expected rows 0 to": with_index(num_checkpoints=10**15),
        "layout entry '0.weight'": with_index(layout=grown),
        "damaged": with_index(layout={"entries": 5}),
        "frozen tensor": with_index(layout={**layout, "frozen": []}),
        "no safetensors file": with_file(index["frozen"], claims),
        "no safetensors file ": with_file(index["frozen"], huge),
        "no safetensors file  ": with_file(index["frozen"], b"\x80\x04pickle"),
        "truncated|no safetensors file  ": with_file(large, whole[: len(whole) // 2]),
        "truncated or not|no safetensors file": with_file(large, claims),
        "truncated or not|no safetensors file ": with_file(large, huge),
    }
    if form == "parquet":
        cases["damaged|truncated|metadata"] = with_file(large, whole[: len(whole) // 2] + bytes(len(whole) // 2))
    return cases


def test_hostile_repositories(hub: LoopbackHub, tmp_path: Path, form: str) -> None:
    dataset(7).push_to_hub(ID)
    for number, (message, files) in enumerate(hostile(hub.files(ID, "dataset"), form).items()):
        name = f"user/hostile{number}"
        hub.add(name, files, repo_type="dataset")
        for options in ({}, {"rows": [0]}):
            with pytest.raises(ValueError, match=message.strip()):
                CheckpointDataset.from_pretrained(name, cache_dir=tmp_path / "cache", **options).params_KP.sum()
    assert [each.name for each in tmp_path.iterdir()] == ["cache"]


def test_a_repository_of_something_else(hub: LoopbackHub) -> None:
    hub.add(ID, {"a.json": b"{}"}, repo_type="dataset")
    with pytest.raises(ValueError, match=r"is no checkpoint data set of this package: it has no dataset\.json"):
        opened()
    with pytest.raises(FileNotFoundError, match="'user/none' is no folder here, and there is no data set"):
        CheckpointDataset.from_pretrained("user/none")
    with pytest.raises(ValueError, match="has no revision"):
        CheckpointDataset.from_pretrained(Path(__file__).parent, revision="main")
