"""Fine-grained data sets as they are packed, small: read alike by us and, where it knows them, by torchvision."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from refusals import refused
from scipy.io import savemat
from torchvision import datasets as tv

from semmae.data.manifest import open_images
from semmae.data.sources import has_split, open_source

WriteImages = Callable[..., Path]
BOX = {"bbox_x1": 1, "bbox_y1": 2, "bbox_x2": 9, "bbox_y2": 9}
CAR_CLASSES = ["AM General Hummer SUV 2000", "Ram C/V Cargo Van Minivan 2012", "smart fortwo Convertible 2012"]


def table(rows: list[dict[str, Any]]) -> np.ndarray:
    """A struct array (1, N), its numbers uint8, as MATLAB saved those of Stanford Cars."""
    kinds = [(name, object) for name in rows[0]]
    cells = [tuple(np.uint8(v) if isinstance(v, int) else v for v in row.values()) for row in rows]
    return np.array(cells, dtype=kinds)[None]


def texts(values: list[str]) -> np.ndarray:
    cells = np.empty((1, len(values)), dtype=object)
    cells[0] = values
    return cells


@pytest.fixture
def cub(tmp_path: Path, write_images: WriteImages) -> Path:
    """Ids are no file order, and the fourth image is in no folder of its class alone."""
    root = tmp_path / "unpacked" / "CUB_200_2011"
    classes = {1: "001.Black_footed_Albatross", 2: "002.Laysan_Albatross"}
    images = {1: (2, "b_2.jpg", 0), 2: (1, "a_9.jpg", 1), 3: (1, "a_10.jpg", 0), 4: (2, "b_1.jpg", 1)}
    write_images(root / "images", *(f"{classes[c]}/{name}" for c, name, _ in images.values()))
    (root / "images.txt").write_text("".join(f"{i} {classes[c]}/{name}\n" for i, (c, name, _) in images.items()))
    (root / "image_class_labels.txt").write_text("".join(f"{i} {c}\n" for i, (c, _, _) in images.items()))
    (root / "train_test_split.txt").write_text("".join(f"{i} {train}\n" for i, (_, _, train) in images.items()))
    (root / "classes.txt").write_text("".join(f"{c} {name}\n" for c, name in classes.items()))
    (root.parent / "attributes.txt").write_text("1 has_bill_shape::curved\n")
    write_images(root.parent / "segmentations", "001.Black_footed_Albatross/a_9.png")
    return root


@pytest.fixture
def cars(tmp_path: Path, write_images: WriteImages) -> Path:
    """As torchvision wants it: the labels of the test images beside the devkit."""
    root = tmp_path / "cars" / "stanford_cars"
    (root / "devkit").mkdir(parents=True)
    write_images(root, *(f"cars_{split}/{n:05d}.jpg" for split in ("train", "test") for n in (1, 2, 3)))
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": texts(CAR_CLASSES)})
    for path, classes in (
        ("devkit/cars_train_annos.mat", [2, 1, 3]),
        ("cars_test_annos_withlabels.mat", [3, 3, 1]),
        ("devkit/cars_test_annos.mat", None),
    ):
        rows = [{**BOX, "class": 0, "fname": f"{n:05d}.jpg"} for n in (1, 2, 3)]
        for row, number in zip(rows, classes or [0] * 3, strict=True):
            row["class"] = number
        if classes is None:
            rows = [{name: value for name, value in row.items() if name != "class"} for row in rows]
        savemat(root / path, {"annotations": table(rows)})
    return root


def inaturalist(root: Path, write_images: WriteImages, names: tuple[str, str] = ("Rana", "Bufo")) -> Path:
    """The form of 2018 and 2019: folders SUPER/CLASS, classes by number."""
    images = {7: ("Plantae/1/b.jpg", 1), 3: ("Aves/0/a.jpg", 0), 9: ("Aves/0/c.jpg", 0), 4: ("Plantae/1/d.jpg", 1)}
    write_images(root / "train_val2018", *(name for name, _ in images.values()))
    for split, ids in (("train", (7, 3)), ("val", (9, 4))):
        content = {
            "images": [{"id": i, "file_name": f"train_val2018/{images[i][0]}", "width": 28} for i in ids],
            "annotations": [{"id": i + 100, "image_id": i, "category_id": images[i][1]} for i in reversed(ids)],
            "categories": [{"id": i, "name": name, "supercategory": "x"} for i, name in enumerate(names)],
        }
        (root / f"{split}2018.json").write_text(json.dumps(content))
    return root


def flowers(root: Path, write_images: WriteImages) -> Path:
    write_images(root / "jpg", *(f"image_{n:05d}.jpg" for n in range(1, 8)))
    savemat(root / "imagelabels.mat", {"labels": np.array([[77, 77, 3, 102, 3, 102, 1]], np.uint8)})
    ids = {"trnid": [6, 2], "valid": [3, 7], "tstid": [1, 4, 5]}
    savemat(root / "setid.mat", {name: np.array([values], np.uint16) for name, values in ids.items()})
    return root


def pairs(data: Path, split: str | None) -> list[tuple[Path, str]]:
    """(file, class) of every image."""
    source = open_source(data, split)
    assert source.labels is not None
    return [(source.root / name, label) for name, label in zip(source.names, source.labels, strict=True)]


def test_cub(cub: Path) -> None:
    first, second = "images/001.Black_footed_Albatross", "images/002.Laysan_Albatross"
    whole, train, val = open_source(cub), open_source(cub, "train"), open_source(cub, "val")
    assert whole.names == [f"{first}/a_10.jpg", f"{first}/a_9.jpg", f"{second}/b_1.jpg", f"{second}/b_2.jpg"]
    assert whole.labels == ["001.Black_footed_Albatross"] * 2 + ["002.Laysan_Albatross"] * 2
    assert (train.names, val.names) == (whole.names[1:3], [whole.names[0], whole.names[3]])
    assert has_split(cub) and train.key == val.key == whole.key
    assert train.read(0) == (cub / train.names[0]).read_bytes() and train.sizes[0] == len(train.read(0))


def test_the_names_are_those_of_a_plain_folder(cub: Path) -> None:
    """So that the digest, by which part labels know their images, is that of the same files read as a folder."""
    digest = open_images(cub).digest
    for name in ("images.txt", "classes.txt"):
        (cub / name).unlink()
    (cub / "image_class_labels.txt").unlink()
    plain = open_images(cub)
    assert plain.digest == digest and set(plain.labels or ()) == {"images"}


def test_the_folder_that_the_archive_unpacks_to(cub: Path) -> None:
    assert open_source(cub.parent).names == open_source(cub).names and has_split(cub.parent)
    assert open_source(cub.parent).key == open_source(cub).key
    shutil.copytree(cub / "images", cub.parent / "more")  # of several folders none is taken silently
    assert len(open_source(cub.parent)) == 9 and not has_split(cub.parent)


def test_stanford_cars_as_torchvision_reads_them(cars: Path) -> None:
    for split, theirs in (("train", "train"), ("val", "test")):
        known = tv.StanfordCars(cars.parent, split=theirs)
        expected = [(Path(path), known.classes[number]) for path, number in known._samples]
        assert pairs(cars, split) == expected and pairs(cars.parent, split) == expected
    assert pairs(cars, "train")[0] == (cars / "cars_train" / "00001.jpg", "Ram C/V Cargo Van Minivan 2012")
    assert len(open_source(cars)) == 6 and has_split(cars)


def test_stanford_cars_without_labels_of_the_test_images(cars: Path, caplog: pytest.LogCaptureFixture) -> None:
    labelled = pairs(cars, "val")
    (cars / "cars_test_annos_withlabels.mat").rename(cars / "devkit" / "cars_test_annos_withlabels.mat")
    assert pairs(cars, "val") == labelled
    (cars / "devkit" / "cars_test_annos_withlabels.mat").unlink()
    with refused("'val'", "devkit/cars_test_annos_withlabels.mat"):
        open_source(cars, "val")
    assert len(pairs(cars, "train")) == 3 and has_split(cars)
    with caplog.at_level("INFO"):
        whole = open_images(cars, workers=0).source
    assert len(whole) == 6 and whole.labels is None
    assert "devkit/cars_test_annos_withlabels.mat" in caplog.text


def test_other_packings_of_stanford_cars(cars: Path, tmp_path: Path, write_images: WriteImages) -> None:
    """The archive with folders inside folders; the older one of all images; folders of classes."""
    expected = [label for split in ("train", "val") for _, label in pairs(cars, split)]
    nested = tmp_path / "nested"
    for split in ("train", "test"):
        shutil.copytree(cars / f"cars_{split}", nested / f"cars_{split}" / f"cars_{split}")
    shutil.copytree(cars / "devkit", nested / "car_devkit" / "devkit")
    shutil.copy(cars / "cars_test_annos_withlabels.mat", nested)
    found = [pair for split in ("train", "val") for pair in pairs(nested, split)]
    assert [label for _, label in found] == expected
    assert found[0][0] == nested / "cars_train" / "cars_train" / "00001.jpg" and found[0][0].is_file()

    old = write_images(tmp_path / "old", *(f"car_ims/{n:06d}.jpg" for n in range(1, 7)))
    numbers = [CAR_CLASSES.index(label) + 1 for label in expected]
    rows = [
        {"relative_im_path": f"car_ims/{n:06d}.jpg", **BOX, "class": number, "test": int(n > 3)}
        for n, number in enumerate(numbers, 1)
    ]
    savemat(old / "cars_annos.mat", {"annotations": table(rows), "class_names": texts(CAR_CLASSES)})
    assert [label for split in ("train", "val") for _, label in pairs(old, split)] == expected
    assert open_source(old, "val").names == [f"car_ims/{n:06d}.jpg" for n in (4, 5, 6)] and has_split(old)

    classes = write_images(tmp_path / "classes", *(f"{split}/{CAR_CLASSES[2]}/1.jpg" for split in ("train", "test")))
    assert open_source(classes, "val").labels == [CAR_CLASSES[2]] and has_split(classes)


def test_a_single_image(cars: Path) -> None:
    """scipy squeezes a table of one row to none."""
    savemat(
        cars / "devkit" / "cars_train_annos.mat", {"annotations": table([{**BOX, "class": 2, "fname": "00002.jpg"}])}
    )
    assert pairs(cars, "train") == [(cars / "cars_train" / "00002.jpg", CAR_CLASSES[1])]


def test_inaturalist_2018_as_torchvision_reads_it(tmp_path: Path, write_images: WriteImages) -> None:
    root = inaturalist(tmp_path / "inat", write_images)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "2018").symlink_to(root / "train_val2018")  # it reads folders alone, and knows no splits
    known = tv.INaturalist(tmp_path / "theirs", version="2018")
    expected = {known.all_categories[number] + "/" + name: ("Rana", "Bufo")[number] for number, name in known.index}
    whole = open_source(root)
    assert whole.labels is not None
    assert dict(zip(whole.names, whole.labels, strict=True)) == {f"train_val2018/{k}": v for k, v in expected.items()}
    assert open_source(root, "train").names == ["train_val2018/Aves/0/a.jpg", "train_val2018/Plantae/1/b.jpg"]
    assert open_source(root, "val").labels == ["Rana", "Bufo"] and has_split(root)


def test_classes_of_the_same_name_stay_apart(tmp_path: Path, write_images: WriteImages) -> None:
    root = inaturalist(tmp_path, write_images, names=("Rana", "Rana"))
    assert open_source(root, "val").labels == ["00000 Rana", "00001 Rana"]


def test_inaturalist_without_a_validation_file(tmp_path: Path, write_images: WriteImages) -> None:
    root = inaturalist(tmp_path, write_images)
    (root / "val2018.json").unlink()
    assert not has_split(root) and len(open_source(root)) == 2
    with refused("'val'", "val2018.json"):
        open_source(root, "val")


def test_somebodys_own_json(tmp_path: Path, write_images: WriteImages) -> None:
    root = write_images(tmp_path, "a/1.jpg", "b/2.jpg")
    (root / "train2018.json").write_text('{"images": ["a/1.jpg"]}')
    assert open_source(root).labels == ["a", "b"]


def test_inaturalist_2021(tmp_path: Path, write_images: WriteImages, caplog: pytest.LogCaptureFixture) -> None:
    """Folders of classes; its tenth, train_mini, holds images of train again."""
    classes = [f"{n:05d}_Animalia_Annelida_Clitellata_Haplotaxida_Lumbricidae_Lumbricus_{n}" for n in range(2)]
    places = {"train": ("a", "b"), "train_mini": ("a",), "val": ("c",)}
    names = [f"{split}/{c}/{stem}.jpg" for split, stems in places.items() for c in classes for stem in stems]
    root = write_images(tmp_path / "both", *names)
    (tmp_path / "2021_train").symlink_to(root / "train")
    known = tv.INaturalist(tmp_path, version="2021_train")
    expected = sorted(
        (root / "train" / known.all_categories[n] / name, known.all_categories[n]) for n, name in known.index
    )
    assert pairs(root, "train") == expected
    with caplog.at_level("INFO"):
        assert len(open_source(root)) == 6 and has_split(root)
    assert "train_mini" in caplog.text
    shutil.rmtree(root / "train")
    assert open_source(root, "train").names == [f"train_mini/{c}/a.jpg" for c in classes] and has_split(root)
    assert open_source(root, "val").labels == classes


def test_flowers_as_torchvision_reads_them(
    tmp_path: Path, write_images: WriteImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = flowers(tmp_path / "flowers-102", write_images)
    monkeypatch.setattr(tv.Flowers102, "_check_integrity", lambda _: True)  # ours are smaller than what it knows
    theirs = {name: tv.Flowers102(tmp_path, split=name) for name in ("train", "val", "test")}
    found = {
        name: [(file, f"{label + 1:03d}") for file, label in zip(known._image_files, known._labels, strict=True)]
        for name, known in theirs.items()
    }
    assert pairs(root, "train") == sorted(found["train"] + found["val"])
    assert pairs(tmp_path, "val") == sorted(found["test"]) and has_split(root)


def test_what_is_missing_is_named(cub: Path, cars: Path, tmp_path: Path, write_images: WriteImages) -> None:
    def both_refuse(data: Path, *named: str) -> None:
        for call in (open_source, has_split):
            with refused(*named):
                call(data)

    for name in ("images.txt", "image_class_labels.txt", "classes.txt", "train_test_split.txt"):
        (cub / name).rename(cub / "away")
        both_refuse(cub, f"CUB_200_2011/{name}", "missing")
        (cub / "away").rename(cub / name)
    (cub / "image_class_labels.txt").write_text("1 2\n2 1\n4 7\n")
    both_refuse(cub, "image_class_labels.txt", "image '3'", "a_10.jpg")
    (cub / "classes.txt").write_text("1\n")
    both_refuse(cub, "classes.txt, line 1", "'1'")

    shutil.move(cars / "cars_train", tmp_path / "away")
    (cars / "cars_train").mkdir()
    (cars / "devkit" / "cars_meta.mat").rename(cars / "meta")
    both_refuse(cars, "devkit/cars_meta.mat", "missing")
    (cars / "devkit" / "cars_meta.mat").write_bytes(b"not MATLAB's")
    both_refuse(cars, "devkit/cars_meta.mat", "not readable")
    (cars / "meta").rename(cars / "devkit" / "cars_meta.mat")
    savemat(cars / "devkit" / "cars_train_annos.mat", {"annotations": table([{**BOX, "class": 9, "fname": "1.jpg"}])})
    both_refuse(cars, "cars_train_annos.mat", "class 9", "1 to 3")
    savemat(cars / "devkit" / "cars_train_annos.mat", {"annotations": table([{**BOX, "fname": "1.jpg"}])})
    both_refuse(cars, "cars_train_annos.mat", "lacks class")
    shutil.rmtree(cars / "devkit")
    both_refuse(cars, "devkit/cars_train_annos.mat", "missing", "cars_*")

    root = inaturalist(tmp_path / "inat", write_images)
    shutil.move(root / "train_val2018", root / "elsewhere")
    both_refuse(root, "inat/train_val2018", "missing", "train2018.json", "4 images")
    (root / "val2018.json").write_text("{")
    both_refuse(root, "val2018.json", "not JSON")
    (root / "train2019.json").write_text("{}")
    both_refuse(root, "train2018.json", "train2019.json")

    shelf = flowers(tmp_path / "flowers", write_images)
    (shelf / "setid.mat").unlink()
    both_refuse(shelf, "flowers/setid.mat", "missing")


def test_lists_that_lead_elsewhere(tmp_path: Path, write_images: WriteImages) -> None:
    root = inaturalist(tmp_path, write_images)
    text = (root / "train2018.json").read_text()
    (root / "train2018.json").write_text(text.replace("train_val2018/Aves/0/a.jpg", "../a.jpg"))
    with refused("../a.jpg", "outside"):
        open_source(root)
    (root / "train2018.json").write_text(text.replace("Aves/0/a.jpg", "Plantae/1/b.jpg"))
    with refused("train_val2018/Plantae/1/b.jpg", "twice"):
        open_source(root)


@pytest.mark.parametrize("content", ["[[1", "[" * 100_000, "[NaN]", "\xff\xfe"])
def test_annotations_that_are_no_json(content: str, tmp_path: Path, write_images: WriteImages) -> None:
    root = inaturalist(tmp_path, write_images)
    (root / "train2018.json").write_bytes(content.encode("latin-1"))
    with refused("train2018.json"):
        open_source(root)


def test_annotations_whose_classes_are_lists_are_somebodys_own(tmp_path: Path, write_images: WriteImages) -> None:
    root = inaturalist(tmp_path, write_images)
    content = json.loads((root / "train2018.json").read_text())
    content["annotations"][0]["category_id"] = [1, 2]
    (root / "train2018.json").write_text(json.dumps(content))
    assert open_source(root).labels is not None


def test_tables_of_text_where_numbers_should_be(tmp_path: Path, write_images: WriteImages) -> None:
    root = flowers(tmp_path, write_images)
    savemat(root / "imagelabels.mat", {"labels": ["a", "b"]})
    with refused("imagelabels.mat", "whole numbers"):
        open_source(root)
