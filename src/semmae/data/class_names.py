"""Names of classes that lie beside masks: `classes.json`, or the lists that come with ADE20K."""

import csv
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from semmae.errors import UserError

_JSON = ("classes.json",)
_LISTS = ("objectInfo150.txt", "objectInfo150.csv")


def read_class_names(folder: Path) -> tuple[Path, Mapping[int, str]] | None:
    """The file that names the classes, and number in the masks → name, each unique; None where there is none.

    | file                       | form                                                            |
    |----------------------------|-----------------------------------------------------------------|
    | classes.json               | `["background", "hair", …]`, counted from 0, or `{"1": "wall"}`; |
    |                            | or such a list as "parts", beside other things                   |
    | objectInfo150.txt or .csv  | ADE20K's table: number first, name last                         |

    Raises:
        UserError: the file holds something else.
    """
    for name in (*_JSON, *_LISTS):
        path = folder / name
        if path.is_file():
            known = _of_json(path) if name in _JSON else _of_list(path)
            if not known or min(known) < 0 or max(known) > 254:
                raise UserError(f"{path}: {len(known)} classes; there must be some, numbered from 0 to 254")
            count = Counter(known.values())
            return path, {number: text if count[text] == 1 else f"{text} ({number})" for number, text in known.items()}
    return None


def _of_json(path: Path) -> dict[int, str]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            content = content.get("parts", content)
        if isinstance(content, list):
            return {number: str(name) for number, name in enumerate(content)}
        return {int(number): str(name) for number, name in content.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f'{path}: not a list of names ({error}); write ["background", "first class", …]') from error


def _of_list(path: Path) -> dict[int, str]:
    """Number in the first column, in the last the name with its synonyms, of which the first is kept."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file, delimiter="," if path.suffix == ".csv" else "\t"))
    numbered = [row for row in rows if row and row[0].strip().isdigit()]
    return {int(row[0]): row[-1].replace(";", ",").split(",")[0].strip() for row in numbered}
