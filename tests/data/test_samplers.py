"""What 64 processes are shown, in one process: nothing is trained."""

import numpy as np
import pytest

from semmae.data.samplers import WINDOW, EpochSampler

IMAGES, STEP, SHARDS = 10_277, 512, 100
Shards = tuple[np.ndarray, np.ndarray]


def tar_shards() -> Shards:
    """Shards of some 100 images each, ten of them a window."""
    shards = np.sort(np.random.default_rng(0).integers(0, SHARDS, IMAGES))
    return shards, np.full(IMAGES, WINDOW // 10)


def steps_of(ranks: int, epoch: int, shards: Shards | None, done: int = 0) -> list[list[list[tuple[int, int]]]]:
    """What each rank is shown in each step of an epoch of which so many steps are done."""
    each, shares = STEP // ranks, []
    for rank in range(ranks):
        sampler = EpochSampler(IMAGES, 3, multiple=each, num_replicas=ranks, rank=rank, shards=shards)
        sampler.begin_at(epoch, done * each)
        share = list(sampler)
        assert len(share) == len(sampler) - done * each
        shares.append([share[at : at + each] for at in range(0, len(share), each)])
    return [list(step) for step in zip(*shares, strict=True)]


def shown(step: list[list[tuple[int, int]]]) -> list[tuple[int, int]]:
    """All that a step shows, whoever sees it."""
    return sorted(key for share in step for key in share)


@pytest.mark.parametrize("sharded", [False, True])
def test_64_ranks_share_an_epoch_and_32_end_it_as_they_would(sharded: bool) -> None:
    shards = tar_shards() if sharded else None
    whole = steps_of(64, 1, shards)
    assert len(whole) == IMAGES // STEP
    assert {len(share) for step in whole for share in step} == {STEP // 64}
    rows = [row for step in whole for share in step for _, row in share]
    assert len(rows) == len(set(rows)) == len(whole) * STEP

    resumed = steps_of(32, 1, shards, done=7) + steps_of(32, 2, shards)
    assert [shown(step) for step in resumed] == [shown(step) for step in whole[7:] + steps_of(64, 2, shards)]

    if shards is not None:  # all ranks read from the same few shards at a time
        opened = [len(set(shards[0][[row for _, row in shown(step)]])) for step in whole]
        assert max(opened) <= 2 * SHARDS // 10 + 2 and np.mean(opened) < 0.2 * SHARDS
