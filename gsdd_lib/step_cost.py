"""Memory and work of one step of each objective, put together from its passes.

``phases`` follows :mod:`gsdd_lib.matching` line by line and says how many bytes are alive in each
part of a step; ``work`` says how many images go through which pass. Counted is everything that a
step holds beside the data set and the process itself: Gaussians, their gradient and Adam's moments,
the images drawn, rendered and augmented, networks, activations and gradients. Not counted: what a
kernel takes for itself while it runs.
"""

from dataclasses import dataclass, field
from functools import cached_property, partial

from gsdd_lib import passes
from gsdd_lib.budget import Budget
from gsdd_lib.config import DistillConfig, EvalConfig
from gsdd_lib.data.described import DataDescription
from gsdd_lib.network_cost import Cost, cost_of, count_parameters, counting_network
from gsdd_lib.passes import Bench, Pass
from gsdd_lib.training import TEST_BATCH

NUMBER = 4  # bytes of a float32
STATE = 7  # Gaussians as they are and rounded, gradient, Adam's two moments, before a step, best
RENDERED = 5  # images, their gradient, and what adding a gradient that is known already keeps
AUGMENTED = 6  # a class's images cut out, augmented and put in order, with the graph behind them
STUDENT = 2  # steps of a student that are counted; longer paths are extrapolated
# A CPU's process gets larger than its tensors, by the holes they leave in the C library's heap as
# they come and go. Measured with glibc 2.36: some pieces of a batch (their first activation), and
# where a second derivative's graph is kept, as much again as there are tensors and a little more.
HOLES = 3.0
SECOND_ORDER = 2.2


@dataclass
class CountedPass:
    """Bytes and FLOPs of a pass over any number of images, counted once and kept."""

    bench: Bench
    call: Pass
    heap: float = 1.0
    known: dict[int, Cost] = field(default_factory=dict)

    def bytes(self, count: int) -> int:
        """At the peak of ``count`` images together."""
        if not count:
            return 0
        piece = self.piece
        holes = HOLES * min(count, piece) * self.bench.network.image_bytes if self.on_cpu else 0
        if count <= 2 * piece:
            return int(self.heap * self._cost(count).peak_bytes + holes)
        one, two = (self._cost(n * piece).peak_bytes for n in (1, 2))  # each further costs as much
        return int(self.heap * (two + (two - one) / piece * (count - 2 * piece)) + holes)

    @property
    def flops_per_image(self) -> float:
        count = next(iter(self.known), 1)
        return self._cost(count).flops / count

    @cached_property
    def piece(self) -> int:
        """Images that go through the network together on a CPU; elsewhere all of them do."""
        network = self.bench.network
        return max(1, int(network.images_per_piece)) if self.on_cpu else 2**40

    @property
    def on_cpu(self) -> bool:
        return self.bench.device in self.bench.network.piece_devices

    def _cost(self, count: int) -> Cost:
        if count not in self.known:
            self.known[count] = cost_of(partial(self.call, self.bench, count))
        return self.known[count]


