"""Fine-grained data sets as their authors pack them: classes and splits come from their own files.

| data set              | files                                          | train          | val                    |
|-----------------------|------------------------------------------------|----------------|------------------------|
| CUB-200-2011          | `images.txt`, three more .txt, `images/`       | 1 in the file  | 0 in the file          |
| Stanford Cars         | `cars_train/`, `cars_test/`, `devkit/*.mat`    | `cars_train/`  | `cars_test/`           |
| … in one archive      | `cars_annos.mat`, `car_ims/`                   | `test` is 0    | `test` is 1            |
| iNaturalist 2017–2019 | `trainYEAR.json`, `valYEAR.json`, their images | the first file | the second             |
| Oxford Flowers-102    | `imagelabels.mat`, `setid.mat`, `jpg/`         | trnid + valid  | tstid, as in transfer |

Names are paths below the folder, sorted, as those of a plain folder are: part labels made of one stay valid.
A folder is known by the files that no plain folder has; where others of them lack, the first is named.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import compress
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from semmae.errors import UserError, reason
from semmae.files import open_regular, read_json_value, read_text
from semmae.names import shown

_MOST_JSON = 2**31  # bytes; the largest of these files is iNaturalist's of 2017
# The folders that archives unpack to, and what may lie beside them there.
_UNPACKED = ("CUB_200_2011", "stanford_cars", "flowers-102")
_BESIDE = {"segmentations"}  # CUB's, of another archive
_CUB = ("images.txt", "image_class_labels.txt", "classes.txt", "train_test_split.txt")
_CARS = "annotations"  # the array in all files of Stanford Cars

_Row = tuple[str, str | None, str]  # name, class (None: unknown), "train" or "val"


@dataclass(frozen=True)
class Listing:
    """The images of a data set as its own files list them, sorted by name. The lists are of one length."""

    root: Path
    names: list[str]  # paths below root
    labels: list[str | None]
    splits: list[str]  # "train" or "val"
    lacking: str = ""  # the file without which there is no "val", or no class of its images

    def rows(self, split: str | None) -> tuple[list[str], list[str] | None]:
        """Names and classes of all images or those of a split, which must have some; None where some image has none."""
        chosen = [split in (None, own) for own in self.splits]
        names = list(compress(self.names, chosen))
        labels = [label for label in compress(self.labels, chosen) if label is not None]
        if split is not None and len(labels) < max(len(names), 1):
            what = "no classes of its" if names else "no"
            why = f"{self.lacking} is missing; put it there" if self.lacking else "its files list none; restore them"
            raise UserError(f"{self.root}: {what} {split!r} images, {why}")
        return names, labels if len(labels) == len(names) else None


def find_listing(folder: Path) -> Listing | None:
    """What `folder`, or the only folder in it, is as one of these data sets; None where it is none."""
    if not folder.is_dir():
        return None
    for root in (folder, *_unpacked(folder)):
        for read in _READERS:
            listing = read(root)
            if listing is not None:
                return listing
    return None


def _unpacked(folder: Path) -> list[Path]:
    """The folder of an unpacked archive, where nothing but it lies in this one."""
    found = [folder / name for name in _UNPACKED if (folder / name).is_dir()]
    if len(found) != 1:
        return []
    others = {path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")}
    return found if others <= {found[0].name, *_BESIDE} else []


def _listing(root: Path, listed_in: str, rows: Iterable[_Row], lacking: str = "") -> Listing:
    """The rows sorted and checked: each name once, below the root, in a folder that is there."""
    table = sorted(rows, key=itemgetter(0))
    names = [name for name, _, _ in table]
    for name, following in zip(names, names[1:], strict=False):
        if name == following:
            raise UserError(f"{root / listed_in}: lists {shown(name)} twice; keep one of the two")
    outside = next((name for name in names if name.startswith("/") or ".." in name.split("/")), None)
    if outside is not None:
        raise UserError(f"{root / listed_in}: {shown(outside)} lies outside the folder; write paths below it")
    counts: dict[str, int] = {}
    for name in names:
        counts[name.split("/", 1)[0]] = counts.get(name.split("/", 1)[0], 0) + 1
    for place, count in counts.items():
        if not os.path.lexists(root / place):
            raise UserError(f"{root}/{place[:255]}: missing, {listed_in} lists {count} images in it; unpack them there")
    return Listing(root, names, [label for _, label, _ in table], [split for _, _, split in table], lacking)


def _cub(root: Path) -> Listing | None:
    present = {name for name in _CUB if (root / name).is_file()}
    if len(present) < 2 or present <= {"images.txt", "classes.txt"}:  # these two may be anybody's
        return None
    _need(root, *_CUB)
    images, classes, names, in_train = (read_ids(root / name) for name in _CUB)
    rows: list[_Row] = []
    for image, name in images.items():
        number, train = classes.get(image), in_train.get(image)
        if number not in names or train not in ("0", "1"):
            wrong = _CUB[3] if train not in ("0", "1") else _CUB[1]
            raise UserError(f"{root / wrong}: lists nothing of image {shown(image)} ({shown(name)}); restore the file")
        rows.append((f"images/{name}", names[number], "train" if train == "1" else "val"))
    return _listing(root, _CUB[0], rows)


def read_ids(path: Path) -> dict[str, str]:
    """A file of lines `number value`."""
    found = {}
    for number, line in enumerate(read_text(path, errors="surrogateescape").splitlines(), 1):
        key, _, value = line.strip().partition(" ")
        if not value:
            raise UserError(f"{path}, line {number}: {shown(line)} is no number and value; restore the file")
        found[key] = value.strip()
    return found


def _cars(root: Path) -> Listing | None:
    if not (root / "cars_train").is_dir():
        return None
    devkit = next((root / place for place in ("devkit", "car_devkit/devkit") if (root / place).is_dir()), root)
    if not (devkit / "cars_train_annos.mat").is_file() and not (root / "cars_test").is_dir():
        return None
    if not (devkit / "cars_train_annos.mat").is_file():
        raise UserError(
            f"{root}: devkit/cars_train_annos.mat is missing; put the devkit there, or give the images alone: "
            f'"{root}/cars_*"'
        )
    _need(devkit, "cars_meta.mat")
    classes = _column(_read_mat(devkit / "cars_meta.mat", "class_names"))
    rows = _cars_of(root, devkit / "cars_train_annos.mat", "train", classes)
    if not (root / "cars_test").is_dir():
        return _listing(root, "cars_train_annos.mat", rows, "cars_test")
    labelled = "cars_test_annos_withlabels.mat"  # it came later, and lies in either place
    test = next((place / labelled for place in (devkit, root) if (place / labelled).is_file()), None)
    if test is None:
        if not (devkit / "cars_test_annos.mat").is_file():
            raise UserError(f"{devkit / labelled}: missing; put it there")
        test = devkit / "cars_test_annos.mat"
    rows += _cars_of(root, test, "val", classes)
    return _listing(root, "cars_train_annos.mat", rows, (devkit / labelled).relative_to(root).as_posix())


def _cars_of(root: Path, path: Path, split: str, classes: list[Any]) -> list[_Row]:
    table = _read_mat(path, _CARS, "fname", *(["class"] if split == "train" else []))
    folder = "cars_train" if split == "train" else "cars_test"
    if (root / folder / folder).is_dir():  # as one of the copies in circulation unpacks
        folder = f"{folder}/{folder}"
    names = _column(table["fname"])
    labels: list[Any] = [None] * len(names)
    if "class" in (table.dtype.names or ()):
        labels = _class_names(path, _column(table["class"]), classes)
    return [(f"{folder}/{name}", label, split) for name, label in zip(names, labels, strict=True)]


def _cars_in_one(root: Path) -> Listing | None:
    path = root / "cars_annos.mat"
    if not path.is_file():
        return None
    table = _read_mat(path, _CARS, "relative_im_path", "class", "test")
    labels = _class_names(path, _column(table["class"]), _column(_read_mat(path, "class_names")))
    splits = ("val" if test else "train" for test in _column(table["test"]))
    rows = zip(_column(table["relative_im_path"]), labels, splits, strict=True)
    return _listing(root, path.name, rows)


def _class_names(path: Path, numbers: list[Any], classes: list[Any]) -> list[Any]:
    """Names of classes counted from 1."""
    wrong = next((n for n in numbers if not isinstance(n, (int, float)) or not 1 <= n <= len(classes)), None)
    if wrong is not None:
        raise UserError(f"{path}: class {shown(wrong)}, of 1 to {len(classes)}; restore the file")
    return [classes[int(number) - 1] for number in numbers]


def _flowers(root: Path) -> Listing | None:
    files = ("imagelabels.mat", "setid.mat")
    if not any((root / name).is_file() for name in files) or not (root / "jpg").is_dir():
        return None
    _need(root, *files)
    labels = _numbers(root / files[0], "labels")
    rows: list[_Row] = []
    for array, split in (("trnid", "train"), ("valid", "train"), ("tstid", "val")):
        numbers = _numbers(root / files[1], array)
        if numbers and not 1 <= min(numbers) <= max(numbers) <= len(labels):
            raise UserError(f"{root / files[1]}: {array} beyond the {len(labels)} labels; restore the file")
        rows += [(f"jpg/image_{n:05d}.jpg", f"{labels[n - 1]:03d}", split) for n in numbers]
    return _listing(root, files[1], rows)


def _inaturalist(root: Path) -> Listing | None:
    years = sorted(path.stem.removeprefix("train") for path in root.glob("train20[0-9][0-9].json"))
    if not years:
        return None
    if len(years) > 1:
        raise UserError(f"{root}: train{years[0]}.json beside train{years[1]}.json; keep one year in a folder")
    train, val = (root / f"{split}{years[0]}.json" for split in ("train", "val"))
    rows = _read_annotations(train, "train")
    if rows is None:
        return None  # somebody's own file: a plain folder
    if val.is_file():
        rows += _read_annotations(val, "val") or []
    return _listing(root, train.name, rows, val.name)


def _read_annotations(path: Path, split: str) -> list[_Row] | None:
    """One class for each image of a file in COCO's form; None where it is of another form."""
    content = read_json_value(path, _MOST_JSON)
    try:
        images = {image["id"]: str(image["file_name"]) for image in content["images"]}
        of_image = {entry["image_id"]: entry["category_id"] for entry in content["annotations"]}
        names = {category["id"]: str(category["name"]) for category in content["categories"]}
        hash(tuple(of_image.values()))  # the numbers of classes are looked up
    except (KeyError, TypeError):
        return None
    if len(set(names.values())) < len(names):
        names = {number: f"{number:05d} {name}" for number, name in names.items()}
    wrong = next((name for image, name in images.items() if of_image.get(image) not in names), None)
    if wrong is not None:
        raise UserError(f"{path}: gives no class of {shown(wrong)}; restore the file")
    return [(name, names[of_image[image]], split) for image, name in images.items()]


