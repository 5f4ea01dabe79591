"""Tokens on disk: the same in how many goes they were collected, and labels that are made of them."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from refusals import refused
from safetensors.numpy import load_file

from semmae.data.attention import attention_ranks
from semmae.data.loaders import IMAGE_TOKEN, TOKENS, WholeDataset, normalise
from semmae.data.manifest import ImageSet, open_images
from semmae.data.part_store import PartStore
from semmae.data.token_store import TokenStore
from semmae.filters import guides
from semmae.formats.folders import digest, save_tensors
from semmae.labels import tokens as collecting
from semmae.labels.labelling import label_images, labelling_job
from semmae.labels.tokens import REDUCTIONS, Looking, collect_tokens, tokens_of
from semmae.models.parts import PartLearner, PartsSpec
from semmae.models.vit import Encoder, EncoderSpec
from semmae.train.teacher_tokens import fill_store, token_store

COLUMNS = ("last", "keys", "values", "attention", "image")


@pytest.fixture(scope="module")
def images(creatures: Path) -> ImageSet:
    return open_images(creatures / "images")


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(EncoderSpec(32, 8, 24, 3, 3)).eval()


def looking(encoder: Encoder, **how: Any) -> Looking:
    return Looking(
        **{"encoder": encoder, "size": 32, "grid": 9, "batch_size": 5, "workers": 0, "precision": "float32"} | how
    )


def a_learner(encoder: Encoder) -> PartLearner:
    return PartLearner(PartsSpec.of(encoder, 4))


def collected(
    folder: Path, images: ImageSet, encoder: Encoder, targets: TokenStore | None = None, **how: Any
) -> tuple[dict[str, np.ndarray], PartLearner]:
    learner = a_learner(encoder)
    store = collect_tokens(folder, images, learner, looking(encoder, **how), targets=targets)
    assert not len(store.missing())
    return {name: np.array(store.read(name)) for name in COLUMNS}, learner


def assert_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert [name for name in COLUMNS if not np.array_equal(found[name], expected[name])] == []


class Killed(BaseException):
    """As a signal: nothing catches it."""


def after(calls: int, real: Callable[..., Any]) -> Callable[..., Any]:
    """Does as the function, so many times; then it dies."""
    done: list[int] = []

    def counted(*arguments: Any, **named: Any) -> Any:
        if len(done) == calls:
            raise Killed
        done.append(0)
        return real(*arguments, **named)

    return counted


def test_tokens_are_those_of_the_encoder_reduced(images: ImageSet, encoder: Encoder, tmp_path: Path) -> None:
    found, learner = collected(tmp_path / "tokens", images, encoder)

    assert found["last"].shape == found["keys"].shape == (32, 16, 24) and found["image"].shape == (32, 3, 9, 9)
    pictures = torch.stack([WholeDataset(images, 32)[row]["image"] for row in (3, 30)])
    with torch.inference_mode():
        seen, heads, _ = learner.look(encoder, normalise(pictures, encoder.spec.mean, encoder.spec.std), attention=True)
    for name, own in seen._asdict().items():
        # Others are computed beside them, and tokens to fit to are kept in half precision.
        assert own.dtype == torch.float16 and found[name].dtype == np.float16
        assert np.abs(found[name][[3, 30]].astype(np.float32) - own.float().numpy()).max() < 5e-3, name
    assert np.array_equal(found["image"][[3, 30]], guides(pictures, 9).numpy())
    assert heads is not None and (found["attention"][[3, 30]] == attention_ranks(heads.mean(1)).numpy()).mean() > 0.9


@pytest.mark.parametrize("fitted", [256, 12])
@pytest.mark.parametrize("calls", [0, 1, 2, 4])
def test_tokens_of_a_run_that_was_killed_are_those_of_one_that_was_not(
    fitted: int, calls: int, images: ImageSet, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While they are written; with all images, and with some, among those that are fitted to."""
    monkeypatch.setattr(collecting, "images_to_fit", lambda *_: fitted)
    expected, whole = collected(tmp_path / "whole", images, encoder)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(TokenStore, "write", after(calls, TokenStore.write))
        collected(tmp_path / "killed", images, encoder)

    found, learner = collected(tmp_path / "killed", images, encoder)

    assert digest(learner.reductions) == digest(whole.reductions)
    assert_equal(found, expected)


def test_a_run_that_was_killed_before_anything_was_written_begins_anew(
    images: ImageSet, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = collected(tmp_path / "whole", images, encoder)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Encoder, "token_views", after(3, Encoder.token_views))
        collected(tmp_path / "killed", images, encoder)
    assert not list((tmp_path / "killed").glob("reductions*"))
    assert_equal(collected(tmp_path / "killed", images, encoder)[0], expected)


