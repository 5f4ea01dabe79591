"""What is built of semmae, what the package index shows of it, and how it is cited."""

import re
import runpy
import shutil
import subprocess
import tomllib
import zipfile
from importlib.metadata import PackageMetadata
from pathlib import Path
from typing import Any

import pytest
import yaml

import semmae

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
_LINK = re.compile(r"(!?)\[[^\]]*\]\(([^)\s]+)\)")


@pytest.fixture(scope="module")
def metadata() -> PackageMetadata:
    """What the build backend writes into wheel and sdist."""
    build_util = pytest.importorskip("build.util")
    return build_util.project_wheel_metadata(ROOT, isolated=False)


def test_links_and_pictures_of_the_index_page_are_files_of_the_repository(metadata: PackageMetadata) -> None:
    """At the tag of the version; and none is lost on the way from README.md."""
    text = str(metadata.get_payload())
    links = _LINK.findall(text)
    assert [link for _, link in links if not re.match("https://|#", link)] == []
    kinds = {"!": "raw", "": "blob"}
    named = []
    for picture, link in links:
        base = f"{PROJECT['urls']['Repository']}/{kinds[picture]}/v{semmae.__version__}/"
        if link.startswith(base):
            named.append(link.removeprefix(base))
        else:
            assert not link.startswith(PROJECT["urls"]["Repository"]), link
    in_repository = (link for _, link in _LINK.findall((ROOT / "README.md").read_text()))
    assert named == [link for link in in_repository if not re.match("https?://|#", link)] != []
    assert [name for name in named if not (ROOT / name.partition("#")[0]).is_file()] == []


def test_the_addresses_of_the_project_are_of_one_repository_and_its_files() -> None:
    urls = PROJECT["urls"]
    home = urls["Repository"]
    assert urls.keys() == {"Repository", "Documentation", "Changelog", "Issues"}
    assert urls["Issues"] == f"{home}/issues"
    for name in ("Documentation", "Changelog"):
        assert (ROOT / urls[name].removeprefix(f"{home}/blob/main/")).is_file(), name


def test_metadata_and_package_have_one_version_and_every_python(metadata: PackageMetadata) -> None:
    assert metadata["Version"] == semmae.__version__ == PROJECT["version"]
    pythons = {line for line in metadata.get_all("Classifier") or [] if re.search(r":: 3\.\d+$", line)}
    assert pythons == {f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)}


def test_the_citation_is_of_this_version_and_of_the_paper() -> None:
    """The keys that CFF 1.2.0 requires, of the software and of the paper."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= cited.keys()
    assert str(cited["version"]) == semmae.__version__
    assert (cited["license"], cited["repository-code"]) == (PROJECT["license"], PROJECT["urls"]["Repository"])
    assert [{"name": author["name"]} for author in cited["authors"]] == PROJECT["authors"]
    paper = cited["preferred-citation"]
    assert {"type", "title", "authors"} <= paper.keys() and paper["year"] == 2022
    assert [author["family-names"] for author in paper["authors"]] == ["Li", "Zheng", "Liu", "Wang", "Su", "Zheng"]
    assert "2206.10207" in paper["url"]


@pytest.mark.parametrize("lost", ["", "py.typed", ".jinja", "masking.py"])
def test_a_wheel_that_lacks_a_file_of_the_package_is_refused(lost: str, tmp_path: Path) -> None:
    check_wheel = runpy.run_path(str(ROOT / "tools" / "check_package.py"))["check_wheel"]
    source = ROOT / "src"
    files = [path for path in (source / "semmae").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    missing = next(path for path in files if path.name.endswith(lost)) if lost else None
    wheel = tmp_path / "semmae-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("semmae-0.1.0.dist-info/licenses/LICENSE", "")
        for path in files:
            if path != missing:
                archive.write(path, path.relative_to(source))
    if missing:
        with pytest.raises(SystemExit, match=re.escape(missing.name)):
            check_wheel(wheel)
    else:
        check_wheel(wheel)


def test_the_demo_is_set_up_without_the_development_tools() -> None:
    """What make would run in a fresh clone: versions of the lock file everywhere, all of it for the tests alone."""
    if shutil.which("make") is None:
        pytest.skip("needs make")
    stamps = ["RUN_STAMP=nowhere/.runs", "STAMP=nowhere/.installed"]
    said = {
        target: subprocess.run(
            ["make", "-n", target, *stamps], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        for target in ("demo", "test")
    }
    installs = {
        target: [line for line in text.splitlines() if " pip install " in line] for target, text in said.items()
    }
    assert all("requirements.lock" in line for line in installs["test"])
    assert [line for line in installs["demo"] if "--requirement" in line] == []
    assert installs["test"] == [*installs["demo"], installs["test"][-1]] and "--requirement" in installs["test"][-1]
    (backend,) = [line for line in installs["demo"] if "--editable" not in line]
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert backend.split()[-len(build) :] == [re.split("[<>=]", name)[0] for name in build]
