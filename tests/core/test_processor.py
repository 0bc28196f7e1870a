"""The processor's name, as the system tells it."""

import platform

from gsdd_lib.core import processor


def test_the_name_is_the_systems(tmp_path, monkeypatch):
    info = tmp_path / "cpuinfo"
    info.write_text("processor : 0\nmodel name\t: A Fine CPU: 2\nmodel name\t: another\n")
    monkeypatch.setattr(processor, "CPU_INFO", info)
    assert processor.cpu_name() == "A Fine CPU: 2"


def test_without_a_name_the_architecture_serves(tmp_path, monkeypatch):
    monkeypatch.setattr(processor, "CPU_INFO", tmp_path / "missing")
    assert processor.cpu_name() in (platform.processor(), platform.machine())
    assert processor.cpu_name()
