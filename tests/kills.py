"""Kills a command at one of its file operations, as a power cut would, and starts it again.

    python tests/kills.py run --stride 1      (every operation of `pdiff run`; a table of what went wrong)

A file operation is one that changes a folder: opening for writing, renaming, removing, making a folder, `fsync`, and
what safetensors writes (of which half is left). Python reports them all to an audit hook, whoever asks for them.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import processes

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
_CHILD = """
import os, signal, sys, traceback
from pathlib import Path

import safetensors.torch

from pdiff_hub.cli import main

root, number, told, *words = sys.argv[1:]
sys.stdout = sys.stderr = open(told, "w")
os.chdir(root)
done, number, writes = 0, int(number), os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
events = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod", "os.link", "os.symlink")

def count():
    global done
    done += 1
    return done == number

def watch(event, given):
    if event == "open":
        if not isinstance(given[0], (str, os.PathLike)) or not isinstance(given[2], int) or not given[2] & writes:
            return
    elif event not in events or not isinstance(given[0], (str, os.PathLike)):
        return
    if os.path.abspath(os.fspath(given[0])).startswith(root + os.sep) and count():
        os.kill(os.getpid(), signal.SIGKILL)

def counted(function, half=None):
    def call(*given, **options):
        if count():
            if half is not None:
                half(*given)
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*given, **options)
    return call

os.fsync = counted(os.fsync)
safetensors.torch.serialize_file = counted(
    safetensors.torch.serialize_file,
    lambda tensors, path, *more: (Path(path).parent / ".tmpKilled").write_bytes(bytes(100)),
)
sys.addaudithook(watch)
sys.argv = ["pdiff", *words]
status = 0
try:
    main()
except SystemExit as error:
    status = error.code or 0
except BaseException:
    traceback.print_exc()
    status = 70
sys.stdout.flush()
with open(told + ".count", "w") as file:
    file.write(str(done))
