"""Captions of images in `metadata.csv` or `metadata.jsonl`, as the `datasets` library lays them out.

Each line names an image by `file_name`, relative to the folder of the metadata file, and gives its `text` (or `caption`). Names are only
looked up among the images that were found: no file is opened because a line names it.
"""

import csv
import io
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import PurePosixPath

METADATA = ("metadata.csv", "metadata.jsonl")
_COLUMNS = ("text", "caption")


def captions_of(
    images: Sequence[str], metadata: Sequence[str], read: Callable[[str], bytes], *, outside: Collection[str], source: str
) -> tuple[str, ...] | None:
    """One caption for each image; None if there is no metadata file with captions.

    Args:
        images: their paths, relative to the root.
        metadata: paths of the metadata files, relative to the root.
        read: the bytes of one of these.
        outside: paths outside the root that a link leads to.
        source: the name of the root in errors.

    Raises:
        ValueError: for metadata that cannot be read, name a file outside the root or none at all, name one twice or leave one out.
    """
    known, captions = set(images), dict[str, str]()
    for file in metadata:
        where = f"{source}: {file}"
        if file in outside:
            raise ValueError(f"{where} is a link to a file outside the folder, which is not read; put the file itself there.")
        try:
            text = read(file).decode("utf-8-sig")
        except (OSError, ValueError, RuntimeError) as error:
            raise ValueError(f"{where} cannot be read: {str(error).strip('.')}; repair it, or set captions=False.") from None
        for number, record in _records(text, file, where):
            caption = next((record[column] for column in _COLUMNS if column in record), None)
            if caption is None and not any(column in record for column in _COLUMNS):
                continue  # metadata about something else
            name = _inside(record.get("file_name"), file, f"{where}, line {number}")
            if name not in known or name in outside:
                fault = "is a link to a file outside the folder" if name in outside else "is not an image there"
                raise ValueError(f"{where}, line {number} names {name}, which {fault}; correct it, or set captions=False.")
            if not isinstance(caption, str) or not caption:
                raise ValueError(f"{where}, line {number} has no caption for {name}; write one, or set captions=False.")
            if captions.setdefault(name, caption) != caption:
                raise ValueError(f"{where}, line {number} gives {name} a second caption; keep one, or set captions=False.")
    if not captions:
        return None
    missing = [name for name in images if name not in captions]
    if missing:
        raise ValueError(
            f"{source}: {len(missing)} of {len(images)} images have no caption, {missing[0]} the first; "
            f"add them to {metadata[0]}, or set captions=False."
        )
    return tuple(captions[name] for name in images)


def _inside(name: object, file: str, where: str) -> str:
    """The path, from the root, that a line names."""
    if not isinstance(name, str) or not name:
        raise ValueError(f"{where} has no file_name; name the image, or set captions=False.")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{where} names {name!r}, which points outside the folder; correct it, or set captions=False.")
    return str(PurePosixPath(file).parent / path)


def _records(text: str, file: str, where: str) -> Iterator[tuple[int, dict[str, object]]]:
    """The lines of the file with their line numbers."""
    if file.endswith(".csv"):
        rows = csv.DictReader(io.StringIO(text, newline=""))
        try:
            for row in rows:
                yield rows.line_num, dict(row)
        except csv.Error as error:
            raise ValueError(f"{where}, line {rows.reader.line_num} is not CSV: {error}; correct it, or set captions=False.") from None
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}, line {number} is not JSON: {error}; correct it, or set captions=False.") from None
        if not isinstance(record, dict):
            raise ValueError(f"{where}, line {number} must be a JSON object with file_name, got {type(record).__name__}.")
        yield number, record
