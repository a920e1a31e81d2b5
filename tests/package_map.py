"""Shows the package's rooms, floors and arrows, which it reads from the imports: python tests/package_map.py

A room is a file or a folder directly in `pdiff_hub/`. An arrow leads from a room to a room that it imports. A room
stands one floor above the highest room that it imports. Imports inside functions and under TYPE_CHECKING count too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "pdiff_hub"
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def imported_modules(source: str, module: str, is_package: bool = False) -> Iterator[str]:
    """The absolute dotted names that `module` imports. `from a import b` gives `a.b`, because `b` may be a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".") if is_package else module.split(".")[:-1]
                above = parents[: len(parents) - (node.level - 1)]
                base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def imports_by_name(source: str) -> Iterator[str]:
    """All uses of `import_module` and `__import__`, and imports of `import_module` under any name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr in ("import_module", "__import__"):
            yield ast.unparse(node)
        elif isinstance(node, ast.Name) and node.id == "__import__":
            yield node.id
        elif isinstance(node, ast.ImportFrom) and any(alias.name == "import_module" for alias in node.names):
            yield ast.unparse(node)


def imports_of(file: str) -> set[str]:
    """The dotted names that a file of the package imports."""
    parts = ["pdiff_hub", *Path(file).with_suffix("").parts]
    is_package = parts[-1] == "__init__"
    module = ".".join(parts[:-1] if is_package else parts)
    return set(imported_modules((PACKAGE / file).read_text(encoding="utf-8"), module, is_package))


def file_of(name: str) -> str | None:
    """The file of the package that importing `name` loads; None for names outside the package.

    For `from a import b`, `name` is `a.b`.
    """
    parts = name.split(".")
    if parts[0] != "pdiff_hub":
        return None
    for length in (len(parts), len(parts) - 1):
        inside = "/".join(parts[1:length])
        for candidate in (f"{inside}.py", f"{inside}/__init__.py".lstrip("/")):
            if candidate in FILES:
                return candidate
    return None


def room_of(file: str) -> str:
    return Path(file).with_suffix("").parts[0]


@cache
def file_graph() -> dict[str, set[str]]:
    """File -> the other files that it imports."""
    return {file: {found for name in imports_of(file) if (found := file_of(name))} - {file} for file in FILES}


def room_graph() -> dict[str, set[str]]:
    """Room -> the other rooms that it imports."""
    rooms: dict[str, set[str]] = {room_of(file): set() for file in FILES}
    for file, imported in file_graph().items():
        rooms[room_of(file)] |= {room_of(other) for other in imported} - {room_of(file)}
    return rooms


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """The strongly connected sets of more than one node, by Tarjan's algorithm."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for other in graph[node]:
            if other not in order:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == order[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                found.append(sorted(group))

    for node in graph:
        if node not in order:
            visit(node)
    return found


def floors(graph: Mapping[str, set[str]]) -> dict[str, int]:
    """Room -> its floor. A room that imports no other room has floor 1. The graph must have no circle."""
    height: dict[str, int] = {}

    def of(node: str) -> int:
        if node not in height:
            height[node] = 1 + max((of(other) for other in graph[node]), default=0)
        return height[node]

    return {node: of(node) for node in graph}


def main() -> None:
    rooms = room_graph()
    print(f"{len(rooms)} rooms, {sum(map(len, rooms.values()))} arrows; circles of rooms: {circles(rooms) or 'none'}")
    print(f"{len(FILES)} files; circles of files: {circles(file_graph()) or 'none'}")
    height = floors(rooms)
    for floor in range(max(height.values()), 0, -1):
        print(f"floor {floor}: {', '.join(sorted(room for room, own in height.items() if own == floor))}")


if __name__ == "__main__":
    main()
