"""Masks of a batch: every masking by name, one's own function and what is wrong with it, what was hidden."""

import dataclasses
import math
import re

import numpy as np
import pytest
import torch
from refusals import refused
from torch import Tensor

from semmae.cli.help import help_text
from semmae.masking import (
    attention_mask,
    block_mask,
    colour_mask,
    green_noise,
    num_hidden,
    random_mask,
    semantic_mask,
)
from semmae.options.fields import options_of
from semmae.options.maskings import MASKINGS
from semmae.options.pretrain import PretrainOptions, PretrainRecipe
from semmae.options.shared import SeedOptions
from semmae.train.masks import CheckedMask, MaskContext, MaskMeter, Step, draw_mask, mask_function, mask_seed
from semmae.train.pretrain import blend_at, mask_context


def a_context(seed: int = 0, **changes: object) -> MaskContext:
    generator = torch.Generator().manual_seed(5)
    known = {
        "num_labels": 7,
        "parts": torch.randint(7, (4, 36), generator=generator),
        "attention": torch.rand(4, 36, generator=generator),
    }
    return MaskContext((4, 36), 0.75, 0.5, torch.Generator().manual_seed(seed), **{**known, **changes})


def test_the_highest_seed_is_one_for_all_that_take_it() -> None:
    """torch takes 64 bits, numpy's shared numbers and scikit-learn 32; steps and places of a long run on many GPUs."""
    highest = int(options_of(SeedOptions)["seed"].facts.high)
    torch.Generator().manual_seed(mask_seed(int(highest), step=10**9, place=4098))
    np.random.RandomState(int(highest))
    with pytest.raises((RuntimeError, ValueError, OverflowError)):
        torch.Generator().manual_seed(mask_seed(2 * int(highest), step=0, place=0))


@pytest.mark.parametrize("masking", MASKINGS)
def test_every_row_is_a_masking(masking: str) -> None:
    """Exact, a function of its noise, one that reads what its row says and nothing else."""
    row = MASKINGS[masking]
    assert row.name == masking
    assert f"{row.words} ({masking})" in " ".join(re.sub("[│|]", " ", help_text(PretrainOptions)).split())
    others = {name: None for name in ("parts", "attention") if name != row.reads}
    blend = row.blend if row.blend is not None else 0.25

    mask = draw_mask(masking, a_context(**others, blend=blend, hint=0.5))

    assert mask.dtype == torch.bool and mask.shape == (4, 36)
    assert mask.sum(1).tolist() == [num_hidden(36, 0.75)] * 4
    assert torch.equal(mask, draw_mask(masking, a_context(blend=blend, hint=0.5)))
    assert not torch.equal(mask, draw_mask(masking, a_context(seed=1, blend=blend, hint=0.5)))
    if row.reads is not None:
        with pytest.raises(ValueError, match=row.reads):
            draw_mask(masking, a_context(**{row.reads: None}))


@pytest.mark.parametrize("masking", MASKINGS)
def test_the_facts_of_a_row_are_those_of_its_function(masking: str) -> None:
    row = MASKINGS[masking]

    def moves(field: str) -> bool:
        return not torch.equal(*(draw_mask(masking, a_context(**{field: value})) for value in (0.1, 0.9)))

    assert moves("blend") == row.scheduled
    assert moves("hint") == row.hints
    blend = 1.0 if row.scheduled else 0.0  # of intra and inter their own
    kept, hinted = (a_context(blend=blend, **{name: 1}) for name in ("keep_background", "part_hints"))
    plain = draw_mask(masking, a_context(blend=blend))
    assert torch.equal(draw_mask(masking, kept), plain) != PretrainRecipe(masking=masking).hides_whole_parts
    assert torch.equal(draw_mask(masking, hinted), plain) != PretrainRecipe(masking=masking).masks_by_parts
    if row.blend is not None:
        assert torch.equal(draw_mask(masking, a_context()), draw_mask("semantic", a_context(blend=row.blend)))
    subset = a_context().most_attended(20)  # no square
    if row.whole_grid:
        with pytest.raises(ValueError, match="square grid"):
            draw_mask(masking, subset)
    else:
        assert draw_mask(masking, subset).sum(1).tolist() == [num_hidden(20, 0.75)] * 4


def test_an_own_function_is_found_by_its_place() -> None:
    draw = mask_function(f"{__name__}:stripes")

    assert torch.equal(draw(a_context()), stripes(a_context()))
    assert isinstance(draw, CheckedMask)


