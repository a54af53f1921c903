"""The tasks by name. Importing this is quick: data, and torch, are touched by `load` only."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

from ..files import nearest

if TYPE_CHECKING:
    from .base import Task


def _loader(module: str, function: str) -> Callable[[str], Task]:
    return lambda profile: getattr(import_module(f".{module}", __name__), function)(profile)


TASKS: dict[str, Callable[[str], Task]] = {
    "pydocs-topic": _loader("pydocs", "topic"),
    "pydocs-char": _loader("pydocs", "char"),
    "pydocs-word": _loader("pydocs", "word"),
    "imdb": _loader("sentiment_and_topic", "imdb"),
    "imdb-authors": _loader("sentiment_and_topic", "imdb_authors"),
    "ag-news": _loader("sentiment_and_topic", "ag_news"),
    "ptb-char": _loader("language", "ptb_char"),
    "ptb-word": _loader("language", "ptb_word"),
    "wikitext-2": _loader("language", "wikitext_2"),
    "digits": _loader("digits", "digits"),
    "squad": _loader("squad", "squad"),
}


def names() -> list[str]:
    """The names `load` knows."""
    return sorted(TASKS)


def load(name: str, profile: str) -> Task:
    """The task `name`; profile "smoke" gives a subset that trains in seconds, any other the whole corpus (of `squad`, "quick"
    as well a part).

    Raises ValueError for an unknown name, with the nearest one.
    """
    if name not in TASKS:
        raise ValueError(nearest("task", name, names()))
    return TASKS[name](profile)
