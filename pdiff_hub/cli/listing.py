"""What comes with the package: `pdiff list`."""

from __future__ import annotations

from typing import Any

from pdiff_hub.cli.options import app, echo

_ROW = "{:<30} {:<13} {:<13} {:>7} {:<4} {:>6}"  # 78 columns


@app.command("list")
def list_shipped() -> None:
    """Say which pipelines and recipes come with the package, and which of them have their weights here.

    Example: pdiff list
    """
    from pdiff_hub.records import RunFolder
    from pdiff_hub.records.shipped import FOLDERS, shipped
    from pdiff_hub.records.yaml_files import read_yaml

    known: dict[str, Any] = {}
    for folder in FOLDERS:
        if (file := folder / "list.yaml").is_file():
            known |= read_yaml(file)
    rows = []
    for name, folder in shipped().items():
        recipe, facts = RunFolder(folder).read_recipe() or {}, known.get(name, {})
        task, network = recipe["task"], recipe["network"]
        data = task if isinstance(task, str) else task["dataset"]
        kind = network if isinstance(network, str) else network["name"]
        here = "yes" if RunFolder(folder).index.is_file() else "no"
        rows.append((name, data, kind, _short(facts.get("numbers")), here, _time(facts.get("seconds"))))
    echo(_ROW.format("name", "data", "network", "numbers", "here", "run"))
    for row in sorted(rows, key=lambda each: (each[4] != "yes", each[0])):
        echo(_ROW.format(*row).rstrip())
    echo(
        "\nhere: whether weights come with the package; then generate, fit, audit, info and\n"
        "push take the name: pdiff generate digits-mlp3. For all others: pdiff run NAME.\n"
        "run: how long a whole run took on two cores, where that was measured.\n"
        "Further recipes are those of the paper's tables, such as mnist-mlp3\n(pipelines/README.md)."
    )


def _short(numbers: int | None) -> str:
    if numbers is None:
        return ""
    return f"{numbers:,}" if numbers < 1_000_000 else f"{numbers / 1e6:.1f} M"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
