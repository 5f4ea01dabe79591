"""Builds sdist and wheel into dist/, looks into them, and runs the wheel in a fresh environment: `make package`.

The wheel is built twice, from the tree and from the sdist, and both have to hold the same bytes. What a package index
would refuse, `twine check --strict` refuses here. The environment holds nothing but the wheel; what semmae depends on
it finds where it is installed already, for PyTorch alone is gigabytes. So the files that are run are those of the
wheel: a template or `py.typed` that was left out of it is missed.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
LARGEST = {".whl": 1_000_000, ".gz": 6_000_000}  # bytes; weights or runs that slipped in are larger
JUNK = ("__pycache__", ".pyc", ".pytest_cache", ".safetensors", ".ckpt", ".pth", ".pt", ".onnx", "/runs/", "/site/")
SMALL_DEMO = (
    *("--images", "32", "--image-size", "32", "--batch-size", "8", "--workers", "0"),
    *("--teacher-epochs", "1", "--epochs", "1"),
)


def main() -> None:
    """Build, check and run; ends with exit code 1 and a line at the first fault."""
    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="semmae-package-") as scratch:
        sdist, wheel = build(dist, Path(scratch) / "from-sdist")
        check_sdist(sdist)
        check_wheel(wheel)
        call(sys.executable, "-m", "twine", "check", "--strict", str(sdist), str(wheel))
        run_installed(wheel, Path(scratch) / "fresh")
    for path in (sdist, wheel):
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1e6:.2f} MB, checked")


def build(dist: Path, other: Path) -> tuple[Path, Path]:
    """The sdist, and the wheel made from the tree, which is the same as the one made from the sdist."""
    tool = (sys.executable, "-m", "build", "--no-isolation", "--outdir")
    call(*tool, str(dist), "--sdist", "--wheel", str(ROOT))
    (sdist,), (wheel,) = dist.glob("*.tar.gz"), dist.glob("*.whl")
    unpacked = other / "unpacked"
    with tarfile.open(sdist) as archive:
        archive.extractall(unpacked, filter="data")
    call(*tool, str(other), "--wheel", str(unpacked / sdist.name.removesuffix(".tar.gz")))
    (again,) = other.glob("*.whl")
    expect(contents(again) == contents(wheel), f"{sdist.name} builds another {wheel.name} than the tree does")
    return sdist, wheel


def contents(wheel: Path) -> dict[str, bytes]:
    """Every file of a wheel by name."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def check_wheel(wheel: Path) -> None:
    """The package as it lies in src/, byte for byte, its metadata, and nothing else."""
    held = contents(wheel)
    info = f"{wheel.name.rsplit('-', 3)[0]}.dist-info/"
    source = ROOT / "src"
    lying = {
        path.relative_to(source).as_posix(): path.read_bytes()
        for path in (source / "semmae").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    packed = {name: data for name, data in held.items() if not name.startswith(info)}
    expect(packed == lying, f"{wheel.name} and src/ differ in {sorted(packed.keys() ^ lying.keys()) or 'contents'}")
    expect("semmae/py.typed" in packed, f"{wheel.name} has no semmae/py.typed")
    expect(f"{info}licenses/LICENSE" in held, f"{wheel.name} has no licence")
    check_size(wheel)


def check_sdist(sdist: Path) -> None:
    """No caches, weights or runs; and what the tests read is there."""
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    junk = sorted(name for name in names if any(mark in f"/{name}" for mark in JUNK))
    expect(not junk, f"{sdist.name} holds {junk[:5]}")
    wanted = {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "Makefile", "requirements.lock"}
    expect(wanted <= names, f"{sdist.name} lacks {sorted(wanted - names)}")
    for folder in ("src/semmae", "tests", "docs", "examples", "benchmarks", "tools"):
        expect(any(name.startswith(f"{folder}/") for name in names), f"{sdist.name} lacks {folder}/")
    check_size(sdist)


def check_size(path: Path) -> None:
    """Refuse what is larger than code and pictures explain."""
    size, most = path.stat().st_size, LARGEST[path.suffix]
    expect(size <= most, f"{path.name} has {size} bytes, more than {most}: what slipped in?")


def run_installed(wheel: Path, fresh: Path) -> None:
    """Install the wheel into a new environment; help, an import from it, and the whole way on drawn creatures."""
    venv.create(fresh, with_pip=False)
    python, command = fresh / "bin" / "python", fresh / "bin" / "semmae"
    call(sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel))
    (site,) = fresh.glob("lib/python*/site-packages")
    # Only now, or pip would find an installed semmae there. Python reads no .pth files in a folder named by one: an
    # editable semmae stays unseen.
    (site / "outer.pth").write_text("".join(f"{path}\n" for path in outer_packages()))
    version = call(str(command), "--version").strip()
    expect(version == f"semmae {wheel.name.split('-')[1]}", f"{wheel.name} gives its version as {version!r}")
    expect("--encoder" in call(str(command), "knn", "--help"), "semmae knn --help does not name --encoder")
    where = call(str(python), "-c", "import semmae; print(semmae.__file__)").strip()
    expect(Path(where).is_relative_to(site), f"imported {where}, not the wheel's files")
    out = fresh / "demo"
    call(str(command), "demo", "--out", str(out), *SMALL_DEMO)
    pages = [page.relative_to(out).as_posix() for page in out.rglob("*.html")]
    expect({"run/report.html", "run/parts/parts.html"} <= set(pages), f"the demo wrote only {pages}")


def outer_packages() -> Iterator[str]:
    """Where this Python's packages lie."""
    yield from {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}


def call(*command: str) -> str:
    """Run a command outside of the tree, where src/ cannot be imported by chance; returns what it printed."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, cwd=tempfile.gettempdir(), env=clean, capture_output=True, text=True)
    expect(done.returncode == 0, f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def expect(true: bool, fault: str) -> None:
    """End with the fault unless it is true."""
    if not true:
        sys.exit(f"make package: {fault}")


if __name__ == "__main__":
    main()
