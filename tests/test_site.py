"""The static site of the notebooks can be read without a network."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site():
    pytest.importorskip("latex2mathml")
    spec = importlib.util.spec_from_file_location("site_of_notebooks", ROOT / "docs" / "site.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_formulas_become_mathml_and_code_stays(site):
    html = site.markdown_to_html("Sizes $a_1 * b_2$ and `$x$`:\n\n$$\\frac{a}{b}$$\n\n*so*")
    assert html.count("<math") == 2 and 'display="block"' in html and "<mfrac>" in html
    assert "<code>$x$</code>" in html and "<em>so</em>" in html


@pytest.mark.parametrize("name", ["index", "00_quickstart", "15_your_own_method"])
def test_a_page_fetches_nothing(site, name):
    html = site.page(ROOT / "notebooks" / f"{name}.ipynb")
    assert not re.search(r'(src|href)="(https?:)?//', html.replace("https://arxiv.org", ""))
    assert "https://" not in "".join(re.findall(r"<script\b.*?</script>", html, re.DOTALL))
    assert not re.search(r'href="[^"]*\.ipynb"|<img[^>]*src="\.\./', html)


def test_links_lead_to_pages(site):
    html = site.page(ROOT / "notebooks" / "15_your_own_method.ipynb")
    names = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    linked = set(re.findall(r'href="([\w]+)\.html"', html))
    assert {"index", "14_accuracy_per_bit", "16_ideas"} <= linked <= names


def test_every_formula_of_every_notebook_is_understood(site):
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for cell in json.loads(path.read_text("utf-8"))["cells"]:
            if cell["cell_type"] == "markdown":
                html = site.markdown_to_html("".join(cell["source"]))
                assert "$$" not in html and "merror" not in html, path.name
                shown = "".join(re.findall(r"<math.*?</math>", html, re.DOTALL))
                assert "\\" not in re.sub(r"<[^>]+>", "", shown), path.name
