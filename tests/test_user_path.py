"""What a user gives as a path."""

from pathlib import Path

import pytest
from refusals import refused

from semmae.names import on_disk, user_path


def test_what_lies_there_and_what_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/a") == tmp_path / "a" and user_path(tmp_path) == tmp_path
    assert user_path(tmp_path / "new" / "x", "--out") == tmp_path / "new" / "x"
    assert user_path("~") == tmp_path and user_path("a~b") == Path("a~b")


@pytest.mark.parametrize("text", ["", "a\0", "x" * 300, "/".join("x" * 5000), "~nobody-of-this-name/x", "\ud800"])
def test_what_can_be_no_path(text: str) -> None:
    with refused("--out") as caught:
        user_path(text, "--out")
    assert "\0" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.jpg", "ä", "\udcff", "ä\udcff", "猫"])
def test_every_text_is_some_name_on_the_disk(name: str, tmp_path: Path) -> None:
    path = user_path(f"{tmp_path}/{name}")
    path.write_text("x")
    assert user_path(path) == path and on_disk(path.name) == on_disk(name)
