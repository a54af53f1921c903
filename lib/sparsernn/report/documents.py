"""The tables inside README.md and results/README.md, the card beside each tracked model, and the page of figures: text written
from what is tracked.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`. NAME is `decisions` or `costs`, for the two of the report's
first section, `answer` for the sentences above them, `claims` for how many hold, `coverage` for what was run, one of
`speeds.TABLES`, `TRAINING` or `GOALS`, or a profile and what the figures of a setting are called: `short ag-news`, `short
pydocs-char-bayes-512`; with `blocks` behind it, what shapes of block cost there, with `opponents` how its answers stand to every
opponent.
"""

import itertools
import json
import math
import os
import re
from pathlib import Path
from urllib.parse import quote

import pandas as pd
from PIL import Image

from .. import records
from ..files import nearest, replacing
from . import publish, published, sections, shapes, speeds, timings, written
from .plots.style import telling

SENTENCES = "answer"  # what the sentences of the report's first section are called
ANSWERS = "decisions", "costs"  # what the tables of the first section are called, in their order
CLAIMS, COVERAGE = "claims", "coverage"
MARKED = re.compile(r"(<!-- table: (?P<name>[^>]+?) -->\n).*?(<!-- end -->)", re.DOTALL)


def write(results, root):
    """Fill the marked tables of root/README.md and results/README.md and write every card; → the paths written."""
    tracked, written_to = sections.tracked(results), []
    for path in (Path(root) / "README.md", tracked.results / "README.md"):
        if path.exists():
            filled_in = filled(path.read_text(encoding="utf-8"), tracked)
            with replacing(path) as temporary:
                temporary.write_text(filled_in, encoding="utf-8")
            written_to.append(path)
    for model in sorted(tracked.results.glob("runs/*/*/*/*/model.safetensors")):
        path = model.with_name("README.md")
        with replacing(path) as temporary:
            temporary.write_text(card(model.parent, root), encoding="utf-8")
        written_to.append(path)
    path = Path(root) / "figures" / "README.md"
    path.parent.mkdir(exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(figures_page(path.parent), encoding="utf-8")
    return [*written_to, path]


def figures_page(folder):
    """Each figure of a folder, the tables it was drawn from, as links, and the commits at which their rows were made: as
    `publish.drawn_from` left it in the figure."""
    rows = []
    for path in sorted(folder.glob("*.png")):
        with Image.open(path) as image:
            said = image.info
        sources = said.get("Source", "").split(", ") if "Source" in said else []
        linked = [f"`{one}`" if "*" in one else f"[{one.removeprefix('results/')}](../{quote(one)})" for one in sources]
        rows.append(
            {"figure": f"[{path.stem}]({path.name})", "drawn from": ", ".join(linked), "by": said.get("Comment", "")}
        )
    head = "# Figures\n\nWritten by `make publish`, each from tracked tables; the same is written in the figure itself (PNG text "
    head += "`Source` and `Comment`). A `+` says that the code of that commit had been changed.\n\n"
    return head + written.markdown(pd.DataFrame(rows, columns=["figure", "drawn from", "by"])) + "\n"


def filled(text, tracked):
    """A document with its marked tables written anew. Raises ValueError for a table that nothing is called."""
    tables = {f"{one.profile} {one.stem}": one for one in tracked.settings}

    def fill(found):
        name = found["name"]
        if name == SENTENCES:
            parts = itertools.takewhile(lambda part: isinstance(part, str), sections.answer(tracked).parts)
            return f"{found[1]}\n" + "\n\n".join(parts) + f"\n\n{found[3]}"
        if name == CLAIMS:
            return f"{found[1]}\n{sections.claims(tracked).parts[0]}\n\n{found[3]}"
        if name in ANSWERS:
            both = [part for part in sections.answer(tracked).parts if isinstance(part, pd.DataFrame)]
            table = both[ANSWERS.index(name)]
        elif name == COVERAGE:
            table = sections.coverage(tracked)
        elif name in tables:
            table = rows_of(tables[name], tracked.results)
        elif (setting := tables.get(name.removesuffix(" blocks"))) is not None:
            table = blocks_of(setting)
        elif (setting := tables.get(name.removesuffix(" opponents"))) is not None:
            table = sections.opponents(setting)
        elif name in speeds.TABLES:
            table = speeds.TABLES[name](tracked.timed)
        elif name in speeds.TRAINING:
            table = speeds.TRAINING[name](timings.training_rows(tracked.results))
        elif name in speeds.GOALS:
            table = speeds.GOALS[name](records.read_goals(tracked.results / "goals-cpu.csv"))
        else:
            known = [SENTENCES, CLAIMS, *ANSWERS, COVERAGE, *tables, *speeds.TABLES, *speeds.TRAINING, *speeds.GOALS]
            raise ValueError(nearest("table", name, known))
        return f"{found[1]}\n{written.markdown(table)}\n\n{found[3]}"

    return MARKED.sub(fill, text)


def rows_of(setting, results):
    """Every configuration of a setting, a row each, the largest first: figures are means over its seeds. Beside the authors'
    where they gave some: at the same epoch, or at the last before it, and at their end (of a net that loses no weight: at its
    best on validation). A row a run is in results/<profile>.csv."""
    theirs, keys = published.of_family(results, setting.task, setting.model), sections.decisions.KEYS
    runs = {key: part for key, part in setting.rows.assign(variant=setting.rows["variant"].fillna("")).groupby(keys)}
    order = setting.table.sort_values(["weights_kept", "valid"], ascending=[False, True], kind="stable")
    variants = order["variant"].groupby(order["method"]).unique().map(telling)
    lines = [
        _line(row, runs[tuple(row[key] for key in keys)], theirs, variants[row["method"]][row["variant"]])
        for row in order.to_dict("records")
    ]
    table = pd.DataFrame(lines).fillna(written.DASH)
    return table[[name for name in table if (table[name] != written.DASH).any()]]


def blocks_of(setting):
    """What each shape of block costs: the test's figure and, where it was timed, microseconds a step of the whole net at batch 1,
    a row a share of weights left, a column a shape; in the last dense nets of about as many weights, trained alike. Of several
    configurations it is the one nearest to the share."""
    columns, lines = [*shapes.SHAPES.values(), "dense"], {}
    for row in shapes.standing(setting.table).to_dict("records"):
        took = f" · {row['step_us']:.3g} µs" if row["step_us"] == row["step_us"] else ""
        lines.setdefault(row["left"], {})[row["shape"]] = written.quality(row["test"], setting.metric) + took
    found = [{"left": f"{left:.0%}"} | line for left, line in lines.items()]
    table = pd.DataFrame(found, columns=["left", *columns])
    return table.dropna(axis=1, how="all").fillna(written.DASH)


def _line(row, runs, theirs, variant):
    """row: a configuration; runs: the rows of its seeds; variant: what of it tells it from others of its method."""
    metric = row["metric"]
    variant = variant if len(variant) <= written.SHORTENED else f"{variant.split(',')[0]}, …"
    name = row["model"] if row["compression"] != row["compression"] else publish.other_model(row)
    said = ", ".join(filter(None, (name, variant)))
    line = {"method": row["method"] + (f" ({said})" if said else ""), "epochs": written.count(row["epochs"])}
    line |= {"valid": written.quality(row["valid"], metric), "test": written.with_interval(row)}
    more = pd.DataFrame([records.numbers_of(one) for one in runs["tests"].fillna("")]).mean()
    line |= {f"test, {name}": written.quality(value, metric) for name, value in more.items()}
    line |= {"fewer weights": written.fewer(row["compression"]), "weights": written.count(row["weights_kept"])}
    line |= {"words": written.count(runs["vocabulary_kept"].astype(float).mean())}
    line |= {"live gates": _over_seeds(runs["gates_live"]), "bytes": written.count(row["size_bytes"])}
    part = published.beside(theirs, row)
    end = part.tail(1)
    if (
        len(part) and part["compression"].nunique() == 1 and part["valid"].notna().any()
    ):  # nothing goes: their best, not their last
        end = part.loc[[part["valid"].idxmax() if sections.decisions.sign_of(metric) > 0 else part["valid"].idxmin()]]
    by_then = part[part["epoch"] <= row["epochs"]].tail(1)
    line["authors by then"] = _authors(by_then, metric) if not by_then.equals(end) else written.DASH
    line["at their end"] = _authors(end, metric)
    return line


def _over_seeds(counts):
    """Counts of several runs, written layer by layer (40-39), as their means; a dash where none was counted."""
    counted = [[int(part) for part in str(one).split("-")] for one in counts if one and one == one]
    return "-".join(f"{sum(layer) / len(counted):,.0f}" for layer in zip(*counted, strict=True)) or written.DASH


def _authors(row, metric):
    """Test figure, compression and epoch of a row of the authors' curves; a dash where there is none."""
    if row.empty:
        return written.DASH
    (row,) = row.to_dict("records")
    when = f" (epoch {row['epoch']:.0f})" if row["epoch"] == row["epoch"] else ""
    return f"{written.quality(row['test'], metric)} at {written.fewer(row['compression'])}{when}"


CARD = """# {method} on {task}

{what}, trained by `{method}` and compacted; the file beside this card is the whole network. Counted as the papers count, it has
{kept} of {total} weights ({fewer} fewer).

| | |
|---|---|
| task, data | `{task}`; sum of the processed ids `{data_sha256}`{note} |
| model, cell | `{model}`, {cell} |
| method, options | `{method}`; departs from the preset by: {variant} |
| profile, seed | `{profile}`, {seed}; {epochs} epochs, {schedule} |
| {metric} | test {test}, validation {valid}: one run; the seeds of this configuration are in results/{profile}.csv |
| file | {size}; its network and the masked one differ by at most {error} in float64 over the whole test |
| trained | {seconds} on {device}, torch {torch}, commit {commit} |

```python
import sparsernn

path = "{path}"
small = sparsernn.load(path)  # a torch module in evaluation, for this task's ids
```

Words and labels are those of the task (`sparsernn.tasks.load("{task}", "{profile}")`, whose sum must be the one above).

Licence: that of this project (MIT) for the numbers; the data have terms of their own ([data/README.md]({data})). {terms}
"""


def card(folder, root):
    """What a tracked model is: its task and data, method, figures, how to load it, and the terms of its data."""
    record = json.loads((folder / "record.json").read_text())
    metric, note = record["metric"], record["data_note"]
    known = {name: value for name, value in record.items() if value is not None}
    return CARD.format(
        **known
        | {
            "what": f"A recurrent network ({record['cell']})" if record.get("cell") else "A model without recurrence",
            "cell": record.get("cell") or "no recurrent cell",
            "kept": written.count(record["weights_kept"]),
            "total": written.count(record["weights_total"]),
            "fewer": written.fewer(record.get("compression")),
            "note": f"; {note}" if note else "",
            "variant": f"`{record['variant']}`" if record["variant"] else "nothing",
            "schedule": record.get("schedule") or "no schedule",
            "test": written.quality(record["test"], metric),
            "valid": written.quality(record["valid"], metric),
            "metric": metric.replace("_", " "),
            "epochs": written.count(record.get("epochs", math.nan)),
            "size": f"{written.count(record['size_bytes'])} bytes",
            "error": f"{record['compact_error']:.0e}",
            "seconds": written.seconds(record["train_seconds"]),
            "device": record["device"].removeprefix("cpu:"),
            "path": f"results/runs/{records.run_key(record)}/model.safetensors",
            "data": os.path.relpath(Path(root) / "data" / "README.md", folder),
            "terms": terms(record["task"], Path(root) / "data" / "README.md"),
        }
    )


def terms(task, path):
    """The paragraph of a task's data in data/README.md that begins with "Terms:"; "" where that page has none for it."""
    for section in re.split(r"^#+ ", path.read_text(encoding="utf-8"), flags=re.MULTILINE) if path.exists() else ():
        if f"`{task}`" in section.partition("\n")[0] and (
            found := re.search(r"^Terms: .*?(?=\n\n|\Z)", section, re.M | re.S)
        ):
            return " ".join(found[0].split())
    return ""
