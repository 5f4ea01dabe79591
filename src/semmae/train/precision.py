"""What `--precision` means on this machine.

Weights, optimiser and losses are float32 whatever is chosen; bf16 and fp16 are what matrix products are computed in.
TF32 is left as torch has it on a GPU: off in matrix products, on in convolutions, which here are patch embeddings and
UPerNet. Whoever wants it in all calls `torch.set_float32_matmul_precision("high")` before; bf16 is faster still.
"""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Literal, get_args

import torch

from semmae.errors import UserError
from semmae.options.shared import Precision
from semmae.options.values import check_choice

Arithmetic = Literal["float32", "bf16", "fp16"]

# How Linux names the instructions: x86 multiplies bf16 by AVX-512 or AMX, ARM by its own.
_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


def resolve_precision(precision: Precision) -> Arithmetic:
    """`auto` is bf16 where the processor that trains computes in it, else float32."""
    check_choice("precision", precision, get_args(Precision))
    if precision != "auto":
        return precision
    if torch.cuda.is_available():
        # Older GPUs emulate it, slower than float32.
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if torch.backends.mps.is_available():
        return "float32"
    return "bf16" if _BF16_FLAGS & processor_flags() else "float32"


def check_precision(precision: Precision) -> None:
    """Refuse arithmetic that nothing here can train in."""
    if precision == "fp16" and not torch.cuda.is_available():
        raise UserError(
            "--precision fp16: needs a CUDA GPU, for its gradients underflow without loss scaling, and none is here; "
            "use --precision bf16 or float32"
        )


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """What is computed inside on `device` is computed as `precision` says; for inference, which scales no loss."""
    arithmetic = resolve_precision(precision)
    if arithmetic == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype={"bf16": torch.bfloat16, "fp16": torch.float16}[arithmetic])


def processor_flags(path: Path = Path("/proc/cpuinfo")) -> set[str]:
    """What the processor can do, as Linux lists it; elsewhere nothing is known."""
    if not path.is_file():
        return set()
    lines = (line.partition(":") for line in path.read_text(errors="replace").splitlines())
    return {flag for name, _, flags in lines if name.strip() in ("flags", "Features") for flag in flags.split()}
