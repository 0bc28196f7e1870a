"""Data sets in memory: splits, normalization, the embedded and generated sets, a user's own."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gsdd_lib.config import DataConfig
from gsdd_lib.core.errors import ConfigError
from gsdd_lib.data import DataError, ImageSet, from_tensors, load_data
from gsdd_lib.data.dataset import keep_per_class, resize, stratified_split
from gsdd_lib.data.normalization import channel_statistics
from gsdd_lib.data.synthetic import FIGURES, make_shapes, read_digits, read_shapes


def load(dataset="digits", seed=0, **fields):
    return load_data(DataConfig(dataset=dataset, **fields), seed)


def counts(split):
    return torch.bincount(split.labels).tolist()


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def own():
    """40 images of 2x3 pixels in 4 classes, each image a level of its own."""
    images = torch.arange(40, dtype=torch.uint8).view(40, 1, 1, 1).expand(40, 1, 2, 3).contiguous()
    return images, torch.arange(40) % 4


# Splits


@given(st.lists(st.integers(0, 4), min_size=1, max_size=80), st.floats(0.01, 0.99))
def test_a_split_has_every_index_once_and_its_share_of_each_class(labels, fraction):
    labels = torch.tensor(labels)
    kept, held = stratified_split(labels, fraction, generator=draw())
    assert sorted(torch.cat([kept, held]).tolist()) == list(range(len(labels)))
    for label in labels.unique():
        total, share = int((labels == label).sum()), int((labels[held] == label).sum())
        assert share == min(max(round(total * fraction), 1), total - 1)


def test_keep_per_class_is_nested_and_bounded():
    labels = torch.tensor([0, 1, 0, 1, 0, 1, 2, 0])
    few, more = (keep_per_class(labels, n, generator=draw()) for n in (1, 3))
    assert torch.bincount(labels[few]).tolist() == [1, 1, 1]
    assert torch.bincount(labels[more]).tolist() == [3, 3, 1]
    assert set(few.tolist()) < set(more.tolist())


def test_select_takes_indices_masks_and_slices(own):
    images = ImageSet(*own)
    assert images.select([3, 1]).images[:, 0, 0, 0].tolist() == [3, 1]
    assert images.select(images.labels == 2).labels.tolist() == [2] * 10
    assert len(images.select(slice(0, 7))) == 7


def test_the_holdout_depends_on_the_seed_and_the_test_images_do_not():
    first, again, other = load(seed=0), load(seed=0), load(seed=1)
    assert torch.equal(first.validation.images, again.validation.images)
    assert not torch.equal(first.validation.images, other.validation.images)
    assert torch.equal(first.test.images, other.test.images)


def test_the_holdout_is_a_tenth_of_each_class():
    data = load()
    for trained, held in zip(counts(data.train), counts(data.validation), strict=True):
        assert held == round((trained + held) * 0.1)


def test_max_per_class_thins_training_images_alone():
    whole, thin = load(), load(max_per_class=5)
    assert counts(thin.train) == [5] * 10
    assert torch.equal(whole.validation.images, thin.validation.images)
    assert torch.equal(whole.test.images, thin.test.images)


def test_nothing_draws_from_the_global_generator():
    before = torch.get_rng_state()
    load("shapes", max_per_class=3)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_an_empty_split_is_refused(split):
    data = load()
    with pytest.raises(DataError, match=f"'digits' has no {split} images; each split needs some"):
        replace(data, **{split: data.train.select([])})


def test_a_class_without_training_images_is_refused():
    data = load()
    fewer = data.train.select(data.train.labels != 7)
    with pytest.raises(DataError, match="'digits' has no training images of class '7'; add some"):
        replace(data, train=fewer)


@pytest.mark.parametrize("holdout", [0.0, 1.0, 1.5, float("nan")])
def test_an_impossible_holdout_is_refused(holdout, own):
    with pytest.raises(DataError, match=f"holdout must be greater than 0 .* got {holdout:g}"):
        from_tensors(*own, holdout=holdout)


# Normalization and resolution


def test_normalize_by_hand():
    data = load()
    image = torch.full((1, 8, 8), 255, dtype=torch.uint8)
    expected = (1 - data.mean[0]) / data.std[0]
    assert torch.allclose(data.normalize(image), torch.tensor(expected))
    assert torch.allclose(data.normalize(image / 255), torch.tensor(expected))


def test_unit_undoes_normalize_and_gradients_flow():
    data = load("shapes")
    images = torch.rand(2, 5, 3, 4, 4, generator=draw(), requires_grad=True)
    normalized = data.normalize(images)
    assert torch.allclose(data.unit(normalized), images, atol=1e-6)
    normalized.sum().backward()
    assert torch.allclose(images.grad, torch.full_like(images, 1 / data.std[0]))
    assert data.normalize(images.bfloat16()).dtype == torch.float32


def test_normalize_images_of_other_channels():
    with pytest.raises(
        DataError, match=r"do not fit the normalization; pass \[\.\.\., 3, height, width\]"
    ):
        load("shapes").normalize(torch.rand(2, 1, 32, 32))


def test_resize_by_hand():
    image = torch.tensor([[0, 100], [200, 40]], dtype=torch.uint8).view(1, 1, 2, 2)
    assert resize(image, 1).item() == 85  # the mean
    assert resize(image, 2) is image
    flat = torch.full((3, 1, 5, 7), 77, dtype=torch.uint8)
    assert torch.equal(resize(flat, 9), torch.full((3, 1, 9, 9), 77, dtype=torch.uint8))


def test_resize_is_anti_aliased():
    stripes = torch.zeros(1, 1, 64, 64, dtype=torch.uint8)
    stripes[..., ::2] = 200
    inner = resize(stripes, 16)[..., 2:-2].int()
    assert (inner - 100).abs().max() <= 4  # plain bilinear sampling gives stripes again


def test_resolution_brings_all_splits_to_one_size():
    data = load(resolution=12)
    assert data.resolution == (12, 12)
    for split in (data.train, data.validation, data.test):
        assert split.images.shape[1:] == (1, 12, 12) and split.images.dtype == torch.uint8


def test_a_resolution_that_fills_the_memory():
    with pytest.raises(DataError, match=r"needs 112 GiB .*; choose a smaller resolution"):
        load("shapes", resolution=4096)


# The table


def test_an_unknown_data_set_names_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown data set 'digit', did you mean 'digits'\?"):
        load("digit")
    with pytest.raises(ConfigError, match="did you mean 'cifar10'"):
        DataConfig(dataset="cifar-10")


def test_the_provenance_says_what_is_held_out():
    assert load().provenance.endswith("scikit-learn, 10% of each class held out for validation")
    assert ", 2.5% of each class held out" in load(holdout=0.025).provenance


@pytest.mark.parametrize("read", [read_digits, read_shapes])
def test_mean_and_std_are_those_of_the_training_images(read):
    raw = read(DataConfig())
    mean, std = channel_statistics(raw.train.images)
    assert torch.tensor(raw.mean) == pytest.approx(torch.tensor(mean), abs=0.007)
    assert torch.tensor(raw.std) == pytest.approx(torch.tensor(std), abs=0.007)


# digits


def test_digits():
    data = load()
    assert (data.num_classes, data.channels, data.resolution) == (10, 1, (8, 8))
    assert len(data.train) + len(data.validation) + len(data.test) == 1797
    assert data.train.images.max() == 255
    assert all(abs(n - 36) <= 1 for n in counts(data.test))  # a fifth of 174 to 183


def test_digits_are_scikit_learns():
    # level 16 of 16 is 255, and 255 / 16 is rounded to nearest
    sklearn = pytest.importorskip("sklearn.datasets").load_digits()
    raw = read_digits(DataConfig())
    ours = torch.cat([raw.train.images, raw.test.images]).flatten(1)
    theirs = torch.from_numpy(sklearn.images * 255 / 16 + 0.5).to(torch.uint8).flatten(1)
    assert sorted(ours.tolist()) == sorted(theirs.tolist())


# shapes


def test_shapes_are_a_function_of_the_seed():
    one, same, other = (make_shapes(3, 16, seed=s) for s in (0, 0, 1))
    assert torch.equal(one.images, same.images)
    assert not torch.equal(one.images, other.images)
    assert one.labels.tolist() == sorted(list(range(len(FIGURES))) * 3)


def test_shapes_show_the_same_scenes_at_every_resolution():
    coarse, fine = (make_shapes(4, r, seed=0).images.float() for r in (32, 96))
    shrunk = torch.nn.functional.avg_pool2d(fine, 3)
    assert (coarse - shrunk).abs().mean() < 1.5  # of 255; edges differ by a little


def test_shapes_do_not_depend_on_the_chunks(monkeypatch):
    whole = make_shapes(5, 16, seed=0).images
    monkeypatch.setattr("gsdd_lib.data.synthetic.CHUNK_PIXELS", 2 * 16**2)
    assert torch.equal(whole, make_shapes(5, 16, seed=0).images)


def test_training_and_test_shapes_are_different():
    data = load("shapes")
    assert (data.num_classes, data.channels, data.resolution) == (8, 3, (32, 32))
    train = {image.numpy().tobytes() for image in data.train.images}
    assert not any(image.numpy().tobytes() in train for image in data.test.images)
    assert counts(data.test) == [100] * 8


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_lies_inside_its_circle_and_is_not_empty(name):
    axis = torch.linspace(-2, 2, 201)
    y, x = (grid.numpy() for grid in torch.meshgrid(axis, axis, indexing="ij"))
    inside = FIGURES[name](x, y) < 0
    assert 0.1 < inside.mean() * 16 < 3.3  # area; a disc has 3.14
    assert (x**2 + y**2)[inside].max() < 1.3


# from_tensors


def test_from_tensors_splits_a_fifth_and_a_tenth(own):
    data = from_tensors(*own)
    assert (len(data.train), len(data.validation), len(data.test)) == (28, 4, 8)
    assert counts(data.test) == [2] * 4
    assert data.class_names == ("0", "1", "2", "3")
    assert (data.channels, data.resolution) == (1, (2, 3))
    levels = torch.cat([s.images[:, 0, 0, 0] for s in (data.train, data.validation, data.test)])
    assert sorted(levels.tolist()) == list(range(40))


def test_from_tensors_test_split_does_not_depend_on_the_seed(own):
    one, other = from_tensors(*own, seed=0), from_tensors(*own, seed=1)
    assert torch.equal(one.test.images, other.test.images)
    assert not torch.equal(one.validation.images, other.validation.images)


def test_from_tensors_keeps_the_test_set_given(own):
    images, labels = own
    test_set = {"test_images": images[:4], "test_labels": labels[:4]}
    data = from_tensors(images, labels, **test_set, class_names=list("abcd"), name="mine")
    assert torch.equal(data.test.images, images[:4])
    assert (data.name, data.class_names) == ("mine", ("a", "b", "c", "d"))
    assert data.mean[0] == pytest.approx(19.5 / 255)  # levels 0 to 39
    assert data.std[0] == pytest.approx(((40**2 - 1) / 12) ** 0.5 / 255)


def test_from_tensors_floats_are_the_same_as_bytes(own):
    images, labels = own
    as_floats = from_tensors(images / 255, labels.to(torch.uint8))
    assert torch.equal(as_floats.train.images, from_tensors(images, labels).train.images)


BAD = {
    "an array": (lambda i, y: (i.numpy(), y), "must be a torch tensor, got ndarray"),
    "no channel": (lambda i, y: (i[:, 0], y), r"\[40, 2, 3\]; add a channel"),
    "channels last": (lambda i, y: (torch.ones(40, 9, 8, 3), y), "use images.permute"),
    "five channels": (lambda i, y: (i.expand(-1, 5, -1, -1), y), "C from 1 to 4"),
    "no images": (lambda i, y: (i[:0], y[:0]), r"got \[0, 1, 2, 3\]"),
    "integers of 32 bits": (lambda i, y: (i.int(), y), "got torch.int32"),
    "floats up to 255": (lambda i, y: (i.float(), y), "got 0 to 39; divide by"),
    "a NaN": (lambda i, y: (torch.where(i == 7, torch.nan, i / 255), y), "got nan .*not finite"),
    "one label too few": (lambda i, y: (i, y[1:]), "of one length, got 40 and 39"),
    "labels of floats": (lambda i, y: (i, y.float()), "integers of shape .*torch.float32"),
    "labels in two dimensions": (lambda i, y: (i, y[:, None]), r"of shape \[40, 1\]"),
    "a negative label": (lambda i, y: (i, y - 1), "0 to 2 for 3 classes, got -1 to 2"),
    "a class without images": (
        lambda i, y: (i, y + 1),
        r"class 0 \('0'\) has 0 training",
    ),
    "a label beyond all sense": (
        lambda i, y: (i, torch.where(y == 3, 2**31, y)),
        "labels reach 2147483648 but there are only 40 images; number the classes 0, 1, 2",
    ),
    "a single class": (lambda i, y: (i, y * 0), "'tensors' has a single class; classification"),
    "a constant channel": (lambda i, y: (i * 0, y), "channel 0 has one value in all images"),
}


@pytest.mark.parametrize("case", BAD)
def test_from_tensors_refuses(case, own):
    spoil, sentence = BAD[case]
    with pytest.raises(DataError, match=sentence) as caught:
        from_tensors(*spoil(*own))
    assert "\n" not in str(caught.value)


def test_from_tensors_refuses_fewer_names_than_classes(own):
    with pytest.raises(DataError, match="0 to 1 for 2 classes, got 0 to 3"):
        from_tensors(*own, class_names=["a", "b"])


def test_from_tensors_refuses_test_images_without_labels(own):
    with pytest.raises(DataError, match="go together"):
        from_tensors(*own, test_images=own[0])


def test_from_tensors_refuses_test_images_of_another_shape(own):
    images, labels = own
    with pytest.raises(DataError, match=r"\[1, 2, 2\] but images of \[1, 2, 3\]"):
        from_tensors(images, labels, test_images=images[..., :2], test_labels=labels)


def test_from_tensors_refuses_test_labels_out_of_range(own):
    with pytest.raises(DataError, match="test_labels must lie in 0 to 3"):
        from_tensors(*own, test_images=own[0], test_labels=own[1] + 1)
