"""The published definitions on small inputs, as plain loops over numbers, beside the library's.

Each formula is written out from its paper; what it gives is stored, so that neither side can move.
"""

import math

import pytest
import torch
from torch import nn

from gsdd_lib.core.files import project_root
from gsdd_lib.distillation.dc import gradient_distance
from gsdd_lib.distillation.dm import dm_loss
from gsdd_lib.distillation.tm import student_path, tm_loss
from gsdd_lib.experiment.parameter_files import load_parameters

# ------------------------------------- gradient matching (arXiv 2006.05929, eq. 7, metric "ours")

LINEAR_REAL = [[1.0, 2.0, -1.0], [0.5, -0.5, 2.0]]
LINEAR_SYN = [[0.5, 1.5, 1.0], [-1.0, 1.0, 0.25]]
CONV_REAL = [[[[1.0, -2.0]], [[0.5, 3.0]]]]  # one filter over two channels of 1x2
CONV_SYN = [[[[2.0, 1.0]], [[-0.5, 1.0]]]]
BIAS_REAL, BIAS_SYN = [3.0, -1.0], [-3.0, 1.0]  # opposed, and without a share in the distance
DISTANCE = 2.327180143828153


def numbers_of(nested) -> list[float]:
    return [nested] if isinstance(nested, float) else [x for one in nested for x in numbers_of(one)]


def published_distance(pairs, epsilon: float) -> float:
    total = 0.0
    for real, syn in pairs:
        if isinstance(real[0], float):  # a vector
            continue
        for one, other in zip(map(numbers_of, real), map(numbers_of, syn), strict=True):
            product = sum(a * b for a, b in zip(one, other, strict=True))
            norms = math.sqrt(sum(a * a for a in one)) * math.sqrt(sum(b * b for b in other))
            total += 1 - product / (norms + epsilon)
    return total


def test_gradient_distance():
    pairs = [(LINEAR_REAL, LINEAR_SYN), (BIAS_REAL, BIAS_SYN), (CONV_REAL, CONV_SYN)]
    real, syn = ([torch.tensor(pair[i], dtype=torch.float64) for pair in pairs] for i in range(2))
    ours = gradient_distance(real, syn).item()
    assert ours == pytest.approx(published_distance(pairs, 0.0), rel=1e-14)
    assert ours == pytest.approx(DISTANCE, rel=1e-12)
    # The published code adds 1e-6 to each of the three products of norms, the least of them 3.05.
    assert published_distance(pairs, 1e-6) == pytest.approx(ours, abs=3 * 1e-6 / 3.04)


# ------------------------------------------------- distribution matching (arXiv 2110.04181, eq. 5)

REAL = {0: [[1.0, 0.0], [3.0, 2.0], [2.0, 4.0]], 1: [[-1.0, 1.0], [0.0, 5.0]]}
SYN, SYN_LABELS = [[0.5, 1.0], [1.0, -1.0], [2.0, 0.5]], [0, 1, 0]
DM_LOSS, DM_GRADIENT = 20.375, [[-0.75, -1.25], [3.0, -8.0], [-0.75, -1.25]]


def published_dm(syn) -> float:
    total = 0.0
    for label, real in REAL.items():
        own = [row for row, other in zip(syn, SYN_LABELS, strict=True) if other == label]
        for feature in range(2):
            mean_real = sum(row[feature] for row in real) / len(real)
            mean_syn = sum(row[feature] for row in own) / len(own)
            total += (mean_real - mean_syn) ** 2
    return total


def published_dm_gradient() -> list[list[float]]:
    gradient = []
    for label in SYN_LABELS:
        own = [row for row, other in zip(SYN, SYN_LABELS, strict=True) if other == label]
        means = [
            (sum(r[f] for r in REAL[label]) / len(REAL[label]), sum(r[f] for r in own) / len(own))
            for f in range(2)
        ]
        gradient.append([-2 * (real - syn) / len(own) for real, syn in means])
    return gradient


