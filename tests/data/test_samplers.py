"""What 64 processes are shown, in one process: nothing is trained."""

import numpy as np
import pytest

from semmae.data.samplers import WINDOW, EpochSampler, by_window, epoch_and_row, row_ahead
from semmae.data.selection import InShards
from semmae.data.shard_places import Shard

IMAGES, STEP, SHARDS = 10_277, 512, 100


def tar_shards(remote: bool = False) -> InShards:
    """Shards of some 100 images each, ten of them a window."""
    shards = np.sort(np.random.default_rng(0).integers(0, SHARDS, IMAGES))
    places = [Shard(f"{each}.tar", f"s3://bucket/{each}.tar", WINDOW // 10, 0, remote) for each in range(SHARDS)]
    return InShards(shards, np.full(IMAGES, WINDOW // 10), places)


def steps_of(ranks: int, epoch: int, shards: InShards | None, done: int = 0) -> list[list[list[tuple[int, ...]]]]:
    """What each rank is shown in each step of an epoch of which so many steps are done."""
    each, shares = STEP // ranks, []
    for rank in range(ranks):
        sampler = EpochSampler(IMAGES, 3, multiple=each, num_replicas=ranks, rank=rank, shards=shards)
        sampler.begin_at(epoch, done * each)
        share = list(sampler)
        assert len(share) == len(sampler) - done * each
        shares.append([share[at : at + each] for at in range(0, len(share), each)])
    return [list(step) for step in zip(*shares, strict=True)]


def shown(step: list[list[tuple[int, ...]]]) -> list[tuple[int, ...]]:
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
        opened = [len(set(shards.numbers[[row for _, row in shown(step)]])) for step in whole]
        assert max(opened) <= 2 * SHARDS // 10 + 2 and np.mean(opened) < 0.2 * SHARDS


def test_shards_at_addresses_are_asked_for_while_the_window_before_is_shown() -> None:
    """Of 64 processes each asks for all of them; what they show is as without."""
    shards, plain, whole = tar_shards(remote=True), tar_shards(), []
    for rank in range(64):
        told, silent = (
            EpochSampler(IMAGES, 3, multiple=8, num_replicas=64, rank=rank, shards=each) for each in (shards, plain)
        )
        keys = list(told)
        assert [epoch_and_row(key) for key in keys] == list(silent)
        whole.append(keys)
    opened: dict[int, int] = {}  # by shard, before which key a process first reads from it
    asked: list[dict[int, int]] = []
    for keys in whole:
        asked.append({})
        for place, key in enumerate(keys):
            number = int(shards.numbers[epoch_and_row(key)[1]])
            opened[number] = min(opened.get(number, place), place)
            ahead = row_ahead(key)
            if ahead is not None:
                assert asked[-1].setdefault(int(shards.numbers[ahead]), place) == place  # once
    window = by_window(shards.numbers, shards.sizes, np.random.default_rng((3, 0)))[0]
    first = {int(number) for number in np.unique(shards.numbers[window])}
    assert len(opened) == SHARDS and all(each.keys() == opened.keys() - first for each in asked)
    waits = [opened[number] - place for each in asked for number, place in each.items()]
    assert min(waits) >= 3  # of some 16 keys that a process has in a window
    assert len({min(each, key=lambda number: (each[number], number)) for each in asked}) > 5  # not all begin alike


def test_a_run_that_goes_on_in_a_window_asks_for_the_next_one() -> None:
    sampler = EpochSampler(IMAGES, 3, multiple=8, num_replicas=1, rank=0, shards=tar_shards(remote=True))
    whole = list(sampler)
    sampler.begin_at(0, 900)  # near the end of the first one
    resumed = list(sampler)
    assert [epoch_and_row(key) for key in resumed] == [epoch_and_row(key) for key in whole[900:]]
    numbers = [{int(tar_shards().numbers[row]) for key in keys if (row := row_ahead(key)) is not None}
               for keys in (whole, resumed)]  # fmt: skip
    assert numbers[0] == numbers[1] and len(numbers[0]) > 0.8 * SHARDS
