"""Files that attack: nothing in them is executed, and what they claim costs neither time nor memory."""

import argparse
import collections
import os
import pathlib
import pickle
import struct
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from refusals import refused
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

from semmae.errors import UserError
from semmae.formats.files import read_file
from semmae.formats.open import load_encoder, load_mae


def archive(path: Path, content: bytes, compression: int = zipfile.ZIP_STORED, **more: bytes) -> None:
    """A file as torch.save writes it, around any pickle."""
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", content)
        file.writestr("archive/version", "3\n")
        file.writestr("archive/byteorder", "little")
        for name, data in more.items():
            file.writestr(f"archive/data/{name}", data)


class Call:
    """Pickled, this calls a function where it is loaded without care."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.call


class Options(argparse.Namespace):
    """A Namespace with a method that a BUILD would call."""

    def __setstate__(self, state: Any) -> None:
        os.system(state["command"])


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def attribute_of(owner: str, name: str) -> bytes:
    """Opcodes that get an attribute of a class that is let in."""
    return b"cbuiltins\ngetattr\n" + f"c{owner}\n".replace(" ", "\n").encode() + text(name) + b"\x86R"


def attacks(command: str) -> dict[str, Any]:
    """Objects, or opcodes, each of which would run a command in Python's own unpickler, or misuse what is let in."""
    scalar, system = np.float64(1).__reduce__()[0], Call(os.system, command)
    return {
        "os.system": system,
        "subprocess": Call(subprocess.call, command, state=None),
        "eval": Call(eval, f"__import__('os').system({command!r})"),
        "exec": Call(exec, f"import os; os.system({command!r})"),
        "numpy.load": Call(np.load, command, None, True),
        "a number of numpy's that is an object": Call(scalar, np.dtype("O"), system),
        "a number of numpy's type object": Call(scalar, np.dtype("O"), b"x" * 8),
        "a number of a structured type": Call(scalar, np.dtype([("a", "f8")]), b"x" * 8),
        "a number of gigabytes": Call(scalar, np.dtype("V1000000000"), b"x"),
        "a number of too few bytes": Call(scalar, np.dtype("f8"), b"x"),
        "a path of code": Call(pathlib.PurePosixPath, system),
        "a subclass of Namespace": Options(command=command),
        "Namespace of code": argparse.Namespace(output_dir=system),
        "a called attribute": b"\x80\x02" + attribute_of("argparse Namespace", "__init__") + text(command) + b"\x85R.",
        "a global called by getattr": b"\x80\x02cbuiltins\ngetattr\ncos\nos\n" + text("system") + b"\x86R.",
        "a module": b"\x80\x02cimportlib\nimport_module\n" + text("os") + b"\x85R.",
        "a stand-in as a function": b"\x80\x02cnumpy\nndarray\n)\x81" + text(command) + b"\x85R.",
        "torch.load": Call(torch.load, command),
    }


@pytest.mark.parametrize("name", attacks(""))
@pytest.mark.filterwarnings("error")
def test_nothing_of_a_file_is_called(name: str, tmp_path: Path) -> None:
    """In an archive, as a bare pickle, and as torch wrote before it had archives."""
    path, attack = tmp_path / "evil.pth", attacks(f"touch {tmp_path / 'executed'}")[name]
    content = attack if isinstance(attack, bytes) else pickle.dumps({"model": {}, "args": attack}, protocol=2)
    ways: list[Callable[[], object]] = [lambda: archive(path, content), lambda: path.write_bytes(content)]
    if attack is not content:
        old = {"model": attack, "args": attack}
        ways.append(lambda: torch.save(old, path, _use_new_zipfile_serialization=False))
    for write in ways:
        write()
        for load in (read_file, load_encoder, load_mae):
            with refused(path):
                load(path)
    assert not (tmp_path / "executed").exists()


def test_what_is_let_in_becomes_plain_values(tmp_path: Path) -> None:
    kinds = (np.float64(0.1), np.float32(2.5), np.int64(-7), np.bool_(True), np.uint8(255), np.dtype(">f4").type(1.5))
    args = argparse.Namespace(output_dir=pathlib.PurePosixPath("/a/b"), windows=pathlib.PureWindowsPath("c:/d"))
    big = Call(np.float64(1).__reduce__()[0], np.dtype(">f8"), struct.pack(">d", 3.25))
    torch.save({"numbers": kinds, "big": big, "args": args, "array": np.arange(3)}, tmp_path / "some.pth")

    content = read_file(tmp_path / "some.pth")

    assert content["numbers"] == (0.1, 2.5, -7, True, 255, 1.5) and content["big"] == 3.25
    assert all(type(number) in (float, int, bool) for number in content["numbers"])
    assert type(content["args"].output_dir) is str and content["args"].output_dir.endswith("a/b")
    assert type(content["args"].windows) is str
    assert not isinstance(content["array"], np.ndarray)


def a_state() -> dict[str, torch.Tensor]:
    sizes = {"img_size": 32, "patch_size": 16, "embed_dim": 192, "depth": 1, "num_heads": 3, "num_classes": 0}
    return VisionTransformer(**sizes).state_dict()


def contains_itself(path: Path) -> None:
    content: dict[str, Any] = {"epoch": 1}
    content["model"] = {"state_dict": content, "teacher": {}}
    content["model"]["teacher"]["model"] = content["model"]
    torch.save(content, path)


