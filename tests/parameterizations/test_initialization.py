"""Which images are chosen; where Gaussians start and where they are moved to."""

import pytest
import torch

from gsdd_lib.config import DataConfig
from gsdd_lib.data import ImageData, load_data
from gsdd_lib.parameterizations.initialization import (
    choose_images,
    place,
    place_as_published,
    relocate,
    spacing,
)


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data(DataConfig(dataset="digits", max_per_class=12))


@pytest.mark.parametrize("init", ["real", "first", "kmeans"])
def test_distinct_training_images_of_the_right_class_are_chosen(data, init):
    chosen = choose_images(data, 3, init, seed=0)
    assert chosen.shape == (30, 1, 8, 8)
    for label in range(10):
        own = chosen[3 * label : 3 * label + 3]
        members = data.train.images[data.train.labels == label] / 255
        assert all((members == one).flatten(1).all(1).any() for one in own)  # to the bit
        assert len(own.flatten(1).unique(dim=0)) == 3
        if init == "first":
            assert torch.equal(own, members[:3])


@pytest.mark.parametrize("init", ["real", "first", "kmeans"])
def test_a_class_that_is_too_small_gives_its_images_again(data, init):
    chosen = choose_images(data, 30, init, seed=0)
    assert len(chosen) == 300 and len(chosen[:30].flatten(1).unique(dim=0)) == 12


@pytest.mark.parametrize("init", ["warmup", "random"])
def test_the_solid_color_is_the_mean(data, init):
    chosen = choose_images(data, 2, init, seed=0)
    assert chosen.shape == (20, 1, 8, 8) and (chosen == torch.tensor(data.mean)).all()


def test_published_values_do_not_depend_on_the_images():
    one, other = torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)
    packed = place_as_published(one, 500, seed=0)
    assert torch.equal(packed, place_as_published(other, 500, seed=0))
    assert not torch.equal(packed, place_as_published(one, 500, seed=1))
    low, high = packed.flatten(0, 1).aminmax(dim=0)
    for column, (least, most) in enumerate([(-1, 1)] * 2 + [(0.5, 1.5), (0, 1), (0.5, 1.5)]):
        assert least <= low[column] < least + 0.02 and most - 0.02 < high[column] <= most
    assert (packed[..., -1] == 1).all()
    assert place_as_published(one, 7, opacity=False, seed=0).shape == (2, 7, 8)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_spacing_is_the_side_of_a_gaussians_share():
    assert spacing(4, 20, 20) == 10 and spacing(0, 3, 3) == 3


def test_gaussians_start_at_detail_with_half_its_color():
    image = torch.zeros(1, 3, 20, 20)
    image[:, 1, 4:8, 12:16] = 0.8
    packed = place(image, 12, seed=0)
    x, y = (packed[0, :, 0] + 1) * 10, (packed[0, :, 1] + 1) * 10
    near = (x > 11) & (x < 17.5) & (y > 3) & (y < 9.5)
    assert near.float().mean() > 0.8
    inside = (x > 12) & (x < 16) & (y > 4) & (y < 8)
    assert torch.allclose(packed[0, inside, 6], torch.tensor(0.4)) and (packed[..., -1] == 1).all()
    assert place(image, 12, opacity=False, seed=0).shape == (1, 12, 8)


def scene() -> tuple[torch.Tensor, torch.Tensor]:
    """Six Gaussians of growing effect, twice, and an error of color (0.5, -0.25, 0) in a corner."""
    packed = torch.zeros(2, 6, 9)
    packed[..., 2] = packed[..., 4] = 2.0
    packed[..., 5] = torch.tensor([0.3, -0.01, 0.9, 0.2, 0.8, 0.7])
    packed[..., -1] = torch.tensor([1.0, 1.0, 1.0, 0.1, 1.0, 1.0])
    missing = torch.zeros(2, 3, 16, 24)
    missing[:, :2, 9:15, 17:23] = torch.tensor([0.5, -0.25])[:, None, None]
    return packed, missing


def test_those_that_do_least_move_to_where_most_is_wrong():
    packed, missing = scene()
    least, rows = relocate(packed, missing, 2, seeded())
    assert least.shape == (2, 2, 1) and rows.shape == (2, 2, 9)
    assert all(set(indices) == {1, 3} for indices in least[..., 0].tolist())
    x, y = (rows[..., 0] + 1) * 12, (rows[..., 1] + 1) * 8
    assert ((x > 16) & (x < 24) & (y > 8) & (y < 16)).all()
    assert (rows[..., 5] > 0).all() and (rows[..., 6] < 0).all() and (rows[..., 7] == 0).all()


def test_moving_where_nothing_is_wrong_adds_nothing():
    packed, missing = scene()
    _, rows = relocate(packed, 0 * missing, 3, seeded())
    assert rows.isfinite().all() and (rows[..., 5:8] == 0).all()


def test_rows_without_an_opacity_move_too():
    packed, missing = scene()
    least, rows = relocate(packed[..., :-1], missing, 1, seeded())
    assert rows.shape == (2, 1, 8) and (least == 1).all()


def test_more_gaussians_than_pixels_can_be_placed_and_moved():
    packed = place(torch.rand(2, 1, 3, 2), 20, seed=0)
    _, rows = relocate(packed, torch.rand(2, 1, 3, 2), 10, seeded())
    assert packed.isfinite().all() and rows.shape == (2, 10, 7) and rows.isfinite().all()
