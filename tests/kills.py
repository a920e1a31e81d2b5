"""Kills a command at one of its operations, as a power cut would, and starts it again.

    python tests/kills.py run      (every operation of `pdiff run`; a table of what went wrong. Without words: all)

An operation changes a folder: opening for writing, renaming, removing, making a folder, `fsync`, and what safetensors
writes (of which half is left). Python reports them all to an audit hook, whoever asks for them. Each request to a Hub
is one too. Nothing but times may differ then from what a command leaves that nobody killed.
"""

from __future__ import annotations

import argparse
import filecmp
import hashlib
import json
import operator
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import processes
from kill_worker import HOME, TEMPORARY, Ended, Order, serve
from loopback_hub import LoopbackHub

_TINY = [
    "network.hidden=[4, 4]",
    "collect.num_checkpoints=6",
    "collect.epochs=1",
    "collect.save_every=1",
    "diffusion.steps=20",
    "diffusion.save_every=10",
    "diffusion.widths=[16]",
    "diffusion.batch_size=8",
    "generate.num_models=3",
    "generate.num_inference_steps=3",
    "evaluate.baselines=0",
]
_LEFT = (".unfinished", "unfinished", ".tmp", ".pdiff-lock", "components-", "parts", "seeds-")


@dataclass(frozen=True)
class Command:
    """words: of the command line. needs: what the folder that it runs in holds before. published: and the Hub.

    short: as `Order` has it.
    """

    words: tuple[str, ...]
    needs: tuple[str, ...] = ()
    published: str | None = None
    asks_hub: bool = False
    short: bool = False


def _with(*options: str) -> tuple[str, ...]:
    return tuple(word for option in options for word in ("--override", option))


_OUT = ("--output-dir", "out")
_NETWORK = "network={name: mlp3, hidden: [4, 4]}"
_POPULATION = "collect={method: population, num_checkpoints: 3, epochs: 1, networks_at_once: 2}"
_FAMILY = "collect={method: family, num_tasks: 4, seeds_per_task: 1, held_out_tasks: 2, epochs: 1, trunk_steps: 2}"
_COLLECT = ("collect", "digits-mlp3", *_OUT)
COMMANDS = {
    "collect-finetune": Command((*_COLLECT, *_with(*_TINY))),
    "collect-population": Command((*_COLLECT, *_with(_NETWORK, _POPULATION))),
    "collect-family": Command((*_COLLECT, *_with("network={name: mlp, hidden: [4]}", _FAMILY))),
    "collect-import": Command(
        (*_COLLECT, *_with(_NETWORK, "collect={method: import, source: networks}")), needs=("networks",)
    ),
    "train": Command(("train", "digits-mlp3", "--dataset", "set", *_OUT, *_with(*_TINY)), needs=("set",)),
    "generate": Command(("generate", "pipe", "--num-models", "3", *_OUT), needs=("pipe",)),
    "evaluate": Command(
        ("evaluate", "pipe", "--dataset", "set", *_OUT, "--num-models", "3", "--baselines", "0"), needs=("pipe", "set")
    ),
    "audit": Command(
        ("audit", "pipe", "--dataset", "set", *_OUT, "--num-models", "3", "--metric", "accuracy"), needs=("pipe", "set")
    ),
    "fit": Command(
        ("fit", "pipe", "--task", "{dataset: digits}", "--num-models", "2", "--num-labels", "10", *_OUT),
        needs=("pipe",),
    ),
    "run": Command(("run", "digits-mlp3", *_OUT, *_with(*_TINY))),
    "reproduce": Command(("reproduce", "figure4a", *_OUT), short=True),
    "reproduce-cells": Command(("reproduce", "table2b", *_OUT), short=True),
    "push": Command(("push", "pipe", "user/it"), needs=("pipe",), asks_hub=True),
    "push-set": Command(("push", "set", "user/it"), needs=("set",), asks_hub=True),
    "push-more": Command(("push", "set", "user/it", "--append"), needs=("set",), published="set", asks_hub=True),
    "pull": Command(("pull", "user/it", "out"), published="pipe", asks_hub=True),
    "pull-set": Command(("pull", "user/it", "out"), published="set", asks_hub=True),
}
# What tells how long something took, or when it was made. Of the JSON files among them the rest is compared.
_TIMED = {"report.html", "results.json", "README.md", "summary.json", "autoencoder.json", "recipe.yaml"}
_TIMED |= {"finished.json", "figure4a.html", "figure4a.json", "table2b.html", "table2b.json"}
_TIMES = ("seconds", "date", "files", "working_directory", "recipe_file")
_NOT_COMPARED = (HOME, TEMPORARY, "seconds.json")  # which is absent where no stage ran from its beginning to its end


