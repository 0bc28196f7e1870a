"""Equal seeds and purposes give equal numbers, and others do not."""

import torch

from gsdd_lib.core.rng import generator


def test_numbers_depend_on_seed_and_purpose_alone():
    first = torch.rand(3, generator=generator(0, "fit", 1))
    torch.rand(3)
    assert torch.equal(first, torch.rand(3, generator=generator(0, "fit", 1)))
    for other in (generator(1, "fit", 1), generator(0, "fit", 2), generator(0, "fit")):
        assert not torch.equal(first, torch.rand(3, generator=other))
