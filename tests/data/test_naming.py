"""Companions of images: at their place, and never two of one name."""

from semmae.data.naming import companion_names


def test_a_companion_lies_where_its_image_does() -> None:
    assert companion_names(["cat/1.jpg", "2.tar.png", "dog/1.jpg"], ".png") == ["cat/1.png", "2.tar.png", "dog/1.png"]


def test_rows_of_tables_become_files_of_a_folder() -> None:
    names = ["a/train.parquet#0", "a/train.parquet#12", "val#3", "odd#name.jpg"]
    assert companion_names(names, ".npy") == [
        "a/train.parquet/0.npy", "a/train.parquet/12.npy", "val/3.npy", "odd#name.npy",
    ]  # fmt: skip


def test_images_that_differ_by_their_suffix_keep_it() -> None:
    assert companion_names(["1.jpg", "1.gif", "2.gif"], ".png") == ["1.jpg.png", "1.gif.png", "2.png"]
    # Shortened, the third would be called as the first is.
    assert companion_names(["1.jpg", "1.gif", "1.jpg.gif"], ".png") == ["1.jpg.png", "1.gif.png", "1.jpg.gif.png"]
