"""Tracebacks and endless work: names, checkpoints, configurations, places, files that are none, signals."""

import functools
import io
import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from formats import test_files as hostile, test_forms as forms
from verbs import test_damaged_resume

from attacks.desk import SECONDS, TRAIN, Desk, attack, child_of, command, error_line, patched, picture, refused, works


@attack("C1", "names that are not UTF-8, through knn, probe and embed, and again")
def _(desk: Desk) -> int:
    with desk.copy() as own:
        data = own.root / os.fsdecode(b"f\xf6tos\xff")
        shutil.copytree("photos", data)
        (data / "cat").rename(data / os.fsdecode(b"\xff\xfe"))
        for path in list((data / "dog").iterdir()):
            path.rename(path.with_name(os.fsdecode(b"caf\xe9") + path.name))
        os.truncate(next((data / "dog").iterdir()), 50)
        given = ["--data", str(data), "--encoder", "run", "--workers", "0", "--out"]
        for again in range(2):
            works(["knn", *given, "knn"])
            works(["probe", *given, "probe"])
            for suffix in (".npz", ".parquet", ".safetensors"):
                works(["embed", *given, f"{again}{suffix}"])
        assert b"caf\xe9" in Path("knn/skipped.csv").read_bytes()
    return 10


class Resumed:
    """A run of pretrain that was stopped, made once."""

    folder: Path | None = None

    @classmethod
    def of(cls, desk: Desk) -> Path:
        if cls.folder is None:
            from semmae.train import stopping

            out = desk.root.parent / "stopped"
            real = stopping.Keeper._wish
            stopping.Keeper._wish = lambda self, on, due: (
                stopping.Wish.STOP if on.global_step == 2 else real(self, on, due)
            )  # type: ignore[method-assign]
            try:
                words = TRAIN.replace("--epochs 1", "--epochs 2")
                code, _, err = command(f"pretrain --data {desk.root / 'photos'} --masking random --out {out} {words}")
                assert code in (130, 143), err
            finally:
                stopping.Keeper._wish = real  # type: ignore[method-assign]
            cls.folder = out
        return cls.folder


def damaged_checkpoint(damage: str, desk: Desk) -> None:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(shutil.copytree(Resumed.of(desk), Path(folder) / "run"))
        test_damaged_resume.DAMAGE[damage](out / test_damaged_resume.LAST)
        code, _, err = command(["pretrain", "--out", str(out), "--resume"])
        assert code == 2 and "last.ckpt" in error_line(err), err
        assert not (out / "encoder").exists()


for damage in test_damaged_resume.DAMAGE:
    attack("C2", f"last.ckpt: {damage}")(functools.partial(damaged_checkpoint, damage))


def among_photos(make: Callable[[Path], object], desk: Desk) -> None:
    with desk.copy() as own:
        make(own.root / "photos/cat/zz.jpg")
        began = time.monotonic()
        works("knn --encoder run --data photos --out knn --workers 0")
        assert time.monotonic() - began < SECONDS
        assert "zz.jpg" in Path("knn/skipped.csv").read_text()


def claims_to_be_huge(kind: str) -> Callable[[Path], object]:
    def make(path: Path) -> None:
        raw = io.BytesIO()
        picture(np.random.default_rng(0)).save(raw, kind)
        content = bytearray(raw.getvalue())
        side = (65500).to_bytes(2, "big")
        if kind == "JPEG":
            at = content.index(b"\xff\xc0") + 5
            content[at : at + 4] = side * 2
        else:
            import zlib

            content[16:24] = (65500).to_bytes(4, "big") * 2
            content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
        path.write_bytes(content)

    return make


for name, make in {
    "a FIFO": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a dangling link": lambda path: path.symlink_to("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path),
    "terabytes of zeros": lambda path: (path.touch(), os.truncate(path, 2**41)),
    "a JPEG of 65500 x 65500": claims_to_be_huge("JPEG"),
    "a PNG of 65500 x 65500": claims_to_be_huge("PNG"),
}.items():
    attack("C3", f"among the images: {name}")(functools.partial(among_photos, make))


def hostile_checkpoint(name: str, desk: Desk) -> None:
    write, suffix = hostile.REFUSED[name]
    with desk.copy() as own:
        write(own.root / f"evil{suffix}")
        refused(own, f"knn --encoder evil{suffix} --num-heads 1 --data photos --out new", "evil")


for name in hostile.REFUSED:
    attack("C3", f"a checkpoint: {name}")(functools.partial(hostile_checkpoint, name))


def spoilt_config(name: str, content: str | bytes, desk: Desk) -> None:
    with desk.copy() as own:
        path = own.root / "run/encoder/config.json"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            whole = json.loads(path.read_text())
            section, key = name.split(".")
            whole[section][key] = json.loads(content)
            path.write_text(json.dumps(whole))
        shutil.rmtree("run/autoencoder")
        refused(own, "knn --encoder run/encoder --data photos --out new")