os._exit(status)
"""


@dataclass(frozen=True)
class Command:
    """words: of the command line. needs: what the folder that it runs in holds before."""

    words: tuple[str, ...]
    needs: tuple[str, ...] = ()


def _with(*options: str) -> tuple[str, ...]:
    return tuple(word for option in options for word in ("--override", option))


_OUT = ("--output-dir", "out")
_NETWORK = "network={name: mlp3, hidden: [4, 4]}"
_POPULATION = "collect={method: population, num_checkpoints: 3, epochs: 1, networks_at_once: 2}"
_FAMILY = "collect={method: family, num_tasks: 4, seeds_per_task: 1, held_out_tasks: 2, epochs: 1}"
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
    "run": Command(("run", "digits-mlp3", *_OUT, *_with(*_TINY))),
}
# What tells how long something took, or when it was made.
_TIMED = {"report.html", "results.json", "README.md", "seconds.json", "summary.json", "autoencoder.json", "recipe.yaml"}


@dataclass(frozen=True)
class Ended:
    """status: that of the command, negative if a signal ended it. count: the file operations, if it ended itself."""

    status: int
    told: str
    count: int


class Sweep:
    """Runs `command` in folders below `place`."""

    def __init__(self, command: str, place: Path):
        self.command, self.place = COMMANDS[command], place.resolve()
        self.inputs = self.place / "inputs"
        self._prepare()
        self.whole = self.fresh("whole")
        ended = self.run(self.whole)
        assert ended.status == 0, ended.told
        self.count = ended.count

    def fresh(self, name: str) -> Path:
        """A folder with the command's inputs."""
        folder = self.place / name
        folder.mkdir()
        for need in self.command.needs:
            shutil.copytree(self.inputs / need, folder / need)
        return folder

    def run(self, folder: Path, killed_at: int = -1) -> Ended:
        """Runs the command in `folder`, killed before its file operation of this number (from 1)."""
        told = self.place / "told.txt"
        told.with_name("told.txt.count").unlink(missing_ok=True)
        process = processes.start(_CHILD, str(folder), str(killed_at), str(told), *self.command.words)
        process.join()
        assert process.exitcode is not None
        counted = told.with_name("told.txt.count")
        text = told.read_text() if told.exists() else ""
        return Ended(process.exitcode, text, int(counted.read_text()) if counted.exists() else 0)

    def wrong(self, folder: Path) -> list[str]:
        """What is wrong in a folder in which the command was killed, once it has run again; empty if nothing is."""
        ended = self.run(folder)
        if ended.status != 0:
            return [f"exit {ended.status}: {ended.told.strip().splitlines()[-1:]}"]
        found = [f"trace: {ended.told.splitlines()[-1]}"] if "Traceback" in ended.told else []
        found += [
            f"left: {name}" for name in _names(folder) if any(part.startswith(_LEFT) for part in Path(name).parts)
        ]
        found += [f"differs: {name}" for name in _differences(self.whole, folder) if Path(name).name not in _TIMED]
        return found

    def kill_at(self, number: int) -> list[str]:
        """Kills at one operation and starts again; -> what is wrong then."""
        folder = self.fresh(f"at-{number}")
        ended = self.run(folder, number)
        if ended.status != -9:
            return [f"was not killed but ended with {ended.status}: {ended.told[-200:]}"]
        found = self.wrong(folder)
        shutil.rmtree(folder)
        return found

    def kill_again_and_again(self, every: int) -> list[str]:
        """Kills one run at its operation `every`, and each time a few later; -> what is wrong once it has ended."""
        folder, number = self.fresh("often"), every
        while (ended := self.run(folder, number)).status == -9:
            number += max(1, every // 5)
        return [f"exit {ended.status}: {ended.told[-300:]}"] if ended.status else self.wrong(folder)

    def _prepare(self) -> None:
        self.inputs.mkdir(parents=True)
        made = {
            "set": self._make_set,
            "pipe": self._make_pipe,
            "networks": self._make_nets,
        }
        for need in self.command.needs:
            made[need]()

    def _make_set(self) -> None:
        self._make("collect", "digits-mlp3", "--output-dir", "set", *_with(*_TINY))

    def _make_pipe(self) -> None:
        if not (self.inputs / "set").exists():
            self._make_set()
        self._make("train", "digits-mlp3", "--dataset", "set", "--output-dir", "pipe", *_with(*_TINY))

    def _make_nets(self) -> None:
        self._make_pipe()
        self._make("generate", "pipe", "--num-models", "3", "--output-dir", "networks")
        (self.inputs / "networks" / "generated.json").unlink()

    def _make(self, *words: str) -> None:
        told = self.place / "made.txt"
        process = processes.start(_CHILD, str(self.inputs), "-1", str(told), *words)
        process.join()
        assert process.exitcode == 0, told.read_text()


def _names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def _differences(one: Path, other: Path) -> Iterator[str]:
    """The names of files that only one folder has, or that are not equal in both."""
    names = _names(one), _names(other)
    yield from names[0] ^ names[1]
    for name in names[0] & names[1]:
        if (one / name).is_file() and not filecmp.cmp(one / name, other / name, shallow=False):
            yield name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("command", nargs="*", default=[*COMMANDS])
    parser.add_argument("--stride", type=int, default=1)
    given = parser.parse_args()
    totals: dict[str, Any] = {}
    for command in given.command:
        with tempfile.TemporaryDirectory() as place:
            sweep = Sweep(command, Path(place))
            kills = range(1, sweep.count + 1, given.stride)
            wrong = 0
            for number in kills:
                if found := sweep.kill_at(number):
                    wrong += 1
                    print(f"{command} at {number} of {sweep.count}: {found}", flush=True)
            totals[command] = {"operations": sweep.count, "kills": len(kills), "wrong": wrong}
            print(command, json.dumps(totals[command]), flush=True)


if __name__ == "__main__":
    main()
