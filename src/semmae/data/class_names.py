"""Names of classes that lie beside annotations: `classes.json`, or the lists that come with ADE20K."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from semmae.errors import UserError
from semmae.files import read_csv, read_json_value
from semmae.names import shown

_JSON = ("classes.json",)
_LISTS = ("objectInfo150.txt", "objectInfo150.csv")


def read_class_names(folder: Path) -> tuple[Path, Mapping[int, str]] | None:
    """The file that names the classes, and number in the annotations → name, each unique; None where there is none.

    | file                       | form                                                            |
    |----------------------------|-----------------------------------------------------------------|
    | classes.json               | `["background", "hair", …]`, counted from 0, or `{"1": "wall"}`; |
    |                            | or such a list as "parts", beside other things; 255 beside 0     |
    |                            | alone: `{"0": "background", "255": "road"}`                      |
    | objectInfo150.txt or .csv  | ADE20K's table: number first, name last                         |
    """
    for name in (*_JSON, *_LISTS):
        path = folder / name
        if path.is_file():
            known = _of_json(path) if name in _JSON else _of_list(path)
            if not known or min(known) < 0 or (max(known) > 254 and known.keys() != {0, 255}):
                raise UserError(
                    f"{path}: {len(known)} classes; there must be some, numbered from 0 to 254, or 0 and 255 alone"
                )
            count = Counter(known.values())
            return path, {number: text if count[text] == 1 else f"{text} ({number})" for number, text in known.items()}
    return None


def _of_json(path: Path) -> dict[int, str]:
    content = read_json_value(path)
    if isinstance(content, dict):
        content = content.get("parts", content)
    if isinstance(content, list):
        return {number: _name(path, name) for number, name in enumerate(content)}
    try:
        return {int(number): _name(path, name) for number, name in content.items()}
    except (ValueError, AttributeError) as error:
        raise UserError(
            f'{path}: not a list of names ({shown(content)}); write ["background", "first class", …]'
        ) from error


def _name(path: Path, name: Any) -> str:
    if not isinstance(name, (str, int, float)):
        raise UserError(f"{path}: {shown(name)} is no name of a class; write a text")
    return str(name)


def _of_list(path: Path) -> dict[int, str]:
    """Number in the first column, in the last the name with its synonyms, of which the first is kept."""
    rows = read_csv(path, "," if path.suffix == ".csv" else "\t")
    numbered = [row for row in rows if row[0].strip().isdecimal()]
    return {int(row[0]): row[-1].replace(";", ",").split(",")[0].strip() for row in numbered}
