"""Sparse recurrent networks: many papers, one set of words, one bench. The public names, loaded when they are first used."""

from importlib import import_module

PUBLIC = {  # name → where it lives
    "attach": "sparsify.attach",
    "Study": "sparsify.attach",
    "compact": "engines.prove",
    "load": "nets.file",
    "save": "nets.file",
    "choose": "engines.choose",
    "to_onnx": "export.graph",
    "to_c": "export.source",
    "ensure": "study.runs",
    "RunConfig": "study.config",
    "register": "study.registry",
}
PARTS = ("bench", "engines", "export", "nets", "records", "report", "sparsify", "study", "tasks")
__all__ = list(PUBLIC)


def __getattr__(name):
    if name in PARTS:
        return import_module(f".{name}", __name__)
    if name not in PUBLIC:
        raise AttributeError(f"module 'sparsernn' has no attribute {name!r}; public names: {', '.join(PUBLIC)}")
    return getattr(import_module(f".{PUBLIC[name]}", __name__), name)


def __dir__():
    return sorted([*globals(), *PUBLIC, *PARTS])
