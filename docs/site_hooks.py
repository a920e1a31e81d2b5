"""What `mkdocs build` does beside copying docs/: pages from elsewhere in the repository, and links that lead to them.

Pages keep their places, and their links work on GitHub as they stand. In the site, the model card, the cards of
pipelines and others are pages, notebooks are read without Jupyter, and a link to a file that is no page is its name.
"""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DOCS = "docs"
# Pages and other files that lie elsewhere, as globs; they have the same path in the site.
ELSEWHERE = (
    "CHANGELOG.md",
    "CITATION.cff",
    "CONTRIBUTING.md",
    "MODEL_CARD.md",
    "SECURITY.md",
    "benchmarks/*.md",
    "pipelines/README.md",
    "pipelines/*/README.md",
    "pipelines/*/*.png",
)
NOTEBOOKS = "examples/notebooks/*.ipynb"
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
_CODE = re.compile(r"(^```.*?^```|`[^`\n]*`)", re.DOTALL | re.MULTILINE)
_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)


def site_path(file: str) -> str | None:
    """Where a file of the repository lies in the site; None if it is not there."""
    path = Path(file)
    if path.parts[0] == DOCS:
        return path.relative_to(DOCS).as_posix()
    if path.match(NOTEBOOKS):
        return f"notebooks/{path.stem}.md"
    return (
        file
        if any(path.match(pattern) and len(path.parts) == pattern.count("/") + 1 for pattern in ELSEWHERE)
        else None
    )


def with_site_links(text: str, file: str) -> str:
    """The Markdown of `file` (its path in the repository) with links as the site needs them; code stays as it is.

    ValueError for a link to a file that is not there.
    """
    here = site_path(file)
    assert here is not None

    def changed(link: re.Match[str]) -> str:
        picture, words, target = link.groups()
        path, hash_sign, anchor = target.partition("#")
        if not path or re.match(r"[a-z]+:", path):
            return link[0]
        found = posixpath.normpath(posixpath.join(posixpath.dirname(file), path))
        if not (ROOT / found).exists():
            raise ValueError(f"{file} links to {target}, and {found} is not there")
        there = site_path(found) if (ROOT / found).is_file() else None
        if there is None:
            return words
        relative = posixpath.relpath(there, posixpath.dirname(here) or ".")
        return f"{picture}[{words}]({relative}{hash_sign}{anchor})"

    pieces = _CODE.split(text)
    return "".join(piece if number % 2 else _LINK.sub(changed, piece) for number, piece in enumerate(pieces))


def notebook_page(file: Path) -> str:
    """A notebook as Markdown: its texts, and its cells of code. They hold no outputs."""
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    parts = []
    for cell in cells:
        source = "".join(cell["source"]).strip()
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
    name = file.relative_to(ROOT).as_posix()
    return "\n\n".join([*parts, f"*This page is the notebook `{name}`: open it with Jupyter, or in VS Code.*\n"])


def commands_page() -> str:
    """The help of every command, as `pdiff COMMAND --help` prints it."""
    import typer.main
    from typer.testing import CliRunner

    from pdiff_hub.cli import app

    group: Any = typer.main.get_command(app)
    parts = [
        "# Commands\n\nWhat `pdiff COMMAND --help` prints. "
        "Every error is one sentence; a second start of a stopped run goes on where it was.\n"
    ]
    for name in group.commands:
        done = CliRunner().invoke(app, [name, "--help"], prog_name="pdiff", terminal_width=88)
        parts.append(f"## pdiff {name}\n\n```text\n{done.output.strip()}\n```\n")
    return "\n".join(parts)


GENERATED = {"commands.md": commands_page}


def on_files(files: Any, *, config: Any) -> Any:
    """Adds the pages and pictures that are not in docs/."""
    from mkdocs.structure.files import File

    def add(path: str, **content: Any) -> None:
        files.append(File.generated(config, path, **content))

    for pattern in ELSEWHERE:
        for file in sorted(ROOT.glob(pattern)):
            path = file.relative_to(ROOT).as_posix()
            if file.suffix == ".md":
                add(path, content=_FRONT_MATTER.sub("", file.read_text(encoding="utf-8")))
            else:
                add(path, abs_src_path=str(file))
    for file in sorted(ROOT.glob(NOTEBOOKS)):
        add(f"notebooks/{file.stem}.md", content=notebook_page(file))
    for path, make in GENERATED.items():
        add(path, content=make())
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Links as the site needs them."""
    from mkdocs.exceptions import PluginError

    path = page.file.src_uri
    if path in GENERATED:
        return markdown
    if path.startswith("notebooks/"):
        file = f"examples/{path.removesuffix('.md')}.ipynb"
    else:
        file = path if (ROOT / path).is_file() else f"{DOCS}/{path}"
    try:
        return with_site_links(markdown, file)
    except ValueError as error:
        raise PluginError(str(error)) from error
