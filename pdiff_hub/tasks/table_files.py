"""Which files of a folder `datasets` shall read, and as which split: tables, archives, and pictures with metadata.

`datasets` would guess both from words in paths, and passes over in silence what its guess leaves out.
"""

from __future__ import annotations

import glob
import logging
import re
from collections import Counter

from huggingface_hub import constants

from pdiff_hub.errors import PdiffError
from pdiff_hub.tasks.listing import Listing
from pdiff_hub.tasks.split_names import SPLIT_OF, split_named

logger = logging.getLogger(__name__)

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # beside pictures: a table of what they show
# The first of the kinds that are there most often is read.
_KINDS = (".parquet", ".arrow", ".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".tar", ".zip")
_NO_TABLES = {"config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", *METADATA}
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}.*")  # as the Hub's own files are called, in data/
_STATED = re.compile(r"---\n(.*\n)?configs:", re.DOTALL)
_Parts = tuple[str, ...]


def states_its_files(listing: Listing) -> bool:
    """Whether the folder says itself, as repositories of the Hub do, which file belongs to which split."""
    card = listing.folder / constants.REPOCARD_NAME
    if (listing.folder / ".huggingface.yaml").is_file():
        return True
    return card.is_file() and _STATED.match(card.read_text(encoding="utf-8", errors="replace")) is not None


def table_files(listing: Listing) -> list[_Parts]:
    """The tables or archives of the kind that most of them are of."""
    found = [parts for parts in listing.files if parts[-1] not in _NO_TABLES and _kind(parts) in _KINDS]
    counts = Counter(map(_kind, found))
    kind = max(_KINDS, key=lambda each: counts[each])  # the first of several that are as many
    if left := [parts for parts in found if _kind(parts) != kind]:
        logger.warning("%s: only *%s files are read, and not %r", listing.folder, kind, "/".join(left[0]))
    return [parts for parts in found if _kind(parts) == kind]


def splits_of(listing: Listing, files: list[_Parts]) -> dict[str, list[str]]:
    """Split -> patterns that each match one file. The folders' names decide, or else those of the files.

    ValueError if some of the files have the name of a split, and others have none.
    """
    shards = {parts: match[1] for parts in files if parts[:-1] == ("data",) and (match := _SHARD.fullmatch(parts[-1]))}
    by_folder = {parts: split for parts in files if (split := next(filter(None, map(split_named, parts[:-1])), None))}
    by_name = {parts: split for parts in files if (split := split_named(parts[-1].rpartition(".")[0]))}
    splits = shards or by_folder or by_name or dict.fromkeys(files, "train")
    if strangers := [parts for parts in files if parts not in splits]:
        of_split, other = "/".join(next(iter(splits))), "/".join(strangers[0])
        raise PdiffError(
            f"{listing.folder}: {of_split!r} is called as a split, and {other!r} is called as none, so it would "
            f"be left out; call all files, or none, after splits ({', '.join(SPLIT_OF)})."
        )
    return _patterns(listing, splits)


def splits_of_described(
    listing: Listing, pictures: list[_Parts], metadata: list[_Parts]
) -> dict[str, list[str]] | None:
    """As `splits_of`, of pictures and the metadata beside them. None if the metadata are beside the splits' folders."""
    files = [*pictures, *metadata]
    splits = {parts: split for parts in files if len(parts) > 1 and (split := split_named(parts[0]))}
    if len(splits) < len(files):
        if all(parts in splits for parts in pictures):
            return None
        splits = dict.fromkeys(files, "train")
    return _patterns(listing, splits)


def _patterns(listing: Listing, splits: dict[_Parts, str]) -> dict[str, list[str]]:
    tables: dict[str, list[str]] = {}
    for parts, split in splits.items():
        tables.setdefault(split, []).append(glob.escape(str(listing.folder.resolve().joinpath(*parts))))
    return tables


def _kind(parts: _Parts) -> str:
    return "." + parts[-1].rpartition(".")[2].lower()
