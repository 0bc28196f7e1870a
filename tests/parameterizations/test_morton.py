"""The Morton curve: by hand, there and back."""

import numpy as np

from gsdd_lib.parameterizations.morton import coordinates_at, places_along


def test_a_square_of_four_by_four():
    coordinates = np.stack(np.meshgrid(range(4), range(4)), -1)  # rows of y, columns of x
    assert places_along(coordinates, 2).tolist() == [
        [0, 1, 4, 5],
        [2, 3, 6, 7],
        [8, 9, 12, 13],
        [10, 11, 14, 15],
    ]


def test_there_and_back():
    places = np.arange(4**5).reshape(8, -1)
    assert np.array_equal(places_along(coordinates_at(places, 5), 5), places)
