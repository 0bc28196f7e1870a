"""The four archives of CIFAR-10 and CIFAR-100 as their publisher describes them."""

from dataclasses import dataclass, field

TITLES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
ADDRESS = "https://www.cs.toronto.edu/~kriz/cifar.html"


@dataclass(frozen=True)
class Published:
    """One published archive: its checksum, what it holds, and how a file of it is laid out.

    files: MD5 of the files inside, as far as they are known
    label_bytes: label bytes before the pixels of a binary record, the last one counts; 0: pickles
    images: in the training and the test files together
    """

    md5: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    names: str
    label_bytes: int = 0
    images: tuple[int, int] = (50_000, 10_000)
    files: dict[str, str] = field(default_factory=dict)

    @property
    def contents(self) -> tuple[str, ...]:
        return (*self.train, *self.test, self.names)


PUBLISHED: dict[str, dict[str, Published]] = {
    "cifar10": {
        "cifar-10-python.tar.gz": Published(
            md5="c58f30108f718f92721af3b95e74349a",
            folder="cifar-10-batches-py",
            train=tuple(f"data_batch_{i}" for i in range(1, 6)),
            test=("test_batch",),
            names="batches.meta",
            files={
                "data_batch_1": "c99cafc152244af753f735de768cd75f",
                "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
                "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
                "data_batch_4": "634d18415352ddfa80567beed471001a",
                "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
                "test_batch": "40351d587109b95175f43aff81a1287e",
                "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
            },
        ),
        "cifar-10-binary.tar.gz": Published(
            md5="c32a1d4ab5d03f1284b67883e8d87530",
            folder="cifar-10-batches-bin",
            train=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
            test=("test_batch.bin",),
            names="batches.meta.txt",
            label_bytes=1,
        ),
    },
    "cifar100": {
        "cifar-100-python.tar.gz": Published(
            md5="eb9058c3a382ffc7106e4002c42a8d85",
            folder="cifar-100-python",
            train=("train",),
            test=("test",),
            names="meta",
            files={
                "train": "16019d7e3df5f24257cddd939b257f8d",
                "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
                "meta": "7973b15100ade9c7d40fb424638fde48",
            },
        ),
        "cifar-100-binary.tar.gz": Published(
            md5="03b5dce01913d631647c71ecec9e9cb8",
            folder="cifar-100-binary",
            train=("train.bin",),
            test=("test.bin",),
            names="fine_label_names.txt",
            label_bytes=2,
        ),
    },
}