class StepCost:
    """Of the distillation of a data set into ``budget.gpc`` images per class.

    kind: ``cpu`` or ``cuda``; networks take other ways on them, and heaps differ
    """

    def __init__(
        self,
        about: DataDescription,
        budget: Budget,
        config: DistillConfig,
        eval_config: EvalConfig,
        kind: str,
    ) -> None:
        self.about, self.budget, self.config = about, budget, config
        self.eval_config = eval_config
        self.image = NUMBER * about.values
        self.synthetic = about.num_classes * budget.gpc
        self.real_per_class = min(config.batch_real, max(1, about.train // about.num_classes))
        self.real = about.num_classes * self.real_per_class
        self.batch_syn = min(config.batch_syn or self.synthetic, self.synthetic)
        size = (about.channels, about.height, about.width)
        more = {"num_classes": about.num_classes, "kind": kind}
        matched = counting_network(config.network, size, width=config.width, **more)
        judged = counting_network(
            eval_config.eval_network, size, width=eval_config.eval_width, **more
        )
        self.features = matched.num_features
        self.parameters = count_parameters(matched)
        self.network, self.judge = NUMBER * self.parameters, NUMBER * count_parameters(judged)
        bench = Bench(matched, (config.network, config.width), about, config.dsa)
        judge = (eval_config.eval_network, eval_config.eval_width)
        judge_bench = Bench(judged, judge, about, eval_config.eval_dsa)
        second = SECOND_ORDER if kind == "cpu" else 1.0
        self.passes = {
            "embed_real": CountedPass(bench, passes.embed_real),
            "embed_synthetic": CountedPass(bench, passes.embed_synthetic),
            "real_gradients": CountedPass(bench, passes.real_gradients),
            "synthetic_gradients": CountedPass(bench, passes.synthetic_gradients),
            "match_gradients": CountedPass(bench, passes.match_gradients, second),
            "kept_step": CountedPass(bench, passes.kept_step, second),
            "recomputed_step": CountedPass(bench, passes.recomputed_step, second),
            "train": CountedPass(judge_bench, passes.synthetic_gradients),
            "test": CountedPass(judge_bench, passes.classify),
        }
        self._students = [
            CountedPass(bench, partial(passes.student_steps, steps=STUDENT, keep_steps=k), second)
            for k in range(STUDENT + 1)
        ]

    # ------------------------------------------------------------------------------ memory

    def phases(self, *, micro_batch: int, keep_steps: int) -> dict[str, int]:
        """Bytes alive in each part of a step, and in an evaluation."""
        budget = self.budget
        numbers = self.synthetic * budget.points * budget.numbers_per_gaussian
        state = STATE * NUMBER * numbers
        find = {"dm": self._dm, "dc": self._dc, "tm": self._tm}[self.config.objective]
        parts = find(micro_batch, keep_steps)
        parts["evaluation"] = (
            self.synthetic * self.image
            + 3 * self.judge
            + max(
                self.passes["train"].bytes(min(self.eval_config.eval_batch, self.synthetic)),
                self.passes["test"].bytes(min(TEST_BATCH, self.about.validation)),
            )
        )
        return {name: state + size for name, size in parts.items()}

    def peak_bytes(self, *, micro_batch: int, keep_steps: int) -> int:
        """The most of them."""
        return max(self.phases(micro_batch=micro_batch, keep_steps=keep_steps).values())

    def _dm(self, micro_batch: int, _: int) -> dict[str, int]:
        always = self.network + self.real * self.about.values
        few = min(micro_batch, self.real)
        embeddings = 2 * NUMBER * self.real * self.features
        drawn = few * self.about.values
        gpc = self.budget.gpc
        if gpc > micro_batch:
            group = self.passes["embed_synthetic"].bytes(micro_batch) + AUGMENTED * gpc * self.image
        else:
            size = min(self.synthetic, gpc * (micro_batch // gpc))
            group = self.passes["embed_synthetic"].bytes(size) + 3 * size * self.image
        return {
            "real": always + embeddings + drawn + self.passes["embed_real"].bytes(few),
            "synthetic": always + 2 * self.synthetic * self.image + group,
            "render": always + RENDERED * self.synthetic * self.image,
        }

    def _dc(self, micro_batch: int, _: int) -> dict[str, int]:
        config, gpc = self.config, self.budget.gpc
        rendered = self.synthetic * self.image
        trained = config.outer_loop > 1
        always = self.network * (1 + trained) + (self.real + self.real_per_class) * (
            self.about.values
        )
        few = min(micro_batch, self.real_per_class)
        group = self.passes["match_gradients"].bytes(min(gpc, micro_batch))
        if gpc > micro_batch:
            group += AUGMENTED * gpc * self.image + 2 * self.network
        real = self.passes["real_gradients"].bytes(few) + few * self.about.values + self.network
        parts = {
            "real": always + 2 * rendered + real,
            "synthetic": always + 2 * rendered + group,
            "render": always + RENDERED * rendered,
        }
        if trained and config.inner_loop:
            inner = min(config.inner_batch, self.synthetic)
            some = self.passes["synthetic_gradients"].bytes(min(inner, micro_batch))
            parts["inner loop"] = 3 * self.network + rendered + inner * 4 * self.image + some
        return parts

    def _tm(self, _: int, keep_steps: int) -> dict[str, int]:
        steps, kept = self.config.syn_steps, min(keep_steps, self.config.syn_steps)
        drawn = min(self.synthetic, self.batch_syn * steps)
        student = self._students[min(kept, 1)].bytes(self.batch_syn)
        student += (steps - STUDENT) * self.network
        if kept > 1:  # what is kept leaves no holes
            one, two = (self._students[k] for k in (STUDENT - 1, STUDENT))
            more = (two.bytes(self.batch_syn) - one.bytes(self.batch_syn)) / one.heap
            student += int((kept - 1) * more)
        others = RENDERED - 1  # the drawn images that a step leaves out, and their gradients
        student += others * (drawn - self.batch_syn) * self.image
        return {
            "student": 2 * self.network + student,
            "render": 3 * self.network + RENDERED * drawn * self.image,
        }

    # -------------------------------------------------------------------------------- work

    def work(self, *, micro_batch: int, keep_steps: int) -> dict[str, float]:
        """How many images go through which pass in a step, on average."""
        config = self.config
        twice = self.synthetic if self.budget.gpc > micro_batch else 0
        if config.objective == "dm":
            return {"embed_real": self.real + twice, "embed_synthetic": self.synthetic}
        if config.objective == "dc":
            often = config.inner_loop * (config.outer_loop - 1) / config.outer_loop
            return {
                "real_gradients": self.real,
                "match_gradients": self.synthetic,
                "synthetic_gradients": twice + often * self.synthetic,
            }
        kept = min(keep_steps, config.syn_steps)
        batch = self._mean_batch
        return {
            "recomputed_step": (config.syn_steps - kept) * batch,
            "kept_step": kept * batch,
        }

    def evaluation(self) -> dict[str, float]:
        """The same for training one network on the distilled set and testing it once."""
        return {
            "train": self.eval_config.epochs * self.synthetic,
            "test": self.about.validation,
        }

    def flops(self, work: dict[str, float]) -> float:
        """Of convolutions and matrix products."""
        return sum(n * self.passes[name].flops_per_image for name, n in work.items() if n)

    @property
    def _mean_batch(self) -> float:
        """A set's last batch may be smaller."""
        per_round = -(-self.synthetic // self.batch_syn)
        return self.synthetic / per_round
