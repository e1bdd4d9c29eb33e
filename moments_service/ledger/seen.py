"""Which places of the feed the ledger holds groups of: most groups that arrive need no look at the disk."""

import numpy as np
import numpy.typing as npt

_PAGE_BITS = 16


class SeenPlaces:
    """A set of places in the feed (sequence numbers), a bit each: a month at 100 groups a second takes 31 MiB."""

    def __init__(self) -> None:
        self._pages: dict[int, npt.NDArray[np.uint8]] = {}

    def contains(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """[N]: whether each place was added."""
        found = np.zeros(len(places), dtype=np.bool_)
        for number, rows in self._by_page(places):
            if (page := self._pages.get(number)) is not None:
                byte, bit = self._address(places[rows])
                found[rows] = (page[byte] & bit) != 0
        return found

    def add(self, places: npt.NDArray[np.int64]) -> None:
        for number, rows in self._by_page(places):
            page = self._pages.setdefault(number, np.zeros(1 << _PAGE_BITS - 3, dtype=np.uint8))
            byte, bit = self._address(places[rows])
            np.bitwise_or.at(page, byte, bit)

    @staticmethod
    def _by_page(places: npt.NDArray[np.int64]) -> list[tuple[int, slice | npt.NDArray[np.int64]]]:
        pages = places >> _PAGE_BITS
        if not len(pages):
            return []
        if (first := int(pages[0])) == pages.max() == pages.min():
            return [(first, slice(None))]
        return [(number, np.flatnonzero(pages == number)) for number in np.unique(pages).tolist()]

    @staticmethod
    def _address(places: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
        within = places & ((1 << _PAGE_BITS) - 1)
        return within >> 3, np.left_shift(1, within & 7).astype(np.uint8)
