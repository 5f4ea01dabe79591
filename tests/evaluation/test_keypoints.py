"""Keypoints: a case by hand, scikit-learn on the points, and files that are refused with a reason."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
from refusals import refused
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from semmae.evaluation.keypoints import Keypoints, keypoint_quality, read_keypoints

NAMES = ["owl/1.jpg", "owl/2.jpg", "wren/1.jpg"]
SIZES = {0: (100, 200), 1: (50, 50), 2: (80, 40)}  # height, width


def write(folder: Path, *lines: str, header: str = "image,part,x,y,visible") -> Path:
    path = folder / "keypoints.csv"
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def random_points(count: int, images: int, seed: int = 0) -> Keypoints:
    rng = np.random.default_rng(seed)
    parts = rng.integers(0, 5, count)
    return Keypoints(tuple("abcde"), rng.integers(0, images, count), parts, rng.random((count, 2)))


def test_points_by_hand(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "owl/1.jpg,beak,199,10,1",  # right, top: label 1
        "owl/1.jpg,tail,20,90,1",  # left, bottom: label 2
        "owl/1.jpg,eye,,,0",
        "wren/1.jpg,beak,0,0,1",  # left, top: label 0
        "wren/1.jpg,tail,40,80,true",  # the very corner belongs to the image: label 3
    )
    keypoints = read_keypoints(path, NAMES).of([0, 2]).relative([SIZES[0], SIZES[2]].__getitem__, ["owl", "wren"])
    assert keypoints.part_names == ("beak", "tail")
    assert keypoints.rows.tolist() == [0, 0, 1, 1]
    assert keypoints.places.tolist() == [[0.995, 0.1], [0.1, 0.9], [0, 0], [1, 1]]
    quarters = np.array([[0, 1], [2, 3]], np.uint8)
    # Two parts of two points, four labels of one: labels give the part (log 2) and as much besides.
    # No two points share a label: as many agreeing pairs as by chance.
    assert keypoint_quality(quarters, keypoints) == pytest.approx(
        {"keypoint_nmi": 100 * 2 * math.log(2) / (math.log(2) + math.log(4)), "keypoint_ari": 0}
    )
    right = np.array([[[0, 4], [7, 0]], [[4, 0], [0, 7]]], np.uint8)
    assert keypoint_quality(right, keypoints) == pytest.approx({"keypoint_nmi": 100, "keypoint_ari": 100})


def test_equals_scikit_learn_on_the_labels_under_the_points() -> None:
    grids = np.random.default_rng(1).integers(0, 6, (4, 9, 9), dtype=np.uint8)
    keypoints = random_points(300, 4)
    under = []
    for row, (x, y) in zip(keypoints.rows, keypoints.places, strict=True):
        under.append(grids[row][int(y * 9)][int(x * 9)])
    result = keypoint_quality(grids, keypoints)
    assert result["keypoint_nmi"] == pytest.approx(100 * normalized_mutual_info_score(keypoints.parts, under))
    assert result["keypoint_ari"] == pytest.approx(100 * adjusted_rand_score(keypoints.parts, under))


def test_names_of_labels_and_order_of_points_do_not_matter() -> None:
    grids = np.random.default_rng(1).integers(0, 6, (4, 9, 9), dtype=np.uint8)
    points = random_points(300, 4)
    order = np.random.default_rng(2).permutation(300)
    shuffled = Keypoints(points.part_names, points.rows[order], points.parts[order], points.places[order])
    renamed = np.random.default_rng(3).permutation(255)[grids].astype(np.uint8)
    assert keypoint_quality(renamed, shuffled) == pytest.approx(keypoint_quality(grids, points))


def test_one_grid_is_every_images_grid() -> None:
    grid = np.arange(9, dtype=np.uint8).reshape(3, 3)
    points = random_points(50, 4)
    assert keypoint_quality(grid, points) == keypoint_quality(np.stack([grid] * 4), points)


def test_unfinished_labels_are_refused() -> None:
    with refused("50 of 50 keypoints"):
        keypoint_quality(np.full((3, 3), 255, np.uint8), random_points(50, 4))


def test_all_are_visible_without_that_column(tmp_path: Path) -> None:
    header = "part, image, extra, y, x"
    path = write(tmp_path, "eye,owl/2.jpg,?,3,4", "eye,owl/1.jpg,?,5,6.5", "", header=header)
    keypoints = read_keypoints(path, NAMES)
    assert keypoints.rows.tolist() == [1, 0]
    assert keypoints.places.tolist() == [[4, 3], [6.5, 5]]
    assert len(keypoints.of([0])) == 1


def test_keypoints_of_images_left_out_are_left_out(tmp_path: Path) -> None:
    path = write(tmp_path, "broken.jpg,eye,3,4,1", "owl/1.jpg,eye,5,6,1")
    assert len(read_keypoints(path, NAMES, skipped=["broken.jpg"])) == 1
    with refused("'broken.jpg'"):
        read_keypoints(path, NAMES)


@pytest.mark.parametrize(
    ("lines", "header", "named"),
    [
        (["owl/1.jpg,1,2"], "image,x,y", ["keypoints.csv", "part", "image, x, y"]),
        (["1"], "a;b", ["image and part and x and y"]),
        (["2.jpg,eye,1,2,1"], None, ["line 2", "'2.jpg'", "3 images", '"owl/2.jpg"']),
        (["x.png,eye,1,2,1"], None, ["line 2", "'x.png'", "3 images", '"owl/1.jpg"']),
        (
            ["owl/1.jpg,eye,1,2,1", "owl/2.jpg,eye,1,2,1", "owl/1.jpg,eye,9,9,0"],
            None,
            ["line 4", "'eye'", "'owl/1.jpg'", "line 2"],
        ),
        (["owl/1.jpg,eye,one,2,1"], None, ["line 2", "x 'one'"]),
        (["owl/1.jpg,eye,1,,1"], None, ["line 2", "y ''", "visible 0"]),
        (["owl/1.jpg,eye,1,2,2"], None, ["line 2", "visible '2'", "1"]),
        (["owl/1.jpg,eye,1"], None, ["line 2", "''"]),
        (["owl/1.jpg,eye,1,2,0"], None, ["visible"]),
        ([], None, ["visible"]),
    ],
)
def test_faults_name_their_line(lines: list[str], header: str | None, named: list[str], tmp_path: Path) -> None:
    path = write(tmp_path, *lines, **({"header": header} if header else {}))
    with refused(*named):
        read_keypoints(path, NAMES)


def test_files_that_are_no_csv_are_refused(tmp_path: Path) -> None:
    with refused("absent.csv"):
        read_keypoints(tmp_path / "absent.csv", NAMES)
    for content in (b"\xff\xfe\x00image,part", b'image,part,x,y\n"', "image,part,x,y\n".encode("utf-16")):
        (tmp_path / "bytes.csv").write_bytes(content)
        with refused("not CSV"):
            read_keypoints(tmp_path / "bytes.csv", NAMES)


def test_names_of_images_need_not_be_utf_8(tmp_path: Path) -> None:
    name = os.fsdecode(b"owl/\xff.jpg")
    (tmp_path / "points.csv").write_bytes(b"image,part,x,y\nowl/\xff.jpg,eye,3,4\n")
    assert read_keypoints(tmp_path / "points.csv", [name]).places.tolist() == [[3, 4]]


@pytest.mark.parametrize("place", ["200.5,5", "-1,5", "5,101", "nan,5", "inf,5"])
def test_points_outside_their_image_are_refused(place: str, tmp_path: Path) -> None:
    path = write(tmp_path, "owl/2.jpg,eye,50,50,1", f"owl/1.jpg,beak,{place},1")
    with refused("'beak'", "'owl/1.jpg'", "outside", "200 x 100 pixels"):
        read_keypoints(path, NAMES).relative(SIZES.__getitem__, NAMES)


def test_the_file_of_cub(tmp_path: Path) -> None:
    """The same points as in CSV; images that are not among ours are left out."""
    (tmp_path / "parts").mkdir()
    (tmp_path / "images.txt").write_text("1 001.A/a.jpg\n2 001.A/b.jpg\n3 002.B/c.jpg\n")
    (tmp_path / "parts" / "parts.txt").write_text("1 back\n9 left leg\n")
    file = tmp_path / "parts" / "part_locs.txt"
    file.write_text("1 1 60.0 58.5 1\n1 9 0.0 0.0 0\n2 9 5.0 7.0 1\n3 1 8.0 9.0 1\n3 9 1.5 2.0 1\n")
    names = ["images/001.A/a.jpg", "images/002.B/c.jpg"]
    table = tmp_path / "points.csv"
    rows = ["a.jpg,back,60,58.5,1", "a.jpg,left leg,0,0,0"]
    lines = [f"images/001.A/{row}" for row in rows]
    lines += [f"images/002.B/c.jpg,{row}" for row in ("back,8,9,1", "left leg,1.5,2,1")]
    table.write_text("\n".join(["image,part,x,y,visible", *lines]))
    found, expected = read_keypoints(file, names), read_keypoints(table, names)
    assert found.part_names == expected.part_names == ("back", "left leg")
    for field in ("rows", "parts", "places"):
        np.testing.assert_array_equal(getattr(found, field), getattr(expected, field))
    file.write_bytes(b"1 1 60.0 \xff 1\n")
    with refused("part_locs.txt", "UTF-8"):
        read_keypoints(file, names)
    file.write_text("1 7 60.0 58.5 1\n")
    with refused("part_locs.txt, line 1", "'1 7 60.0 58.5 1'", "visible"):
        read_keypoints(file, names)
    (tmp_path / "images.txt").unlink()
    with refused("images.txt"):
        read_keypoints(file, names)