def nested(path: Path) -> None:
    archive(path, b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".")


def bomb(path: Path) -> None:
    state = b"\x80\x02}" + text("a") + b"K\x01s."
    archive(path, state, zipfile.ZIP_DEFLATED, bomb=bytes(2**26))


def spread(path: Path) -> None:
    """One number that stands for 4 terabytes."""
    state = a_state()
    torch.save(state | {"pos_embed": torch.zeros(1).expand(1, 2**32, 192)}, path)


def wide(path: Path) -> None:
    """A projection a million wide in 12 MB: queries, keys and values of that width would be 12 terabytes."""
    names = ("norm1.weight", "mlp.fc1.weight", "mlp.fc2.weight")
    state = {f"blocks.0.{name}": torch.zeros(3, 1_000_000 // 3 if "fc" in name else 1) for name in names}
    state |= {"patch_embed.proj.weight": torch.zeros(1_000_000, 3, 1, 1), "cls_token": torch.zeros(1, 1, 1_000_000)}
    torch.save(state | {"pos_embed": torch.zeros(1, 2, 3)}, path)


def sparse_tensor(path: Path) -> None:
    state = a_state()
    torch.save(state | {"norm.bias": torch.zeros(192).to_sparse()}, path)


def sparse_zeros(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(10 * 2**30)


def absurd_header(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 2**62) + b'{"a":1}')


def cut(path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(1000)}}, path)
    path.write_bytes(path.read_bytes()[:-700])


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "contains itself": (contains_itself, ".pth"),
    "nested": (nested, ".pth"),
    "a bomb": (bomb, ".pth"),
    "one number spread over terabytes": (spread, ".pth"),
    "wide": (wide, ".pth"),
    "sparse": (sparse_tensor, ".pth"),
    "ten gigabytes of zeros": (sparse_zeros, ".pth"),
    "ten gigabytes of zeros, safetensors": (sparse_zeros, ".safetensors"),
    "an absurd header": (absurd_header, ".safetensors"),
    "cut": (cut, ".pth"),
    "empty": (lambda path: path.touch(), ".ckpt"),
    "a FIFO": (lambda path: os.mkfifo(path), ".pth"),
    "a folder": (lambda path: path.mkdir(), ".pth"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), ".pth"),
    "a loop of links": (lambda path: path.symlink_to(path), ".pth"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_checkpoint_can_be_is_refused_at_once(name: str, tmp_path: Path) -> None:
    write, suffix = REFUSED[name]
    path = tmp_path / f"some{suffix}"
    write(path)

    with pytest.raises(UserError) as raised:
        load_encoder(path, num_heads=1)

    message = str(raised.value)
    assert message.startswith(str(path)) and ";" in message
    assert "\n" not in message and len(message) < 500


@pytest.mark.parametrize("spec", ["x" * 5000, "~nobody_of_that_name/run", "/proc/self/mem/x", "a\0b"])
def test_names_that_no_file_can_have_are_refused_in_one_line(spec: str) -> None:
    with refused():
        load_encoder(spec)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.uint8, torch.bool])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_whole_numbers_are_no_weights(dtype: torch.dtype, suffix: str, tmp_path: Path) -> None:
    """They are those of a quantised model, of which the scales lie elsewhere."""
    path = tmp_path / f"some{suffix}"
    state = {name: tensor.to(dtype) for name, tensor in a_state().items()}
    (torch.save if suffix == ".pth" else save_file)(state, path)
    with refused(path, f"cls_token {str(dtype)[6:]} for float32") as raised:
        load_encoder(path)
    assert str(raised.value).startswith(str(path))


def test_weights_in_double_precision_are_judged_as_they_are_used(tmp_path: Path) -> None:
    state = {name: tensor.double() for name, tensor in a_state().items()}
    torch.save(state, tmp_path / "some.pth")
    assert load_encoder(tmp_path / "some.pth").vit.norm.weight.equal(state["norm.weight"].float())
    state["norm.weight"][3] = 1e300  # infinite in float32
    torch.save(state, tmp_path / "some.pth")
    with refused("infinite", "norm.weight"):
        load_encoder(tmp_path / "some.pth")


@pytest.mark.filterwarnings("error")
def test_parameters_are_weights_without_a_warning(tmp_path: Path) -> None:
    state = {name: torch.nn.Parameter(tensor) for name, tensor in a_state().items()}
    torch.save(state, tmp_path / "some.pth")
    assert load_encoder(tmp_path / "some.pth").vit.norm.weight.equal(state["norm.weight"])


def test_objects_and_empty_names_are_named_as_what_they_are(tmp_path: Path) -> None:
    path = tmp_path / "some.pth"
    torch.save(collections.defaultdict(list, a_state()), path)
    with refused("collections.defaultdict"):
        load_encoder(path)
    torch.save(a_state() | {"": torch.zeros(1)}, path)
    with refused("unexpected: ''"):
        load_encoder(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_that_are_no_numbers_are_named(value: float, suffix: str, tmp_path: Path) -> None:
    state = a_state()
    state["blocks.0.attn.proj.bias"][7] = value
    (torch.save if suffix == ".pth" else save_file)(state, tmp_path / f"some{suffix}")

    with refused("infinite", "blocks.0.attn.proj.bias"):
        load_encoder(tmp_path / f"some{suffix}")
