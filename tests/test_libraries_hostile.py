"""Whatever a server answers, what libraries fetch (data sets, pretrained models) ends soon, in one sentence or well."""

from __future__ import annotations

import io
import json
import random
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import datasets.config
import datasets.utils.file_utils
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import HfFileSystem, constants
from loopback_hub import LoopbackHub
from loopback_lies import Lies, lie
from no_waiting import without_pauses
from PIL import Image

from pdiff_hub.errors import PdiffError
from pdiff_hub.networks import build_network, resolve_network, vision
from pdiff_hub.networks.vision import input_statistics
from pdiff_hub.tasks import load_task
from pdiff_hub.transfer import guard

SIZES = {"in_channels": 3, "image_size": 32, "num_classes": 2}
PROCESSOR = {"do_normalize": True, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.1]}


def a_table() -> bytes:
    """A data set of small pictures, as Parquet."""
    rows = []
    for k in range(12):
        picture = io.BytesIO()
        Image.new("L", (4, 4), 20 * k).save(picture, "PNG")
        rows.append({"image": {"bytes": picture.getvalue(), "path": None}, "label": k % 2})
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out)
    return out.getvalue()


@pytest.fixture
def lies(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Lies]:
    without_pauses(monkeypatch)
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    monkeypatch.setitem(vision._ARCHITECTURES, "vit_tiny", {"model_type": "vit", **small})
    table = a_table()
    hub.add("user/data", {f"data/{split}-0.parquet": table for split in ("train", "test")}, "dataset")
    network: Any = build_network(resolve_network("vit_tiny", **SIZES), seed=1)
    network.save_pretrained(tmp_path / "vit")
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    hub.add("user/vit", {file.name: file.read_bytes() for file in (tmp_path / "vit").iterdir()})
    with LoopbackHub() as elsewhere:
        yield Lies(hub, elsewhere)


def empty_caches(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(where / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", where / "datasets")
    HfFileSystem.clear_instance_cache()


def opened_data() -> list[Any]:
    task = load_task({"dataset": "user/data"})
    return [task.test.images_NCHW.sum().item(), task.test.labels_N.tolist()]


def opened_network() -> list[Any]:
    spec = resolve_network({"name": "vit_tiny", "pretrained": "user/vit"}, **SIZES)
    weights = cast(Any, build_network(spec)).vit.state_dict()
    return [input_statistics(spec), sum(tensor.double().sum().item() for tensor in weights.values())]


def test_lies(
    hub: LoopbackHub, lies: Lies, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[Callable[[], list[Any]]] = [opened_data, opened_network]
    right = {}
    for call in calls:
        empty_caches(tmp_path / "cache" / call.__name__, monkeypatch)
        right[call] = call()
    ends = {"well": 0, "sentence": 0}
    for seed in range(40):
        dice = random.Random(seed)
        empty_caches(tmp_path / "cache" / str(seed), monkeypatch)
        call, often, most, true = calls[seed % 2], dice.choice([0.2, 1.0]), dice.choice([1, 3, 1000]), dice.randrange(5)

        def hook(handler: Any, answer: Any, dice: random.Random = dice, often: float = often) -> Any:
            nonlocal most, true
            true -= 1
            if true >= 0 or most <= 0 or dice.random() > often:
                return answer
            most -= 1
            return lie(handler, answer, dice)

        lies.hook, started = hook, time.monotonic()
        try:
            found = call()
            ends["well"] += 1
            assert found == right[call] or call is opened_data, seed
        except (PdiffError, OSError) as error:
            text = str(error)
            ends["sentence"] += 1
            assert text and len(text) < 1800 and hub.token not in text, (seed, text)
        except Exception as error:
            raise AssertionError(f"seed {seed} ended in a trace: {traceback.format_exc()[-3000:]}") from error
        finally:
            lies.hook = None
        assert time.monotonic() - started < 15, seed
    assert lies.tokens == [] and hub.token not in caplog.text
    assert ends["well"] > 5 and ends["sentence"] > 10, ends


@pytest.mark.parametrize("call", [opened_data, opened_network])
def test_a_silent_server_is_given_up(
    call: Callable[[], Any], lies: Lies, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "GIVE_UP", 1.5)
    for name in ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT"):
        monkeypatch.setattr(constants, name, 0.5)
    monkeypatch.setattr(guard, "_TIMEOUT", 0.6)
    empty_caches(tmp_path / "cache", monkeypatch)

    def change(handler: Any, answer: Any) -> Any:
        for _ in range(100):
            time.sleep(0.1)
            handler.wfile.write(b"")
        return answer

    lies.hook, started = change, time.monotonic()
    with pytest.raises((PdiffError, OSError)):
        call()
    assert time.monotonic() - started < 15


@pytest.mark.parametrize("call", [opened_data, opened_network])
def test_a_day_is_not_waited(
    call: Callable[[], Any], lies: Lies, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty_caches(tmp_path / "cache", monkeypatch)

    def change(handler: Any, answer: Any) -> Any:
        answer.status, answer.headers["Retry-After"] = 429, "86400"
        return answer

    lies.hook, started = change, time.monotonic()
    with pytest.raises((PdiffError, OSError)):
        call()
    assert time.monotonic() - started < 15
