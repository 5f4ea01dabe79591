"""In which order rows are shown, dealt out to ranks: (epoch, row) for each, a pure function of (seed, epoch)."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch.distributed
from torch.utils.data import Sampler

from semmae.data.balance import balanced_rows
from semmae.data.selection import InShards

Numbers = npt.NDArray[np.int64]
Key = int | tuple[int, ...]  # a row, (epoch, row), or (epoch, row, `row_ahead`)
_AGAIN = 2**32  # epochs that lie between a row and the same row when it comes again in one
WINDOW = 2**32  # bytes of tar shards whose images are shuffled together: what stays in memory, or is copied, at a time


class EpochSampler(Sampler[tuple[int, ...]]):
    """(epoch, row) for the rows of one epoch, dealt out to ranks; short ones get the first rows again.

    With `multiple`, what each rank takes of an optimiser step, an epoch is whole steps: rows beyond are left out, and
    which rows make a step does not depend on the number of ranks.
    With `classes`, of each row, every class comes equally often (`balanced_rows`); a row that comes again in an epoch
    does so under another number of the epoch, and thus with another crop. With `shards` rows come in the order of
    `by_window`, and where they lie at addresses some bring a `row_ahead` along.
    """

    def __init__(
        self,
        length: int,
        seed: int = 0,
        shuffle: bool = True,
        *,
        multiple: int | None = None,
        num_replicas: int | None = None,
        rank: int | None = None,
        classes: Sequence[int] | None = None,
        shards: InShards | None = None,
    ) -> None:
        if classes is not None and (len(classes) != length or not shuffle):
            raise ValueError(f"{length} rows, {len(classes)} classes; give one to each row, and shuffle them")
        self.length, self.seed, self.shuffle, self.multiple = length, seed, shuffle, multiple
        self.epoch = 0
        self._begin = (0, 0)  # epoch, and how many of its rows are left out
        self._num_replicas, self._rank = num_replicas, rank
        self._classes = None if classes is None else np.asarray(classes, dtype=np.int64)
        self._shards = shards

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def begin_at(self, epoch: int, rows: int) -> None:
        """Begin with this epoch, and leave out so many of the rows that it shows this rank: they have been seen."""
        self.epoch, self._begin = epoch, (epoch, rows)

    @property
    def left_out(self) -> int:
        """Rows of this rank that are left out of the epoch that is set."""
        epoch, rows = self._begin
        return rows if epoch == self.epoch else 0

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        replicas, rank = self._place()
        rows, epochs = np.arange(self.length), np.full(self.length, self.epoch)
        rng, windows = np.random.default_rng((self.seed, self.epoch)), list[Numbers]()
        if self._classes is not None:
            rows, turns = balanced_rows(self._classes, rng)
            epochs = epochs + _AGAIN * turns
        elif self.shuffle and self._shards is not None:
            windows = by_window(self._shards.numbers, self._shards.sizes, rng)
            rows = np.concatenate(windows)
        elif self.shuffle:
            rows = rng.permutation(self.length)
        # np.resize repeats from the beginning
        dealt = np.resize(np.arange(self.length), len(self) * replicas)
        mine = dealt[rank::replicas][self.left_out :]
        ahead = self._rows_ahead(windows, mine, rank / replicas)
        # One by one: a list of them would be millions of objects.
        keys = ((int(epoch), int(row)) for epoch, row in zip(epochs[mine], rows[mine], strict=True))
        return ((*key, ahead[place]) if place in ahead else key for place, key in enumerate(keys))

    def _rows_ahead(self, windows: Sequence[Numbers], mine: Numbers, turn: float) -> dict[int, int]:
        """By places among this rank's rows: of each tar file of the next window one row, in the first half of a window.

        So files at addresses are copied while the window before is shown, by whichever processes load these places.
        `turn`, from 0 to 1: where in their order to begin, so that the ranks of a machine do not all ask for the same.
        """
        found: dict[int, int] = {}
        if self._shards is None or not self._shards.are_remote:
            return found
        # Places rise, but where the first rows come again.
        ends = np.searchsorted(np.maximum.accumulate(mine), np.cumsum([len(window) for window in windows]))
        begin = 0
        for window, end in zip(windows[1:], ends.tolist(), strict=False):
            if end > begin:
                _, first = np.unique(self._shards.numbers[window], return_index=True)
                last = min(end, max((begin + end) // 2, begin + len(first)))
                places = np.linspace(begin, last, len(first), endpoint=False).astype(np.int64)
                rows = np.roll(window[first], -int(turn * len(first)))
                found |= zip(places.tolist(), rows.tolist(), strict=True)
            begin = end
        return found

    def __len__(self) -> int:
        """Rows of a whole epoch, also where it is begun in the middle: schedules count by it."""
        replicas = self._place()[0]
        if self.multiple is None:
            return -(-self.length // replicas)
        return max(1, self.length // (self.multiple * replicas)) * self.multiple

    def _place(self) -> tuple[int, int]:
        """(ranks, own rank). Asked for late: the sampler may be made before the process group is."""
        running = torch.distributed.is_available() and torch.distributed.is_initialized()
        replicas, rank = self._num_replicas, self._rank
        if replicas is None:
            replicas = torch.distributed.get_world_size() if running else 1
        if rank is None:
            rank = torch.distributed.get_rank() if running else 0
        return replicas, rank


def by_window(shards: Numbers, sizes: Numbers, rng: np.random.Generator, window: int = WINDOW) -> list[Numbers]:
    """An order of rows by which few tar shards are read at a time: the rows of each window, int64, N of them in all.

    Whole shards in an order that is drawn, cut into windows of so many bytes, and the rows of each window shuffled.
    Where all fit into one, any order is as likely, and the same as without shards.

    Args:
        shards: which one each row lies in, (N,).
        sizes: bytes of that shard, (N,): also where few of its images are among the rows, it is read or copied whole.
        rng: what the order is drawn by; it depends on nothing else.
        window: bytes.
    """
    rows = rng.permutation(len(shards))
    _, first, own = np.unique(shards, return_index=True, return_inverse=True)
    of_shard = sizes[first]
    if of_shard.sum() <= window:
        return [rows]
    order = rng.permutation(len(of_shard))
    number = np.empty(len(order), dtype=np.int64)  # of the window of each shard
    number[order] = (np.cumsum(of_shard[order]) - of_shard[order]) // window
    of_row = number[own[rows]]
    sorting = np.argsort(of_row, kind="stable")
    return np.split(rows[sorting], np.flatnonzero(np.diff(of_row[sorting])) + 1)


class StepSampler(EpochSampler):
    """(pass, row) of rounds of `steps` batches: one endless stream of shuffled passes, cut into equal rounds.

    So a training is as long as given in steps, whatever the number of images, and a resumed round shows the same.
    """

    def __init__(
        self,
        length: int,
        seed: int,
        *,
        steps: int,
        batch_size: int,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        super().__init__(length, seed, num_replicas=num_replicas, rank=rank)
        self.images = steps * batch_size  # of a round, over all ranks

    def __iter__(self) -> Iterator[tuple[int, int]]:
        replicas, rank = self._place()
        first = self.epoch * self.images
        begin = first + self.left_out * replicas
        order = (-1, np.arange(0))
        for position in range(begin + rank, first + self.images, replicas):
            number, place = divmod(position, self.length)
            if order[0] != number:
                order = (number, np.random.default_rng((self.seed, number)).permutation(self.length))
            yield number, int(order[1][place])

    def __len__(self) -> int:
        return self.images // self._place()[0]


def epoch_and_row(key: Key) -> tuple[int, int]:
    """What a key of a sampler means; rows alone are of epoch 0."""
    return (key[0], key[1]) if isinstance(key, tuple) else (0, key)


def row_ahead(key: Key) -> int | None:
    """A row whose tar file will soon be read from, and is to be copied meanwhile; of most keys none."""
    return key[2] if isinstance(key, tuple) and len(key) > 2 else None
