"""The Morton curve: places whose numbers are close are mostly close in the plane."""

import numpy as np


def places_along(rows: np.ndarray, bits: int) -> np.ndarray:
    """Places [...] along the curve of the coordinates ``rows[..., :2]``, integers of ``bits`` bits.

    The bits of both coordinates alternate, those of the first in the even places.
    """
    places = np.zeros(rows.shape[:-1], np.int64)
    for bit in range(bits):
        for axis in (0, 1):
            places |= (rows[..., axis] >> bit & 1) << 2 * bit + axis
    return places


def coordinates_at(places: np.ndarray, bits: int) -> np.ndarray:
    """Coordinates [..., 2] of places [...] along the curve; undoes :func:`places_along`."""
    coordinates = np.zeros((*places.shape, 2), np.int64)
    for bit in range(bits):
        for axis in (0, 1):
            coordinates[..., axis] |= (places >> 2 * bit + axis & 1) << bit
    return coordinates
