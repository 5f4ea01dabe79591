"""Checkpoints that people have, and such as attack."""

import functools
import pickle
from collections.abc import Callable
from typing import Any

import torch
from formats import test_files as hostile, test_forms as forms

import semmae
from attacks.desk import Desk, attack, refused


def foreign(form: Callable[..., Any], desk: Desk) -> None:
    scale = {"init_values": 0.1} if form in (forms.dinov2, forms.dinov2_flat, forms.mmpretrain) else {}
    wanted, other = forms.network(1, **scale), forms.network(2, **scale)
    with desk.copy() as own:
        torch.save(form(wanted.state_dict(), other.state_dict()), own.root / "some.pth")
        loaded = semmae.load_encoder(own.root / "some.pth")
        weight = loaded.vit.state_dict()["blocks.0.attn.qkv.weight"]
        assert torch.equal(weight, wanted.state_dict()["blocks.0.attn.qkv.weight"])


for form in forms.FORMS:
    if form not in forms.MMENGINE:  # see their test
        attack("D", f"a checkpoint of {form.__name__} is read")(functools.partial(foreign, form))


def executes(name: str, desk: Desk) -> None:
    with desk.copy() as own:
        content = hostile.attacks(f"touch {own.root / 'executed'}")[name]
        if not isinstance(content, bytes):
            content = pickle.dumps({"model": {}, "args": content}, protocol=2)
        hostile.archive(own.root / "evil.pth", content)
        refused(own, "knn --encoder evil.pth --data photos --out new", "evil.pth")


for name in hostile.attacks(""):
    attack("D", f"code in a checkpoint: {name}")(functools.partial(executes, name))
