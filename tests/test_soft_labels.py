"""Learned labels: from a teacher, moved by a gradient, stored in bf16, accepted by evaluate."""

import pytest
import torch

from gsdd_lib.budget import plan_budget
from gsdd_lib.config import BudgetConfig, DataConfig, EvalConfig
from gsdd_lib.data import load_data
from gsdd_lib.evaluate import evaluate, random_real_images
from gsdd_lib.soft_labels import SoftLabels, labels_of_classes, labels_of_teacher


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
    config = BudgetConfig(ipc=1, gpc=10, soft_labels=True)
    budget = plan_budget(config, channels=1, height=28, width=28, num_classes=10)
    assert labels_of_classes(torch.arange(10), 10).bits == 10 * budget.label_bits


def test_the_gradient_of_the_loss_by_hand():
    soft, logits = SoftLabels(torch.tensor([[0.5, -1.0, 2.0]])), torch.tensor([[1.0, 0.0, -1.0]])
    loss = soft.loss(logits)
    p, surprise = soft.probabilities().detach()[0], -logits.log_softmax(1)[0]
    assert loss.item() == pytest.approx((p @ surprise).item())
    loss.backward()
    torch.testing.assert_close(soft.logits.grad[0], p * (surprise - p @ surprise))


def test_evaluate_takes_them():
    data = load_data(DataConfig(dataset="digits"))
    images, labels = random_real_images(data, 1, seed=0)
    config = EvalConfig(networks=1, eval_network="ConvNetD2", eval_width=4, epochs=2)
    soft = labels_of_classes(labels, 10, confidence=0.8)
    assert len(evaluate(images, soft.probabilities(), data, config, seed=0)) == 1


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"finite logits \[N, num_classes\], got \[3\]"):
        SoftLabels(torch.zeros(3))
    with pytest.raises(ValueError, match="finite logits"):
        SoftLabels(torch.tensor([[float("nan"), 0.0]]))
    with pytest.raises(ValueError, match="between 1/10 and 1, got 0.1"):
        labels_of_classes(torch.arange(10), 10, confidence=0.1)
