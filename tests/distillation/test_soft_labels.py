"""Learned labels: from a teacher, moved by a gradient, stored in bf16, accepted by evaluate."""

import pytest
import torch
from torch.nn.functional import one_hot

from gsdd_lib.config import BudgetConfig, DataConfig, EvalConfig
from gsdd_lib.data import load_data
from gsdd_lib.distillation.soft_labels import (
    SoftLabels,
    labels_of_teacher,
    train_teacher,
)
from gsdd_lib.evaluation.baselines import RealImages
from gsdd_lib.evaluation.evaluate import evaluate
from gsdd_lib.parameterizations.budget import plan_budget
from gsdd_lib.parameterizations.codec import LabelCodec, decode_labels, encode_labels
from gsdd_lib.training.train import accuracy


class Teacher(torch.nn.Module):
    def forward(self, images):
        assert not self.training
        return images.flatten(1)


def test_the_teachers_logits_with_the_own_class_on_top():
    said = torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0]]).view(2, 3, 1, 1)
    teacher = Teacher().train()
    soft = labels_of_teacher(teacher, said, torch.tensor([0, 1]))
    assert soft.logits.tolist() == [[3, 1, 2], [1, 3, 2]] and teacher.training
    assert said.flatten().tolist() == [3, 1, 2, 3, 1, 2]  # the teacher's output is left alone


def test_probabilities_are_those_of_the_stored_logits():
    soft = SoftLabels(torch.randn(4, 5))
    expected = soft.logits.bfloat16().float().softmax(1)
    assert torch.equal(soft.probabilities(), expected)
    assert torch.equal(soft.probabilities(torch.tensor([2, 0])), expected[[2, 0]])
    torch.testing.assert_close(soft.probabilities().sum(1), torch.ones(4))


def test_bits_are_those_of_the_budget():
    config = BudgetConfig(ipc=4, gpc=2, soft_labels=True)
    budget = plan_budget(config, load_data(DataConfig(dataset="digits")))
    assert SoftLabels(4.4 * one_hot(torch.arange(10), 10)).bits == 10 * budget.label_bits


def test_with_a_codec_labels_are_what_four_bits_hold():
    soft = SoftLabels(3 * torch.randn(30, 10))
    soft.codec = LabelCodec.fit(soft.logits)
    content = encode_labels(soft.codec.quantize(soft.logits.detach()), soft.codec)
    levels, codec = decode_labels(content)
    assert soft.bits == 8 * len(content)
    assert torch.equal(soft.probabilities(), codec.dequantize(levels).softmax(1))
    assert torch.equal(
        SoftLabels(codec.dequantize(levels), codec).probabilities(), soft.probabilities()
    )
    soft.probabilities()[:, 0].sum().backward()
    assert soft.logits.grad.abs().sum() > 0


def test_the_gradient_in_the_logits_by_hand():
    soft, surprise = SoftLabels(torch.tensor([[0.5, -1.0, 2.0]])), torch.tensor([1.0, 0.0, -1.0])
    p = soft.probabilities().detach()[0]
    (soft.probabilities() @ surprise).sum().backward()
    torch.testing.assert_close(soft.logits.grad[0], p * (surprise - p @ surprise))


def test_evaluate_takes_them():
    data = load_data(DataConfig(dataset="digits"))
    images, labels = RealImages().choose(data, 1, seed=0)
    config = EvalConfig(networks=1, eval_network="ConvNetD2", eval_width=4, epochs=2)
    soft = SoftLabels(4.4 * one_hot(labels, 10))
    assert len(evaluate(images, soft.probabilities(), data, config, seed=0)) == 1


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"finite logits \[N, num_classes\], got \[3\]"):
        SoftLabels(torch.zeros(3))
    with pytest.raises(ValueError, match="finite logits"):
        SoftLabels(torch.tensor([[float("nan"), 0.0]]))


SMALL = EvalConfig(networks=1, eval_network="ConvNetD2", eval_width=8, epochs=2)


@pytest.fixture(scope="module")
def digits():
    return load_data(DataConfig(dataset="digits", max_per_class=40))


def test_a_teacher_of_ones_own_is_better_than_chance_and_repeats(digits):
    first, again = (train_teacher(digits, SMALL, seed=0) for _ in range(2))
    held = digits.validation
    assert accuracy(first, held.images, held.labels, normalize=digits.normalize) > 50
    pairs = zip(first.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs) and not first.training
