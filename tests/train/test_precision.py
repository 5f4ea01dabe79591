"""What `auto` is on which processor, and what is refused."""

from pathlib import Path

import pytest
import torch
from refusals import refused

from semmae.train import precision
from semmae.train.precision import check_precision, processor_flags, resolve_precision

XEON = (
    "processor\t: 0\nmodel name\t: Intel(R) Xeon(R)\nflags\t\t: fpu sse2 avx512f avx512_bf16 amx_bf16\nbugs\t: none\n"
)
OLDER = "processor\t: 0\nflags\t\t: fpu sse2 avx2\n"
GRAVITON = "processor\t: 0\nFeatures\t: fp asimd i8mm bf16\nCPU implementer\t: 0x41\n"
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="what a GPU computes in counts, not the processor")


@without_gpu
@pytest.mark.parametrize(
    ("text", "expected"), [(XEON, "bf16"), (OLDER, "float32"), (GRAVITON, "bf16"), ("", "float32")]
)
def test_auto_is_bf16_where_the_processor_computes_in_it(
    text: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(text)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(precision, "processor_flags", lambda: processor_flags(file))

    assert resolve_precision("auto") == expected
    assert resolve_precision("float32") == "float32"


def test_where_nothing_is_known_nothing_is_assumed(tmp_path: Path) -> None:
    assert processor_flags(tmp_path / "none") == set()


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16"), (False, "float32")])
def test_a_gpu_that_emulates_bf16_computes_in_float32(
    native: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)

    assert resolve_precision("auto") == expected


@without_gpu
def test_fp16_needs_a_gpu() -> None:
    with refused("--precision fp16", "CUDA", "--precision bf16 or float32"):
        check_precision("fp16")
    check_precision("bf16")
