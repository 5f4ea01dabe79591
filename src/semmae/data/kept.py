"""Images that stay in memory once they are decoded, as far as there is room.

With a small network on few images, decoding the same ones again in every epoch takes half of the time.
"""

from torch import Tensor
from torch.utils.data import get_worker_info

from semmae.data.manifest import ImageSet

_ROOM = 2**29  # bytes, of all processes that load images for one that trains: 800 photos of 400 x 530 pixels
_MOST_IMAGES = 100_000  # of more the few that have room would save nothing


class KeptImages(ImageSet):
    """The same images and pixels as `images`, for a training: what `read` gives is not to be changed.

    Which are kept is chance: those that are read first. A process that loads images keeps its own, for it may get any
    of them in the next epoch.
    """

    def __init__(self, images: ImageSet) -> None:
        super().__init__(images.source, images.manifest, images.positions, images.channels)
        self._kept: dict[tuple[int, int | None], Tensor] = {}
        self._bytes = 0

    @classmethod
    def of(cls, images: ImageSet) -> "KeptImages":
        """These images, or themselves where they are kept already: for several trainings, one after the other."""
        return images if isinstance(images, cls) else cls(images)

    def read(self, row: int, least: int | None = None) -> Tensor:
        kept = self._kept.get((row, least))
        if kept is not None:
            return kept
        image = super().read(row, least)
        worker = get_worker_info()
        room = _ROOM // (1 if worker is None else worker.num_workers)
        size = image.untyped_storage().nbytes()  # a grey image has one channel there, shown as three
        if len(self) <= _MOST_IMAGES and self._bytes + size <= room:
            self._kept[row, least] = image
            self._bytes += size
        return image
