"""results/report.html: the sections of the report as one file that any browser opens, images inlined, nothing fetched."""

import base64
import html
import io
import re

import pandas as pd

from ..files import replacing
from . import plots, written
from .sections import SECTIONS, tracked

DPI = 110
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1c1c1c; max-width: 62rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; line-height: 1.25 } h2 { font-size: 1.25rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd }
img { max-width: 100%; height: auto; display: block }
.said { display: none }
nav a { margin-right: .9rem } a { color: #0173b2 }
.wide { overflow-x: auto; margin: .6rem 0 1.2rem }
table { border-collapse: collapse; font-size: .82rem } th, td { padding: .25rem .6rem; text-align: left; vertical-align: top }
th { border-bottom: 2px solid #999 } td { border-bottom: 1px solid #e3e3e3; min-width: 3.5rem }
@media (max-width: 45rem) { .wide img { max-width: none } .said { display: block } td { min-width: 7rem } }
.text span { padding: 0 .1em; border-radius: .2em } .text { line-height: 1.9; font-size: .92rem }
"""


def write(results):
    """Write results/report.html from what is tracked in `results`; → its path."""
    found = tracked(results)
    sections = [make(found) for make in SECTIONS]
    links = "".join(f'<a href="#s{k}">{html.escape(section.title)}</a> ' for k, section in enumerate(sections))
    body = "".join(
        f'<h2 id="s{k}">{html.escape(section.title)}</h2>\n' + "\n".join(map(_part, section.parts)) + "\n"
        for k, section in enumerate(sections)
    )
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>sparsernn: what the study found</title><style>{STYLE}</style></head><body>\n"
        f"<h1>Which way of making a recurrent network small is worth it?</h1>\n<nav>{links}</nav>\n{body}</body></html>\n"
    )
    path = found.results / "report.html"
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _part(part):
    if isinstance(part, str):
        text = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", html.escape(part, quote=False))
        return "".join(f"<p>{line}</p>" for line in text.split("\n\n"))
    if isinstance(part, written.Verdicts):
        return written.coloured(part)
    return written.as_html(part) if isinstance(part, pd.DataFrame) else _image(part)


def _image(figure):
    """A figure as an image inside the page, its title as what is read out. On a phone it is as large as it was drawn, in a
    box that scrolls sideways, since shrunk to such a width nothing on it can be read, and its title stands above it."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=DPI, metadata={"Software": None})
    said = figure.get_suptitle() or next((ax.get_title() for ax in figure.axes), "")
    plots.plt.close(figure)
    coded = base64.b64encode(data.getvalue()).decode()
    said = html.escape(" ".join(said.split()))
    return f'<p class="said">{said}</p><div class="wide"><img alt="{said}" src="data:image/png;base64,{coded}"></div>'