def targets_of(
    folder: Path, images: ImageSet, encoder: Encoder, size: int = 32, precision: Any = "float32"
) -> TokenStore:
    store = token_store(folder, images, encoder, size, precision)
    store.begin()
    return store


TOLERANCES = [(256, "float32", 1e-3), (12, "float32", 1e-3), (12, "bf16", 2e-2)]


@pytest.mark.parametrize(("fitted", "precision", "tolerance"), TOLERANCES)
def test_one_look_gives_what_an_autoencoder_is_to_predict(
    fitted: int, precision: Any, tolerance: float, images: ImageSet, encoder: Encoder, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """As a look for that alone; and the tokens for parts are the same as without."""
    monkeypatch.setattr(collecting, "images_to_fit", lambda *_: fitted)
    alone = targets_of(tmp_path / "alone", images, encoder, precision=precision)
    fill_store(alone, images, encoder, size=32, precision=precision, workers=0)
    targets = targets_of(tmp_path / "targets", images, encoder, precision=precision)
    expected, _ = collected(tmp_path / "without", images, encoder, precision=precision)
    found, _ = collected(tmp_path / "with", images, encoder, targets, precision=precision)

    assert_equal(found, expected)
    assert not len(targets.missing())
    for name in (TOKENS, IMAGE_TOKEN):
        ours, theirs = (np.array(each.read(name), np.float32) for each in (targets, alone))
        assert np.linalg.norm(ours - theirs) < tolerance * np.linalg.norm(theirs)
        assert np.abs(ours - theirs).max() < 5 * tolerance * np.abs(theirs).max()


@pytest.mark.parametrize("fitted", [256, 12])
@pytest.mark.parametrize("calls", [0, 3, 8, 9, 10, 11])
def test_of_a_killed_run_every_row_that_is_done_is_there_to_be_predicted(
    fitted: int, calls: int, images: ImageSet, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collecting, "images_to_fit", lambda *_: fitted)
    whole = targets_of(tmp_path / "whole-targets", images, encoder)
    expected, _ = collected(tmp_path / "whole", images, encoder, whole)
    targets = targets_of(tmp_path / "targets", images, encoder)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(TokenStore, "write", after(calls, TokenStore.write))
        collected(tmp_path / "killed", images, encoder, targets)
    done = load_file(tmp_path / "killed/tokens.safetensors")["done"]
    assert not done[targets.missing()].any()

    found, _ = collected(tmp_path / "killed", images, encoder, targets)

    assert_equal(found, expected)
    assert (tmp_path / "targets/tokens.safetensors").read_bytes() == (
        tmp_path / "whole-targets/tokens.safetensors"
    ).read_bytes()


def test_another_look_keeps_nothing_to_be_predicted(
    images: ImageSet, encoder: Encoder, creatures: Path, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    others = [
        targets_of(tmp_path / "few", open_images(creatures / "images", limit=20), encoder),
        targets_of(tmp_path / "encoder", images, Encoder(encoder.spec).eval()),
        targets_of(tmp_path / "size", images, encoder, size=40),
        targets_of(tmp_path / "precision", images, encoder, precision="bf16"),
    ]
    for number, targets in enumerate(others):
        collected(tmp_path / str(number), images, encoder, targets)
        assert len(targets.missing()) == targets.rows


def test_tokens_that_are_there_are_not_looked_at_again(
    images: ImageSet, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, whole = collected(tmp_path / "tokens", images, encoder)
    monkeypatch.setattr(Encoder, "token_views", after(0, Encoder.token_views))
    found, learner = collected(tmp_path / "tokens", images, encoder)
    assert_equal(found, expected)
    assert digest(learner.reductions) == digest(whole.reductions)
    other = a_learner(encoder)  # that of a finished training: its reductions are its own
    collect_tokens(tmp_path / "tokens", images, other, looking(encoder), fit=False)
    assert digest(other.reductions) != digest(whole.reductions)


def test_tokens_of_other_images_or_another_encoder_are_not_taken_over(
    images: ImageSet, encoder: Encoder, creatures: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "tokens"
    collected(folder, images, encoder)
    torch.manual_seed(1)
    changes: list[tuple[ImageSet, Encoder, dict[str, Any]]] = [
        (open_images(creatures / "images", limit=20), encoder, {}),
        (images, Encoder(encoder.spec).eval(), {}),
        (images, encoder, {"size": 40}),
        (images, encoder, {"grid": 8}),
    ]
    for number, (others, network, how) in enumerate(changes):
        found, learner = collected(folder, others, network, **how)
        expected, alone = collected(tmp_path / str(number), others, network, **how)
        assert_equal(found, expected)
        assert digest(learner.reductions) == digest(alone.reductions)


@pytest.mark.parametrize("fit", [True, False])
def test_tokens_that_half_precision_cannot_hold_are_refused(
    images: ImageSet, encoder: Encoder, tmp_path: Path, fit: bool
) -> None:
    loud = copy.deepcopy(encoder)
    loud.source = "loud"
    with torch.no_grad():
        loud.vit.norm.weight.mul_(1e6)
    with refused("--teacher loud", "65504"):
        collect_tokens(tmp_path / "tokens", images, a_learner(encoder), looking(loud), fit=fit)
    found, _ = collected(tmp_path / "tokens", images, encoder)  # nothing that is taken over
    assert all(np.isfinite(found[name]).all() for name in COLUMNS)


@pytest.mark.parametrize("damage", [b"", b"no tensors", None])
def test_reductions_that_are_damaged_are_refused(
    damage: bytes | None, images: ImageSet, encoder: Encoder, tmp_path: Path
) -> None:
    collected(tmp_path / "tokens", images, encoder)
    (path,) = (tmp_path / "tokens").glob("reductions*")
    path.write_bytes(path.read_bytes()[:-9] if damage is None else damage)
    with refused(path, f"remove {tmp_path / 'tokens'}"):
        collected(tmp_path / "tokens", images, encoder)


def test_reductions_of_another_width_are_refused(images: ImageSet, encoder: Encoder, tmp_path: Path) -> None:
    collected(tmp_path / "tokens", images, encoder)
    (path,) = (tmp_path / "tokens").glob("reductions*")
    save_tensors(PartLearner(PartsSpec(16, 16, 8)).reductions.state_dict(), path)
    with refused(path):
        collected(tmp_path / "tokens", images, encoder)


def test_a_folder_in_place_of_the_reductions_is_refused(images: ImageSet, encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "tokens" / REDUCTIONS).mkdir(parents=True)
    with refused(tmp_path / "tokens" / REDUCTIONS, "is a directory", "move that away"):
        collected(tmp_path / "tokens", images, encoder)


def labelled(
    out: Path, images: ImageSet, encoder: Encoder, learner: PartLearner, tokens: TokenStore | None, **how: Any
) -> PartStore:
    given: dict[str, Any] = {"size": 32, "batch_size": 5, "grid": 9, "precision": "float32", **how}
    return label_images(out, labelling_job(images, encoder, learner, **given), teacher="encoder", tokens=tokens)


@pytest.mark.parametrize(("fitted", "precision"), [(256, "float32"), (12, "float32"), (256, "bf16")])
def test_labels_of_tokens_are_those_of_the_encoder(
    fitted: int, precision: str, images: ImageSet, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collecting, "images_to_fit", lambda *_: fitted)
    learner = a_learner(encoder)
    store = collect_tokens(tmp_path / "tokens", images, learner, looking(encoder, grid=32, precision=precision))
    learner.start_from_clusters(tokens_of(store, slice(None)), 0)

    how: dict[str, Any] = {"grid": 32, "precision": precision}
    computed = labelled(tmp_path / "computed", images, encoder, learner, None, **how)
    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "token_views", after(0, Encoder.token_views))  # no image is looked at again
        made = labelled(tmp_path / "made", images, encoder, learner, store, **how)

    assert made.complete and len(np.unique(made.labels)) == 5
    assert (made.labels == computed.labels).mean() > 0.999
    assert np.abs(made.attention.astype(int) - computed.attention).max() <= 30  # a rank, where two patches tie
    assert (made.attention == computed.attention).mean() > 0.99
    assert (made.digests, made.label_names) == (computed.digests, computed.label_names)


@pytest.mark.parametrize("calls", [0, 1, 3])
def test_labels_of_a_run_that_was_killed_are_those_of_one_that_was_not(
    calls: int, images: ImageSet, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collecting, "most_rows", lambda: 8)
    learner = a_learner(encoder)
    store = collect_tokens(tmp_path / "tokens", images, learner, looking(encoder))
    learner.start_from_clusters(tokens_of(store, slice(None)), 0)
    whole = labelled(tmp_path / "whole", images, encoder, learner, store)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(PartStore, "write", after(calls, PartStore.write))
        labelled(tmp_path / "killed", images, encoder, learner, store)
    found = labelled(tmp_path / "killed", images, encoder, learner, store)
    assert np.array_equal(found.labels, whole.labels) and np.array_equal(found.attention, whole.attention)