def _need(folder: Path, *names: str) -> None:
    for name in names:
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: missing; put it there, or give the folder of the images alone")


def _read_mat(path: Path, variable: str, *fields: str) -> npt.NDArray[Any]:
    """A variable (N,) of a MATLAB file, with these fields where it is a table."""
    from scipy.io import loadmat  # late: a quarter of a second, for these data sets alone

    try:
        with open_regular(path) as file:
            values = np.atleast_1d(loadmat(file, squeeze_me=True)[variable])
        lacking = [name for name in fields if name not in (values.dtype.names or ())]
    except Exception as error:  # bytes that are no MATLAB file fail in as many ways as there are bytes
        fault = f"no variable {error}" if isinstance(error, KeyError) else reason(error)
        raise UserError(f"{path}: not readable ({fault}); restore the file") from error
    if lacking:
        raise UserError(f"{path}: {variable} lacks {', '.join(lacking)}; restore the file")
    return values


def _numbers(path: Path, variable: str) -> list[int]:
    """The whole numbers of a variable of a MATLAB file."""
    values = _read_mat(path, variable)
    if values.dtype.kind not in "iuf" or not np.isfinite(values).all():
        raise UserError(f"{path}: {variable} holds {values.dtype}, not whole numbers; restore the file")
    return [int(value) for value in values.ravel()]


def _column(values: npt.NDArray[Any]) -> list[Any]:
    """Texts or whole numbers as Python has them, however MATLAB boxed each."""
    return [np.asarray(value).item() for value in values]


_READERS: tuple[Callable[[Path], Listing | None], ...] = (_cub, _cars, _cars_in_one, _flowers, _inaturalist)