def test_a_masking_is_the_function_of_its_name() -> None:
    context = a_context()
    assert context.parts is not None and context.attention is not None

    def noise_and(*size: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        return torch.rand(4, 36, generator=generator), torch.rand(size, generator=generator)

    noise, hint = noise_and(4, 36)
    boxes, order = noise_and(4, 16, 4)[1], noise_and(4, 7)[1]

    assert torch.equal(draw_mask("random", a_context()), random_mask(noise, 0.75))
    assert torch.equal(draw_mask("block", a_context()), block_mask(noise, boxes, 0.75))
    white = torch.rand(1024, 1024, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    windows = torch.rand(4, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(draw_mask("colour", a_context()), colour_mask(green_noise(white), windows, 36, 0.75))
    wanted = attention_mask(context.attention, noise, hint, 0.75, 0.5)
    assert torch.equal(draw_mask("attention", a_context(hint=0.5)), wanted)
    for masking, blend in (("intra", 0.0), ("inter", 1.0), ("semantic", 0.25)):
        batch = {"parts": context.parts, "attention": context.attention}
        drawn = draw_mask(
            masking,
            mask_context(
                PretrainRecipe(masking=masking), batch, (4, 36),
                progress=0.5, generator=torch.Generator().manual_seed(0), num_labels=7,
            ),
        )  # fmt: skip
        assert torch.equal(drawn, semantic_mask(context.parts, noise, order, 0.75, blend))
    recipe = PretrainRecipe(hints=1, keep_background=True, blend_end=0.5)
    drawn = draw_mask(
        "semantic",
        mask_context(
            recipe, {"parts": context.parts}, (4, 36),
            progress=1.0, generator=torch.Generator().manual_seed(0), num_labels=7,
        ),
    )  # fmt: skip
    assert torch.equal(drawn, semantic_mask(context.parts, noise, order, 0.75, 0.5, 1, True))


def test_a_fixed_blend_stands_in_place_of_the_schedule() -> None:
    moving, fixed = PretrainRecipe(gamma=3.0), PretrainRecipe(blend=0.3)

    assert [blend_at(moving, point) for point in (0.0, 0.5, 1.0)] == [0.0, 0.125, 1.0]
    assert [blend_at(fixed, point) for point in (0.0, 0.5, 1.0)] == [0.3] * 3
    ending = PretrainRecipe(blend_end=0.4)
    assert [blend_at(ending, point) for point in (0.0, 0.5, 1.0, 1.1)] == [0.0, 0.1, 0.4, 0.4]
    ends = [blend_at(PretrainRecipe(masking=masking), 0.5) for masking in ("intra", "inter", "random", "own:masks")]
    assert ends == [0.0, 1.0, None, None]


def test_a_subset_is_chosen_by_attention() -> None:
    with pytest.raises(ValueError, match="attention"):
        a_context(attention=None).most_attended(20)


def stripes(context: MaskContext) -> Tensor:
    """The example of the module's docstring."""
    column = torch.arange(context.shape[1], device=context.device) % math.isqrt(context.shape[1])
    first = context.uniform(1) < 0.5
    return (column % 2 == 0) ^ first


def test_the_example_of_an_own_function_works() -> None:
    mask = CheckedMask(stripes, "own:stripes")(a_context())

    assert torch.equal(mask, stripes(a_context()))
    assert mask.sum(1).tolist() == [18] * 4
    assert len({tuple(row) for row in mask.tolist()}) == 2  # some images with even columns, some with odd


def first_hidden(count: int, rows: int = 4) -> Tensor:
    return torch.arange(36).expand(rows, 36) < count


def test_what_an_own_function_returned_is_named() -> None:
    uneven = first_hidden(27)
    uneven[1, 30] = True
    for result, words in [
        (None, ["NoneType", "bool"]),
        (first_hidden(27).float(), ["float32 (4, 36)", "bool (4, 36)"]),
        (first_hidden(27, rows=3), ["bool (3, 36)"]),
        (uneven, ["27 to 28 patches"]),
        (first_hidden(0), ["0 of 36 patches"]),
        (first_hidden(36), ["36 of 36 patches"]),
    ]:

        def mine(context: MaskContext, result: object = result) -> object:
            return result

        with refused("--masking own:mine", *words):
            CheckedMask(mine, "own:mine")(a_context())  # type: ignore[arg-type]


def test_an_own_function_must_hide_as_many_in_every_batch() -> None:
    checked = CheckedMask(lambda context: first_hidden(20 if context.progress < 0.6 else 21), "own:mine")

    checked(a_context())
    checked(a_context())
    with refused("21 patches", "20"):
        checked(dataclasses.replace(a_context(), progress=0.7))


def test_the_meter_averages_over_batches_and_begins_anew() -> None:
    meter = MaskMeter(["background", "part 1", "part 2"])
    generator = torch.Generator().manual_seed(0)
    masks = [torch.rand(4, 9, generator=generator) < 0.5 for _ in range(3)]
    parts = [torch.randint(2, (4, 9), generator=generator) for _ in range(3)]  # part 2 is nowhere

    for mask, labels, blend in zip(masks, parts, (0.1, 0.2, 0.6), strict=True):
        meter.add(mask, labels, blend)
    found = meter.read()

    hidden, labels = torch.cat(masks), torch.cat(parts)
    shares = {"hidden/background": hidden[labels == 0], "hidden/part 1": hidden[labels == 1]}
    assert found == pytest.approx({"blend": 0.3, **{name: mask.float().mean().item() for name, mask in shares.items()}})
    assert meter.read() == {}
    meter.add(masks[0], parts[0].to(torch.uint8), None)
    assert meter.read()["hidden/background"] == masks[0][parts[0] == 0].double().mean().item()


@pytest.mark.parametrize("masking", ["random", "block", "semantic", "colour", "attention"])
def test_an_image_is_masked_alike_however_its_step_is_divided(masking: str) -> None:
    """By one process in one batch, or dealt out to two of two batches each."""
    images = 8
    parts = torch.randint(5, (images, 36), generator=torch.Generator().manual_seed(1))
    attention = torch.rand(images, 36, generator=torch.Generator().manual_seed(2))

    def drawn(rows: slice, step: Step | None) -> Tensor:
        generator = torch.Generator().manual_seed(0 if step is None else 9)
        count = len(range(images)[rows])
        return draw_mask(
            masking,
            MaskContext(
                (count, 36), 0.75, 0.5, generator, 5, parts[rows], attention[rows], blend=0.5, hint=0.1, step=step
            ),
        )

    whole, divided = drawn(slice(None), None), torch.zeros(images, 36, dtype=torch.bool)
    for rank in range(2):
        for part in range(2):
            step = Step.of(2, rank=rank, ranks=2, part=part, parts=2, generator=torch.Generator().manual_seed(0))
            divided[step.rows] = drawn(step.rows, step)
    assert torch.equal(whole, divided)
