"""Cards on the Hub: filling in a template, and tables in Markdown.

Names in results, recipes and data sets are other people's text: they are values in a template, never templates.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pdiff_hub.errors import printable_lines

if TYPE_CHECKING:
    from huggingface_hub import DatasetCardData, EvalResult, ModelCardData


def render_card(template: Path, data: ModelCardData | DatasetCardData, **values: Any) -> str:
    """The text of a card: `template` (Jinja) filled in with `values`, with `data` as its front matter."""
    from huggingface_hub import DatasetCard, DatasetCardData, ModelCard

    kind: Any = DatasetCard if isinstance(data, DatasetCardData) else ModelCard
    text = str(kind.from_template(data, template_path=str(template), **values).content)
    return printable_lines(text.rstrip("\n")) + "\n"


def accuracy_result(name: str, accuracy: float, dataset: str, dataset_id: str | None) -> EvalResult:
    """An accuracy (a fraction, on the test split) for the front matter, under the name `name`.

    dataset: the data set's name for people. dataset_id: its id on the Hub, if it is there.
    """
    from huggingface_hub import EvalResult

    return EvalResult(
        task_type="image-classification",
        dataset_type=dataset_id or dataset,
        dataset_name=dataset,
        dataset_split="test",
        metric_type="accuracy",
        metric_name=name,
        metric_value=round(accuracy, 4),
    )


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown. In cells, line breaks become spaces and bars are escaped."""
    cells = [[" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in [columns, ["---"] * len(columns), *cells])