class Sweep:
    """Runs `command` in folders below `place`, until `close`."""

    def __init__(self, command: str, place: Path):
        self.command, self.place = COMMANDS[command], place.resolve()
        self.inputs = self.place / "inputs"
        self.hub: LoopbackHub | None = None
        self._open = ExitStack()
        self._orders: Connection | None = None
        self._known: dict[str, list[str]] = {}  # what is wrong, by what a kill left
        try:
            self._begin()
        except BaseException:  # else the interpreter would wait at its end for the process that waits for orders
            self.__exit__()
            raise

    def _begin(self) -> None:
        self._prepare()
        if self.command.asks_hub:
            self.hub = self._open.enter_context(LoopbackHub())
        self._start()
        ended = self.run(self.fresh("first"))
        assert ended.status == 0, ended.told
        self.whole = self.fresh("whole")
        ended = self.run(self.whole)
        assert ended.status == 0, ended.told
        self.count, self.whole_hub = ended.count, self._on_hub()

    def __enter__(self) -> Sweep:
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()
        self._open.close()

    def fresh(self, name: str) -> Path:
        """A folder with the command's inputs, and what is on the Hub before it."""
        folder = self.place / name
        folder.mkdir()
        for need in self.command.needs:
            shutil.copytree(self.inputs / need, folder / need)
        if self.hub is not None:
            self.hub.repos.clear()
            self.hub.lfs.clear()
            if self.command.published is not None:
                source = self.inputs / self.command.published
                files = {str(file.relative_to(source)): file.read_bytes() for file in _files(source)}
                self.hub.add("user/it", files, "dataset" if self.command.published == "set" else "model")
        return folder

    def run(self, folder: Path, killed_at: int = 0) -> Ended:
        """Runs the command in `folder`, killed before its operation of this number (from 1; 0: not at all)."""
        return self._order(folder, self.command.words, killed_at)

    def wrong(self, folder: Path) -> list[str]:
        """What is wrong in a folder in which the command was killed, once it has run again; empty if nothing is."""
        ended = self.run(folder)
        if ended.status != 0:
            return [f"exit {ended.status}: {ended.told.strip().splitlines()[-1:]}"]
        found = [f"trace: {ended.told.splitlines()[-1]}"] if "Traceback" in ended.told else []
        found += [
            f"left: {name}" for name in _names(folder) if any(part.startswith(_LEFT) for part in Path(name).parts)
        ]
        found += [f"left: {file.name}" for file in (folder / HOME).rglob("*.incomplete")]
        found += [f"differs: {name}" for name in differences(self.whole, folder)]
        if self._on_hub() != self.whole_hub:
            found.append("the Hub holds something else")
        return found

    def kill_at(self, number: int) -> list[str]:
        """Kills at one operation and starts again; -> what is wrong then."""
        folder = self.fresh(f"at-{number}")
        ended = self.run(folder, number)
        if ended.status == 0 and ended.count < number:  # of a download in threads: this time it took fewer
            shutil.rmtree(folder)
            return []
        if ended.status != -signal.SIGKILL:
            return [f"was not killed but ended with {ended.status}: {ended.told[-200:]}"]
        left = self._left_by_a_kill(folder)
        if left not in self._known:
            self._known[left] = self.wrong(folder)
        shutil.rmtree(folder)
        return self._known[left]

    def kill_again_and_again(self, every: int) -> list[str]:
        """Kills one run at its operation `every`, and each time a few later; -> what is wrong once it has ended."""
        folder, number = self.fresh("often"), every
        while (ended := self.run(folder, number)).status == -signal.SIGKILL:
            number += max(1, every // 5)
        return [f"exit {ended.status}: {ended.told[-300:]}"] if ended.status else self.wrong(folder)

    def _on_hub(self) -> dict[tuple[str, str], tuple[int, dict[str, bytes]]]:
        """Of each repository: how many commits it has, and its files; a card's text may tell times."""
        if self.hub is None:
            return {}
        return {
            (kind, name): (len(repo.commits), self.hub.files(name, kind))
            for (kind, name), repo in self.hub.repos.items()
        }

    def _left_by_a_kill(self, folder: Path) -> str:
        """A digest of the folder and the Hub. Many operations, `fsync` say, change neither: one start shows for all."""
        seen = hashlib.sha256(repr(self._on_hub()).encode())
        for path in sorted(folder.rglob("*")):
            seen.update(f"{path.relative_to(folder)}\0".encode())
            seen.update(hashlib.sha256(path.read_bytes()).digest() if path.is_file() else b"folder")
        return seen.hexdigest()

    def _start(self) -> None:
        self._process, self._orders = processes.start_server(serve)

    def _stop(self) -> None:
        if self._orders is not None:
            self._orders.send(None)
            self._process.join()
            self._orders.close()
            self._orders = None

    def _order(self, folder: Path, words: tuple[str, ...], killed_at: int = 0) -> Ended:
        assert self._orders is not None
        hub = (self.hub.endpoint, self.hub.token) if self.hub else None
        self._orders.send(Order(folder, words, killed_at, hub, self.command.short))
        ended = self._orders.recv()
        assert isinstance(ended, Ended)
        return ended

    def _prepare(self) -> None:
        """Makes the command's inputs, by other commands."""
        self.inputs.mkdir(parents=True)
        wanted = {*self.command.needs, self.command.published}
        if wanted & {"set", "pipe", "networks"}:
            self._make("collect", "digits-mlp3", "--output-dir", "set", *_with(*_TINY))
        if wanted & {"pipe", "networks"}:
            self._make("train", "digits-mlp3", "--dataset", "set", "--output-dir", "pipe", *_with(*_TINY))
        if "networks" in wanted:
            self._make("generate", "pipe", "--num-models", "3", "--output-dir", "networks")
            (self.inputs / "networks" / "generated.json").unlink()

    def _make(self, *words: str) -> None:
        self._start()
        ended = self._order(self.inputs, words)
        self._stop()
        assert ended.status == 0, ended.told


def _files(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file()]


def _names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if HOME not in path.relative_to(folder).parts}


