"""README's Python snippets run as they are printed."""

import re
from pathlib import Path

import pytest

from gsdd_lib.config import DataConfig
from gsdd_lib.data import load_data

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text("utf-8")
SNIPPETS = re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


def test_the_snippets_are_found():
    assert len(SNIPPETS) == TEXT.count("```python") >= 3


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda text: text.split("\n")[0])
def test_a_snippet_runs_as_printed(snippet, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "distilled").symlink_to(ROOT / "distilled")
    # images and labels are the reader's: here a few digits
    few = load_data(DataConfig(dataset="digits", max_per_class=6, resolution=4)).train
    own = {"images": few.images, "labels": few.labels} if "images, labels" in snippet else {}
    exec(compile(snippet, "README.md", "exec"), own)


def test_the_commands_are_the_program_s():
    from gsdd_lib import cli

    lines = re.findall(r"^gsdd .*", TEXT, re.MULTILINE)
    assert len(lines) == 4
    for line in lines:
        given = cli._read(line.partition("#")[0].split()[1:])
        assert given["command"] in cli.COMMANDS


def test_every_link_leads_somewhere():
    for target in re.findall(r"\]\(((?!https?:)[^)#]+)\)", TEXT):
        assert (ROOT / target).exists(), target
