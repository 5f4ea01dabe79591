"""What every test runs under: its own caches, fixed seeds, one thread; and where the shared data lies."""

import gc
import io
import os
import random
import tempfile
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

# The data and reference vectors lie beside the repository, outside it: a fresh clone passes without them.
_SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_configure(config: pytest.Config) -> None:
    """Keep the suite off the user's caches and off the network; set here, before any library reads these."""
    caches = tempfile.TemporaryDirectory(prefix="semmae-tests-", ignore_cleanup_errors=True)
    config.add_cleanup(caches.cleanup)
    os.environ["SEMMAE_CACHE"] = str(Path(caches.name) / "semmae")
    os.environ["HF_HOME"] = str(Path(caches.name) / "huggingface")
    os.environ["HF_HUB_OFFLINE"] = "1"
    # Runs are compared exactly, and how a sum is split over threads changes its last bits.
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeds() -> None:
    """Make a test's outcome independent of which tests ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _first_rank() -> Iterator[None]:
    """Make a trainer that a test builds for one of several processes leave no rank behind.

    Lightning keeps it on a function, for the whole process: loggers of later tests would write nothing.
    """
    from lightning_utilities.core.rank_zero import rank_zero_only  # not above, as `tiny` below

    before = dict(vars(rank_zero_only))
    yield
    if "rank" in vars(rank_zero_only):  # from Lightning's import on, which the test may have been the first to do
        rank_zero_only.rank = before.get("rank", 0)


@pytest.fixture
def unread() -> Iterator[io.TextIOWrapper]:
    """A stream into a pipe whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        yield stream


@pytest.fixture
def refuse(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`tiny.refusal`: a command that is refused, in a line with all facts."""
    import tiny  # not above: it imports libraries that read the environment once, when imported

    return partial(tiny.refusal, capsys)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared data and reference vectors, or a skip where there is none."""
    if not _SHARED.is_dir():
        pytest.skip(f"needs the shared data and vectors at {_SHARED}, which is absent")
    return _SHARED


@pytest.fixture(scope="session")
def creatures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn images/CLASS/*.png and masks/CLASS/*.png."""
    import tiny  # not above: it imports libraries that read the environment once, when imported

    from semmae.data.creatures import draw_creatures

    folder = tmp_path_factory.mktemp("drawn") / "creatures"
    draw_creatures(folder, count=tiny.COUNT, size=48)
    return folder


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two blocks on 16 patches, 24 wide, that have learned nothing: those that seed 0 stands for as a baseline."""
    import tiny

    from semmae.models.vit import EncoderSpec

    return tiny.new_encoder(tmp_path_factory.mktemp("encoder") / "encoder", EncoderSpec(32, 8, 24, 2, 2))


@pytest.fixture(scope="session")
def whole_run(creatures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`semmae pretrain` the whole way, never interrupted: what other runs of its stages are compared with."""
    import tiny

    import semmae

    out = tmp_path_factory.mktemp("whole") / "run"
    epochs = {name: tiny.EPOCHS for name in ("epochs", "teacher_epochs")}
    with tiny.every_step():
        semmae.pretrain(
            data=creatures / "images", out=out, masks=creatures / "masks", teacher="own",
            **epochs, **tiny.SIZE, **tiny.TRAIN,
        )  # fmt: skip
    return out


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole verbs first, which take longest: none is left for the end, when other processes have nothing to do."""
    items.sort(key=lambda item: "verbs" not in item.path.parts)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Leave what was imported out of garbage collection, which looks at all of it each time."""
    gc.freeze()
    session.config.add_cleanup(gc.unfreeze)  # else some modules say that they leak


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a test has shown may hold names that are no UTF-8, which reports between processes cannot."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report
