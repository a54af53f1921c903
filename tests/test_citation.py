"""CITATION.cff is what its format, version 1.2.0, asks for, and names the papers the README names."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())
PAPERS = ("1708.00077", "1812.05692", "1704.05119", "1906.06847", "1908.07724", "1810.10927", "1711.02782", "1709.05027",
          "1710.01878", "2306.11695")  # fmt: skip


def test_what_the_format_requires_is_there():
    assert CITATION["cff-version"] == "1.2.0" and CITATION["type"] == "software"
    assert all(isinstance(CITATION[key], str) and CITATION[key] for key in ("message", "title"))
    assert CITATION["authors"] == [{"name": "The sparsernn authors"}] and CITATION["title"].startswith("sparsernn")
    assert f"{CITATION['license']} License" in (ROOT / "LICENSE").read_text()
    for reference in CITATION["references"]:
        assert {"type", "title", "authors"} <= reference.keys()
        assert all(author.keys() == {"family-names", "given-names"} for author in reference["authors"])


def test_every_paper_of_the_readme_is_referred_to_by_number_and_address():
    numbers = [reference["identifiers"][0]["value"].removeprefix("arXiv:") for reference in CITATION["references"]]
    assert tuple(numbers) == PAPERS
    addresses = [reference["url"] for reference in CITATION["references"]]
    assert addresses == [f"https://arxiv.org/abs/{number}" for number in PAPERS]
    assert set(PAPERS) == set(re.findall(r"arxiv\.org/abs/([\d.]+)", (ROOT / "README.md").read_text()))