for name, content in {
    "model_args.depth": "1000000000", "model_args.embed_dim": "1000000000", "model_args.num_heads": "0",
    "model_args.patch_size": '"eight"', "model_args.mlp_ratio": "-1", "model_args.img_size": "[]",
    "semmae.spec": "[]", "semmae.kind": "3", "nested": b'{"a":' * 100_000, "no UTF-8": b"\xff\xfe{}", "empty": b"",
    "a list": b"[1, 2]",
}.items():  # fmt: skip
    attack("C3", f"config.json: {name}")(functools.partial(spoilt_config, name, content))


EDITS: dict[str, bytes] = {
    "empty": b"", "a list": b"[]", "text": b'"x"', "cut": b'{"a": ', "no UTF-8": b"\xff\xfe\x00",
    "nested": b"[" * 100_000,
    "other types": b'{"protocol": 3, "top1": "high", "stage": 7, "finished": "no", "minutes": {}, "images": []}',
}  # fmt: skip


def edited(name: str, content: bytes, desk: Desk) -> None:
    with desk.copy():
        works("knn --encoder run --data photos --out knn --workers 0")
        Path("knn", name).write_bytes(content)
        code, _, err = command("report knn")
        assert code in (0, 2), err
        if code:
            assert name in error_line(err), err


for name in ("results.json", "config.yaml", "skipped.csv", "summary.json", "metrics.jsonl"):
    for edit, content in EDITS.items():
        attack("C4", f"{name}: {edit}")(functools.partial(edited, name, content))


PLACES = (
    "", "nowhere", "~nobody-here/x", "/proc/x", "/dev/null/x", "/dev/zero", "x" * 300, "x/" * 3000, "a\0b",
    "https://example.org/a.tar", "s3://bucket/photos", "photos.zip", "run/encoder/config.json",
)  # fmt: skip
for place in PLACES:
    for option in ("--data", "--encoder", "--config"):
        given = {"--data": "photos", "--encoder": "run", option: place}
        line = ["knn", "--out", "new", *(word for pair in given.items() for word in pair)]
        attack("C5", f"{option} {place[:30]!r}")(functools.partial(lambda desk, line: refused(desk, line), line=line))
for place in ("", "~nobody-here/x", "/proc/x", "/dev/null/x", "x" * 300, "a\0b", "x.parquet", "photos/cat"):
    line = ["knn", "--data", "photos", "--encoder", "run", "--workers", "0", "--out", place]
    attack("C5", f"--out {place[:30]!r}")(functools.partial(lambda desk, line: refused(desk, line), line=line))


@attack("C7", "SIGTERM while embedding")
def _(desk: Desk) -> None:
    with desk.copy():

        def stopped() -> None:
            from semmae.data.token_file import TokenFile

            patched(TokenFile, "write", lambda *_: os.kill(os.getpid(), signal.SIGTERM))

        words = "embed --encoder run --data photos --out x.npz --workers 0"
        child = child_of(words, stopped)
        assert child.ended(60) == 143, child.output
        assert "semmae embed --out x.npz --resume" in error_line(child.output)
        works("embed --out x.npz --resume")


@attack("C5", "a verb whose stdout, or stderr, is closed")
def _(desk: Desk) -> int:
    with desk.copy():
        for stream in (1, 2):

            def close(stream: int = stream) -> None:
                os.close(stream)

            child = child_of(f"knn --encoder run --data photos --out knn{stream} --workers 0", close)
            assert child.ended(60) == 0, child.output
            assert Path(f"knn{stream}/results.json").exists() and not Path(f"knn{stream}/.unfinished").exists()
    return 2


@attack("C6", "a checkpoint of which every tensor is another's")
def _(desk: Desk) -> None:
    with desk.copy() as own:
        state = forms.network(1, depth=24).state_dict()
        torch.save({name: value for name, value in state.items() if "mlp.fc2" not in name}, own.root / "odd.pth")
        refused(own, "knn --encoder odd.pth --data photos --out new", "odd.pth")


@attack("C7", "SIGTERM while labelling, and a second Ctrl-C while something waits")
def _(desk: Desk) -> int:
    with desk.copy():
        works("teacher --data photos --out mine --knn-every 0 " + TRAIN)

        def stopped() -> None:
            from semmae.data.part_store import PartStore

            patched(PartStore, "write", lambda *_: os.kill(os.getpid(), signal.SIGTERM))

        words = "parts --teacher mine --data photos --out parts2 --workers 0 --steps 2 --batch-size 8"
        child = child_of(words, stopped)
        assert child.ended(100) == 143, child.output
        assert "semmae parts --out parts2 --resume" in error_line(child.output)

        def stuck() -> None:
            from semmae.data.token_file import TokenFile

            def wait(*_: object) -> None:
                try:
                    os.kill(os.getpid(), signal.SIGINT)
                finally:
                    os.kill(os.getpid(), signal.SIGINT)
                    time.sleep(60)

            patched(TokenFile, "write", wait)

        began = time.monotonic()
        child = child_of("embed --encoder run --data photos --out x.npz --workers 0", stuck)
        assert child.ended(50) == 130, child.output
        assert time.monotonic() - began < 50
    return 2