def differences(one: Path, other: Path) -> Iterator[str]:
    """The names of files that only one folder has, or that differ in more than times."""
    names = [{name for name in _names(folder) if not {*Path(name).parts} & {*_NOT_COMPARED}} for folder in (one, other)]
    yield from names[0] ^ names[1]
    for name in names[0] & names[1]:
        files = one / name, other / name
        if not files[0].is_file():
            continue
        if files[0].name not in _TIMED:
            same = filecmp.cmp(*files, shallow=False)
        elif files[0].suffix == ".json":
            same = operator.eq(*(_without_times(json.loads(file.read_bytes())) for file in files))
        else:
            same = True
        if not same:
            yield name


def _without_times(value: Any) -> Any:
    """Of what a JSON file holds."""
    if isinstance(value, list):
        return [_without_times(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {key: _without_times(each) for key, each in value.items() if not key.startswith(_TIMES)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("command", nargs="*", default=[*COMMANDS])
    parser.add_argument("--stride", type=int, default=1)
    given = parser.parse_args()
    home = tempfile.TemporaryDirectory(prefix="pdiff-kills-home-")
    # The processes that run commands inherit this; tests/conftest.py does it for tests.
    os.environ.update(HF_HOME=home.name, HF_HUB_OFFLINE="1", HF_HUB_DISABLE_XET="1")
    os.environ.update(HF_HUB_DISABLE_PROGRESS_BARS="1", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", MPLBACKEND="Agg")
    totals: dict[str, Any] = {}
    for command in given.command:
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as place, Sweep(command, Path(place)) as sweep:
            kills = range(1, sweep.count + 1, given.stride)
            wrong = 0
            for number in kills:
                if found := sweep.kill_at(number):
                    wrong += 1
                    print(f"{command} at {number} of {sweep.count}: {found}", flush=True)
            totals[command] = {"operations": sweep.count, "kills": len(kills), "wrong": wrong}
            totals[command]["seconds"] = round(time.monotonic() - began)
            print(command, json.dumps(totals[command]), flush=True)


if __name__ == "__main__":
    main()