def test_distribution_matching():
    means = [[sum(row[f] for row in rows) / len(rows) for f in range(2)] for rows in REAL.values()]
    syn = torch.tensor(SYN, dtype=torch.float64, requires_grad=True)
    loss = dm_loss(torch.tensor(means, dtype=torch.float64), syn, torch.tensor(SYN_LABELS))
    (gradient,) = torch.autograd.grad(loss, syn)
    assert loss.item() == pytest.approx(published_dm(SYN), rel=1e-14)
    assert loss.item() == pytest.approx(DM_LOSS, rel=1e-12)
    assert gradient.tolist() == [pytest.approx(row) for row in published_dm_gradient()]
    assert gradient.tolist() == [pytest.approx(row) for row in DM_GRADIENT]


# ---------------------------------------------------- trajectory matching (arXiv 2203.11932, eq. 3)

IMAGES, LABELS, LR = [[1.0, 2.0], [-1.0, 0.5], [0.5, -2.0]], [0, 1, 1], 0.7
START, TARGET = [[0.1, -0.2], [0.3, 0.4]], [[0.6, 0.2], [-0.1, -0.3]]
BATCHES = [[0, 1], [2, 0]]
TM_LOSS = 0.2817880708064294


def published_tm(images, lr: float) -> float:
    """Of a student of two classes without a bias, after two steps of plain SGD."""
    weight = [row[:] for row in START]
    for batch in BATCHES:
        step = [[0.0, 0.0], [0.0, 0.0]]
        for image in batch:
            x, label = images[image], LABELS[image]
            logits = [row[0] * x[0] + row[1] * x[1] for row in weight]
            total = sum(math.exp(logit) for logit in logits)
            for k in range(2):
                surplus = math.exp(logits[k]) / total - (k == label)
                for pixel in range(2):
                    step[k][pixel] += surplus * x[pixel] / len(batch)
        weight = [[weight[k][p] - lr * step[k][p] for p in range(2)] for k in range(2)]

    def squared(one, other) -> float:
        return sum((one[k][p] - other[k][p]) ** 2 for k in range(2) for p in range(2))

    return squared(weight, TARGET) / squared(START, TARGET)


@pytest.mark.parametrize("keep_steps", [0, 2])
def test_trajectory_matching_with_two_steps(keep_steps):
    images = torch.tensor(IMAGES, dtype=torch.float64, requires_grad=True)
    lr = torch.tensor(LR, dtype=torch.float64, requires_grad=True)
    start, target = (torch.tensor(side, dtype=torch.float64).flatten() for side in (START, TARGET))
    network = nn.Linear(2, 2, bias=False).double()
    batches, labels = [torch.tensor(batch) for batch in BATCHES], torch.tensor(LABELS)
    named = {"batches": batches, "keep_steps": keep_steps}
    loss = tm_loss(student_path(network, start, images, labels, lr, **named), start, target)
    in_images, in_lr = torch.autograd.grad(loss, (images, lr))
    assert loss.item() == pytest.approx(published_tm(IMAGES, LR), rel=1e-13)
    assert loss.item() == pytest.approx(TM_LOSS, rel=1e-12)
    slope = (published_tm(IMAGES, LR + 1e-6) - published_tm(IMAGES, LR - 1e-6)) / 2e-6
    assert in_lr.item() == pytest.approx(slope, rel=1e-7)
    for image in range(3):
        for pixel in range(2):
            moved = [[row[:] for row in IMAGES] for _ in range(2)]
            moved[0][image][pixel] += 1e-6
            moved[1][image][pixel] -= 1e-6
            slope = (published_tm(moved[0], LR) - published_tm(moved[1], LR)) / 2e-6
            assert in_images[image, pixel].item() == pytest.approx(slope, rel=1e-6, abs=1e-9)


# ------------------------------------------------------------ boundary loss (the published weight)


def test_the_boundary_loss_of_a_class_weighs_what_the_published_code_gives_it():
    """There 0.1 times the mean over both coordinates, a half of eq. 9, in each class's update."""
    folder, found = project_root() / "params" / "paper" / "06_distill_imagenet", 0
    for case in map(load_parameters, folder.glob("d[mc]*.yaml")):
        assert case.get("update_per_class", False) == (case["objective"] == "dm")
        assert case["boundary"] / 10 == pytest.approx(0.1 / 2)  # ten classes share ``boundary``
        found += 1
    assert found == 18
