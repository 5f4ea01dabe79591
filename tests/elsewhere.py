"""A GPU without one: tensors that say they lie on cuda:0, and hold their numbers in the memory of the CPU.

What mixes them with tensors of the CPU, or reads one as an array, fails as it does on a GPU; the rest gives the CPU's
own numbers. To torch's own code they are on "meta", the one device besides the CPU whose backward pass takes no driver.
So nothing here says how an operation of CUDA computes, autocast casts nothing, and nothing can be compiled.
"""

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch._dynamo  # before anything is replaced: it reads all of torch as it is
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

CUDA = torch.device("cuda", 0)

# What a GPU takes of the CPU too: copies, and indices.
_MIXING = {"copy_", "_to_copy", "index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "set_"}
# What it does not even take a single number of the CPU for; of others it does.
_STRICT = {"mm", "addmm", "bmm", "baddbmm", "cat", "stack", "gather", "scatter", "index_select", "convolution"}

_REAL_TO = Tensor.to  # before it is replaced


class OnGPU(Tensor):
    """A tensor elsewhere; `here` holds its numbers."""

    here: Tensor
    device = CUDA  # type: ignore[assignment]
    is_cuda = True
    is_cpu = False
    is_meta = False
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, here: Tensor) -> "OnGPU":
        found: OnGPU = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, here.size(), strides=here.stride(), storage_offset=here.storage_offset(), dtype=here.dtype,
            layout=here.layout, device="meta",
        )  # fmt: skip
        found.here = here
        return found

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Written as what it holds: readers of a checkpoint say themselves where they want it."""
        return self.here.detach().__reduce_ex__(protocol)

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"OnGPU({self.here})"

    def __format__(self, spec: str) -> str:
        return format(self.here, spec)

    def tolist(self) -> Any:
        return self.here.tolist()

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        return self.detach()

    @data.setter
    def data(self, other: "OnGPU") -> None:
        self.here = other.here


class _Placing(TorchDispatchMode):
    """Makes what is asked for on a GPU, which without a tensor there only a mode can see."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The operation on the CPU, and its result where a GPU's would lie."""
    name, places = func.overloadpacket.__name__, set()

    def here(value: Any) -> Any:
        if isinstance(value, OnGPU):
            places.add("gpu")
            return value.here
        if isinstance(value, Tensor):
            places.add("cpu" if value.dim() or name in _STRICT else "number")
        return value

    given, named = pytree.tree_map(here, (args, kwargs))
    if {"gpu", "cpu"} <= places and name not in _MIXING:
        raise RuntimeError(f"Expected all tensors to be on the same device, found cuda:0 and cpu ({func})")
    if name in ("is_pinned", "_pin_memory"):
        return name != "is_pinned" and args[0]
    wanted = named.get("device")
    if wanted is not None:
        named["device"] = torch.device("cpu")
    found = func(*given, **(named | {"pin_memory": False} if "pin_memory" in named else named))
    if name == "copy_":
        return args[0]
    # "meta" is what formulas of a backward pass ask for, which make something like what they were given.
    if not (torch.device(wanted).type in ("cuda", "meta") if wanted is not None else "gpu" in places):
        return found
    found = pytree.tree_map(lambda value: OnGPU(value) if isinstance(value, Tensor) else value, found)
    return return_and_correct_aliasing(func, args, kwargs, found) if "gpu" in places else found


class _Generator(torch.Generator):
    """The CPU's, wherever it is for."""

    def __new__(cls, device: Any = "cpu") -> "_Generator":
        return super().__new__(cls, "cpu")

    def __init__(self, device: Any = "cpu") -> None:
        self._place = torch.device(device)

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CUDA if self._place.type == "cuda" else self._place


class _InferenceMode:
    """No gradients, and no more: a view of what was made outside of that mode could not be one of these."""

    def __init__(self, mode: bool) -> None:
        self._mode = mode

    def __enter__(self) -> None:
        self._context = torch.set_grad_enabled(not self._mode)

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)


class _Stream:
    """Nothing is done later than it is asked for."""

    device, cuda_stream = CUDA, 0

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def wait_stream(self, *_: Any) -> None: ...

    def synchronize(self) -> None: ...

    def is_capturing(self) -> bool:
        return False


def _to(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Asked for any GPU, torch would ask the driver for the current one."""
    given = [CUDA if str(each) == "cuda" else each for each in args]
    named = {name: CUDA if str(each) == "cuda" else each for name, each in kwargs.items()}
    return _REAL_TO(tensor, *given, **named)


def _on(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`torch.tensor` moves what it has made unseen by any mode."""

    @functools.wraps(make)
    def made(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        found = make(data.here if isinstance(data, OnGPU) else data, *args, **kwargs)
        return found if device is None and not isinstance(data, OnGPU) else found.to(device or CUDA)

    return made


def _replaced() -> dict[str, Any]:
    """What of torch asks a driver, by name, and what it is to be here."""
    nothing: Callable[..., None] = lambda *_, **__: None  # noqa: E731
    alike = torch._has_compatible_shallow_copy_type
    properties = SimpleNamespace(total_memory=10**11, major=9, minor=0, multi_processor_count=132, name="none")
    cuda = {
        "is_available": lambda: True, "is_initialized": lambda: True, "_lazy_init": nothing,
        "device_count": lambda: 1, "current_device": lambda: 0, "set_device": nothing,
        "is_bf16_supported": lambda *_, **__: True, "synchronize": nothing, "empty_cache": nothing,
        "get_device_name": lambda *_: "none", "get_device_capability": lambda *_: (9, 0),
        "get_device_properties": lambda *_: properties, "Stream": _Stream, "stream": lambda *_: nullcontext(),
        "current_stream": lambda *_: _Stream(), "default_stream": lambda *_: _Stream(),
        "is_current_stream_capturing": lambda: False,
        "get_rng_state_all": lambda: [torch.get_rng_state()], "set_rng_state_all": nothing, "manual_seed_all": nothing,
    }  # fmt: skip
    return {
        **{f"torch.cuda.{name}": value for name, value in cuda.items()},
        "torch.accelerator.set_device_index": nothing,
        "torch.accelerator.current_stream": lambda *_: _Stream(),
        # A parameter that is moved becomes another one, as it has to be of another class.
        "torch._has_compatible_shallow_copy_type": lambda *pair: (
            alike(*pair) and isinstance(pair[0], OnGPU) == isinstance(pair[1], OnGPU)
        ),
        "torch.Generator": _Generator,
        "torch._C._InferenceMode": _InferenceMode,
        "torch.tensor": _on(torch.tensor),
        "torch.as_tensor": _on(torch.as_tensor),
        "torch.Tensor.to": _to,
        "torch.Tensor.pin_memory": lambda tensor, *_: tensor,
        "torch.Tensor.is_pinned": lambda tensor, *_: False,
    }


@contextmanager
def on_gpu() -> Iterator[None]:
    """Inside, torch has a GPU, in every thread that is begun there."""
    real = threading.Thread.run

    def run(thread: threading.Thread) -> None:
        with _Placing():
            real(thread)

    with pytest.MonkeyPatch.context() as patch, _Placing():
        for name, value in _replaced().items():
            patch.setattr(name, value, raising=False)  # older releases of torch lack some
        patch.setattr(threading.Thread, "run", run)
        yield
