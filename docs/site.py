"""The executed notebooks as a static site that needs no network: ``python docs/site.py site``.

Formulas become MathML, pictures are embedded, and links between notebooks lead to their pages.
"""

import base64
import re
import sys
from functools import partial
from pathlib import Path

import nbformat
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters import markdown2html_mistune as to_html

ROOT = Path(__file__).parents[1]
FORMULA = re.compile(r"\$\$(.+?)\$\$|\$(?!\s)([^$\n]+?)(?<!\s)\$", re.DOTALL)
FENCED = re.compile(r"(```.*?```|`[^`\n]+`)", re.DOTALL)


def markdown_to_html(source: str) -> str:
    """HTML of a Markdown cell; formulas are set aside meanwhile, so that no mark in them counts."""
    formulas: list[str] = []

    def set_aside(found: re.Match) -> str:
        text, display = found[1] or found[2], "block" if found[1] else "inline"
        formulas.append(convert(text.replace(r"\|", "‖"), display=display))
        return f"FORMULA{len(formulas) - 1}END"

    pieces = FENCED.split(source)  # every other one is code
    pieces[::2] = [FORMULA.sub(set_aside, piece) for piece in pieces[::2]]
    html = to_html("".join(pieces))
    return re.sub(r"FORMULA(\d+)END", lambda found: formulas[int(found[1])], html)


def page(notebook: Path) -> str:
    """A page of a notebook, with nothing in it that a browser would have to fetch."""
    exporter = HTMLExporter()
    exporter.register_filter("markdown2html", markdown_to_html)
    resources = {"metadata": {"name": notebook.stem, "path": str(notebook.parent)}}
    cells = nbformat.read(notebook, as_version=4)
    cells.metadata.pop("widgets", None)  # a still stands beside every widget
    html, _ = exporter.from_notebook_node(cells, resources)
    for script in re.findall(r"<script\b.*?</script>", html, re.DOTALL):
        if "https://" in script:  # MathJax, require.js and mermaid, from elsewhere
            html = html.replace(script, "")
    html = re.sub(r'src="([^":]+\.(?:png|svg))"', partial(_embedded, notebook.parent), html)
    return re.sub(r'(href="[^":]*?)\.ipynb', r"\1.html", html)


def _embedded(folder: Path, found: re.Match) -> str:
    """The picture that ``src`` names, as part of the page."""
    path = folder / found[1]
    kind = "svg+xml" if path.suffix == ".svg" else "png"
    return f'src="data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"'


def main(folder: Path) -> None:
    """Write a page for every notebook of ``notebooks/``; ``index.html`` is where to start."""
    folder.mkdir(parents=True, exist_ok=True)
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        (folder / f"{notebook.stem}.html").write_text(page(notebook), "utf-8")
        print(f"{folder.name}/{notebook.stem}.html", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
