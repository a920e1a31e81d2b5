"""The `pdiff` command: `start` has how it begins and ends, the other files what it does.

Nothing is imported here, not even from `__future__`: `python -m pdiff_hub.cli` puts the current folder, which may be a
stranger's, on the path, and `__main__` first takes it away.
"""


def __getattr__(name: str) -> object:
    if name not in ("app", "main"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pdiff_hub.cli import start

    return getattr(start, name)
