"""What the engines take: where sparse wins and loses, the floors, the claim about products."""

from matplotlib.ticker import NullFormatter

from ..timings import fastest
from .style import (
    BLACK,
    BLUE,
    BROWN,
    GREEN,
    GREY,
    METRICS,
    ORANGE,
    PATTERN_STYLE,
    PINK,
    PURPLE,
    RED,
    log_counts,
    percent,
    say,
    styled,
    subplots,
    times,
    title,
    unique_legend,
)

# engine → colour, marker, dash: a colour is a way of storing weights, a marker who runs it
ENGINE_STYLE = {
    "dense-fp32": (BLACK, "o", "-"),
    "dense-tf32": (BLACK, "v", "--"),
    "dense-bf16": (GREY, "^", "--"),
    "dense-fp16": (GREY, "v", ":"),
    "dense-fp16-padded": (GREY, "<", "-"),
    "dense-fp32-graph": (BLACK, "D", "-."),
    "dense-bf16-graph": (GREY, "D", "-."),
    "dense-fp16-graph": (GREY, "d", ":"),
    "dense-onednn": (BLACK, "s", ":"),
    "dense-int8": (GREY, "s", "-."),
    "compact-torch": (BLUE, "o", "-"),
    "compact-loop": (BLUE, "x", ":"),
    "persistent-dense": (BLUE, "D", "--"),
    "csr-torch": (ORANGE, "o", "-"),
    "csr-triton": (ORANGE, "^", "--"),
    "csr-numba": (ORANGE, "P", "-."),
    "numba-csr": (ORANGE, "P", "-."),
    "persistent": (RED, "D", "-"),
    "persistent-fp16": (RED, "d", "--"),
    "persistent-cuda": (RED, "X", "-."),
    "block-16": (GREEN, "s", "--"),
    "block-32": (GREEN, "p", "-"),
    "two-to-four": (PINK, "h", "-"),
    "numba": (PURPLE, "P", "-"),
    "own-dense-int8": (GREY, "D", "-"),
    "c-blocks": (GREEN, "o", "-"),
    "c-int8": (GREEN, "v", ":"),
    "triton-tiny": (PURPLE, "*", "-"),
    "tiny-cuda": (PURPLE, "X", "--"),
}
AXES = {"density": "density: share of weights left", "batch": "batch: sequences at once"}
ROUNDS = ("c-int8",)  # engines that round the weights of what is left
SHARES = ("accuracy", "label_error_rate", "exact_match")  # metrics that are read in points
CLAIM = (2, 7)  # the speed-up 1704.05119 states for its sparse products


def _against_dense(table):
    """Rows beside dense-fp32, `choose` left out."""
    return table[(table["opponent"] == "dense-fp32") & (table["engine"] != "choose")]


def _shade_losses(ax):
    """The line where an engine is as fast as dense, and the side on which it loses."""
    low, high = ax.get_ylim()
    low, high = min(low, 0.5), max(high, 2)
    ax.axhspan(low, 1, color="0.93", zorder=0)
    ax.axhline(1, color=BLACK, lw=1)
    ax.set_ylim(low, high)


@styled
def crossover(table, x="density", panel="batch"):
    """How many times faster than dense fp32 each engine is, against density or batch, log-log; losing side shaded.

    table: timing rows. A panel for each value of `panel`; a point is the median over whatever else differs, the bar
    behind it from the least to the most. The finding counts a cell as won if nothing dense is faster, in fewer bits either.
    """
    rows = _against_dense(table)
    values = list(dict.fromkeys(rows[panel]))
    figure, axes = subplots(max(4.5, 3.1 * len(values)), 3.6, 1, max(1, len(values)), sharey=True, squeeze=False)
    if rows.empty:
        say(axes[0, 0], "no timing here yet")
        return figure
    for ax, value in zip(axes.flat, values, strict=True):
        part = rows[(rows[panel] == value) & (rows["engine"] != "dense-fp32")]
        for engine, points in part.groupby("engine", sort=False):
            colour, marker, dash = ENGINE_STYLE[engine]
            found = points.groupby(x)["speedup"].agg(["min", "median", "max"])
            ax.vlines(found.index, found["min"], found["max"], color=colour, lw=3, alpha=0.25)
            ax.plot(found.index, found["median"], color=colour, marker=marker, ls=dash, ms=5, lw=1.3, label=engine)
        ax.set(
            xscale="log",
            yscale="log",
            xlabel=AXES.get(x, x),
            title=f"{panel} {value:g}" if panel == "batch" else f"{panel} {value}",
        )
        ax.set_xlim(rows[x].min() / 1.4, rows[x].max() * 1.4)
        ax.set_xticks(sorted(rows[x].round(3).unique()), minor=False)
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.xaxis.set_minor_formatter(NullFormatter())
    for ax in axes.flat:
        _shade_losses(ax)
    axes[0, 0].set_ylabel("times faster than dense fp32")
    log_counts(axes[0, 0].yaxis)
    known = {text: line for ax in axes.flat for line, text in zip(*ax.get_legend_handles_labels(), strict=True)}
    axes[0, -1].legend(known.values(), known, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    title(figure, crossover_finding(rows))
    return figure


def where(rows):
    """What all rows share of machine, layer and batch, before a finding: "AMD EPYC, LSTM 1024, batch 1: "."""
    shared = {name: rows[name].iloc[0] for name in ("device", "model", "hidden", "batch") if rows[name].nunique() == 1}
    said = [str(shared["device"]).partition(":")[2]] if "device" in shared else []
    if shared.get("model", "product") != "product":
        said.append(shared["model"].upper() + (f" {shared['hidden']:g}" if "hidden" in shared else ""))
    said += [f"batch {shared['batch']:g}"] if "batch" in shared else []
    return f"{', '.join(said)}: " if said else ""


def crossover_finding(rows):
    """The sentence over a crossover: how often the fastest engine beats dense, and at which batches not."""
    cells = fastest(rows)
    text = f"{where(rows)}a sparse or compact engine beats dense fp32 in {(cells['over_fp32'] > 1).sum()} of {len(cells)} cells, "
    text += "at most "
    lost = cells[cells["over_dense"] <= 1]
    text += f"{times(cells['over_fp32'].max())}; every dense engine in {len(cells) - len(lost)}"
    if len(lost):
        text += f" (not in {len(lost)}, at batch {', '.join(f'{b:g}' for b in sorted(lost['batch'].unique()))})"
    return text[:1].upper() + text[1:]


@styled
def rooflines(table, ax=None):
    """What each engine takes in one cell, beside the floor that no engine of its kind goes below; errors written."""
    rows = _against_dense(table).sort_values("median_ms", ascending=False)
    ax = ax or subplots(6.2, 0.9 + 0.32 * max(3, len(rows)))[1]
    if rows.empty:
        return say(ax, "no timing here yet")
    for place, row in enumerate(rows.itertuples()):
        ax.barh(
            place,
            row.median_ms,
            0.6,
            color=ENGINE_STYLE[row.engine][0],
            alpha=0.85,
            xerr=row.iqr_ms / 2,
            error_kw={"lw": 1},
        )
        ax.plot([row.floor_ms] * 2, [place - 0.42, place + 0.42], color=BLACK, lw=2, label="floor")
        ax.annotate(f"{row.median_ms:.3g} ms, error {row.error:.0e}", (row.median_ms, place), xytext=(8, 0),
                    textcoords="offset points", va="center", fontsize=8)  # fmt: skip
    ax.set_yticks(range(len(rows)), list(rows["engine"]))
    right = 6 * rows["median_ms"].max()
    ax.set(
        xscale="log", xlabel="median, ms (bar ± half its interquartile range)", xlim=(rows["floor_ms"].min() / 2, right)
    )
    ax.tick_params(axis="y", length=0)
    unique_legend(ax, loc="upper left", bbox_to_anchor=(1.01, 1))
    best = rows.iloc[-1]
    title(
        ax,
        f"{best.engine} is the fastest, {times(best.median_ms / best.floor_ms)} its floor, {times(best.speedup)} dense fp32",
    )
    return ax


@styled
def product_claim(table, published=None, ax=None):
    """The fastest sparse product in fp32 of each shape with scattered weights against batch, beside 1704.05119's 2× to 7× (band).

    published: shape, density, batch, speedup of another library on another device, drawn as crosses.
    """
    ax = ax or subplots(6.4, 4)[1]
    table = table[(table["density"] <= 0.1) & (table["pattern"] == "unstructured") & ~table["engine"].isin(ROUNDS)]
    best = fastest(table)
    if best.empty:
        return say(ax, "no product timed here yet")
    ax.axhspan(*CLAIM, color="#cfe6f5", zorder=0, label="1704.05119 says")
    palette = [BLUE, ORANGE, GREEN, RED, PURPLE, BROWN]
    for number, ((hidden, inputs), part) in enumerate(best.groupby(["hidden", "input"])):
        for density, line in part.sort_values("batch").groupby("density"):
            ax.plot(line["batch"], line["over_fp32"], color=palette[number % 6], marker="os^Dvp"[number % 6], ms=5, lw=1.3,
                    ls="-" if density < 0.08 else "--", label=f"{hidden:g} × {inputs:g}, {density:.0%} left")  # fmt: skip
    if published is not None:
        ax.plot(published["batch"], published["speedup"], "x", color=GREY, label="DeepBench, TITAN Xp")
    ax.set(xscale="log", yscale="log", xlabel="batch: columns of x", ylabel="times faster than the fastest dense fp32")
    log_counts(ax.xaxis)
    _shade_losses(ax)
    log_counts(ax.yaxis)
    unique_legend(ax, loc="upper left", bbox_to_anchor=(1.01, 1))
    inside, more = best["over_fp32"].between(*CLAIM).sum(), (best["over_fp32"] > CLAIM[1]).sum()
    text = f"{where(best)}{inside} of {len(best)} products are 2 to 7 times faster than the fastest dense in fp32, {more} more, "
    text += (
        f"{(best['over_fp32'] <= 1).sum()} slower; {(best['over_dense'] <= 1).sum()} lose to a dense one of fewer bits"
    )
    title(ax, text)
    return ax


WHOLE = {"dense_us": ("torch, fp32", "-"), "torch_us": ("torch, int8", "-."), "own_us": ("ours, int8", ":")}
CUTS = {"unstructured": "scattered"} | {name.replace("×", "x"): name for name in PATTERN_STYLE if "×" in name}


@styled
def block_times(table):
    """Microseconds a step of a layer against the share of its weights left, a line a shape of block, a panel each in fp32 and in
    int8; the whole layer through every dense engine as level lines. table: rows as `timings.in_blocks` gives them."""
    table = table[table["pattern"].isin(CUTS)]
    layers = list(dict.fromkeys(table["layer"]))
    figure, axes = subplots(8.4, 3.4 * max(1, len(layers)), max(1, len(layers)), 2, sharex=True, squeeze=False)
    if table.empty:
        say(axes[0, 0], "no layer in blocks was timed yet")
        return figure
    for row, layer in zip(axes, layers, strict=True):
        part = table[table["layer"] == layer]
        row[1].sharey(row[0])
        for ax, kind in zip(row, ("fp32", "int8"), strict=True):
            for pattern, line in part.sort_values("density").groupby("pattern", sort=False):
                colour, marker = PATTERN_STYLE[CUTS[pattern]]
                ax.plot(
                    line["density"], line[f"{kind}_us"], color=colour, marker=marker, ms=5, lw=1.3, label=CUTS[pattern]
                )
            for column, (said, dash) in WHOLE.items():
                ax.axhline(part[column].median(), color=BLACK, ls=dash, lw=1, label=f"whole: {said}")
            ax.set(xscale="log", yscale="log", title=f"{layer}, weights in {kind}", xlabel=AXES["density"])
            ax.set_xticks(sorted(part["density"].unique()))
            ax.xaxis.set_major_formatter(lambda share, _: percent(share))
            ax.xaxis.set_minor_formatter(NullFormatter())
        row[0].set_ylabel("microseconds a step")
        log_counts(row[0].yaxis)
    known = dict(zip(*reversed(axes[0, 0].get_legend_handles_labels()), strict=True))
    order = [name for name in (*CUTS.values(), *(f"whole: {said}" for said, _ in WHOLE.values())) if name in known]
    axes[0, 1].legend([known[name] for name in order], order, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    title(figure, block_finding(table))
    return figure


def block_finding(table):
    """The sentence over block times: from which share left on the quickest shape beats the best dense int8 in every layer, and
    by how much."""
    said, blocks = [], table[table["pattern"] != "unstructured"]
    for kind in ("fp32", "int8"):
        ahead = blocks[[f"{kind}_over_torch", f"{kind}_over_own"]].min(axis=1)
        best = ahead.groupby([blocks["layer"], blocks["density"]]).max().groupby("density").min().sort_index()
        if best.empty or best.iloc[0] <= 1:
            said.append(f"in {kind} they do not beat every dense int8 at any density")
            continue
        until = best[(best > 1).cummin()].index[-1]
        said.append(
            f"in {kind} they beat every dense int8 with {percent(until)} of the weights left, and {times(best.iloc[0])} "
            f"with {percent(best.index[0])}"
        )
    return f"Blocks of the best shape, one sequence at a time: {'; '.join(said)}"


ON_A_GPU = ("dense-fp32", "dense-fp32-graph", "dense-bf16", "dense-bf16-graph", "dense-fp16", "dense-fp16-graph",
            "dense-fp16-padded", "persistent-dense", "tiny-cuda", "persistent-cuda")  # fmt: skip
ON_A_GPU_SPARSE = ("tiny-cuda", "persistent-cuda")


@styled
def steps_on_a_gpu(table, ax=None):
    """Microseconds a step of layers on a GPU, a line a layer: ours beside cuDNN as it is called, from a graph, and filled up to
    its persistent algorithm, and our own persistent kernel with every weight.

    table: timing rows of layers beside dense-fp32, of one device.
    """
    rows = _against_dense(table)
    rows = rows[rows["engine"].isin(ON_A_GPU)]
    if rows.empty:
        return say(ax or subplots(8.4, 1.4)[1], "no layer was timed on a GPU yet")
    rows = rows.assign(us=1e3 * rows["median_ms"] / rows["steps"])
    left = rows["pattern"].where(rows["pattern"].str.contains("heads"), rows["density"].map(percent))
    rows = rows.assign(place=rows["model"].str.upper() + rows["hidden"].map(" {:g}, ".format) + left)
    rows["place"] += rows["batch"].map(", {:g} at once".format)
    rows = rows.sort_values(["hidden", "pattern", "model", "density", "batch"], ascending=False)
    places = list(dict.fromkeys(rows["place"]))
    ax = ax or subplots(8.4, 1.4 + 0.3 * len(places))[1]
    for engine in ON_A_GPU:
        colour, marker, _ = ENGINE_STYLE[engine]
        part, ours = rows[rows["engine"] == engine], engine in ON_A_GPU_SPARSE
        fill = {"ms": 8, "mec": "white"} if ours else {"ms": 6, "mfc": "white"}
        ax.plot(part["us"], part["place"].map(places.index), marker, color=colour, ls="none", label=engine, **fill)
    ax.set(xscale="log", xlabel="microseconds a step", yticks=range(len(places)), ylim=(-0.6, len(places) - 0.4))
    ax.set_yticklabels(places, fontsize=8)
    ax.grid(axis="y", color="0.92")
    log_counts(ax.xaxis)
    unique_legend(ax, loc="upper left", bbox_to_anchor=(1.01, 1))
    sparse = rows["engine"].isin(ON_A_GPU_SPARSE)
    ours, whole = (part.groupby("place")["us"].min() for part in (rows[sparse], rows[~sparse]))
    over = (whole / ours).dropna()
    where = rows["device"].iloc[0].split(":", 1)[1]
    said = f"what is left is faster than every whole layer timed in {(over > 1).sum()} of {len(over)} cells"
    title(ax, f"{where}: {said}, {times(over.min())} to {times(over.max())}")
    return ax


@styled
def rounding_cost(table, ax=None):
    """By how much the test is worse through an engine that rounds weights than recorded, a dot a net: points of what is a share,
    per cent of bits and perplexities.

    table: rows as `timings.through_engines` gives them.
    """
    ax = ax or subplots(7.6, 3.2)[1]
    table = table[table["engine"].isin(ROUNDS)]
    if table.empty:
        return say(ax, "no test was taken through an engine that rounds yet")
    up = table["metric"].map(lambda metric: METRICS[metric][1] == "higher")
    change, share = table["change"].where(~up, -table["change"]), table["metric"].isin(SHARES)
    table = table.assign(
        worse=100 * change.where(share, change / table["test"]), unit=share.map({True: "points", False: "%"})
    )
    places = sorted(table["task"].unique())
    for engine, part in table.groupby("engine"):
        colour, marker, _ = ENGINE_STYLE[engine]
        size = part.groupby("task")["task"].transform("size")
        beside = (part.groupby("task").cumcount() - (size - 1) / 2) / size.clip(lower=10)
        ax.plot(part["task"].map(places.index) + 0.5 * beside, part["worse"], marker, color=colour, mfc="none",
                ls="none", label=engine)  # fmt: skip
    ax.axhline(0, color=BLACK, lw=0.8)
    ax.set(xticks=range(len(places)), xlim=(-0.6, len(places) - 0.4), ylabel="test worse by")
    first = {name: table[table["task"] == name].iloc[0] for name in places}
    ax.set_xticklabels(
        [f"{name}\n{one['metric'].replace('_', ' ')}\n{one['unit']}" for name, one in first.items()], fontsize=8
    )
    unique_legend(ax, loc="lower left")
    worst = table.loc[table["worse"].idxmax()]
    lost = f"{worst['worse']:.2f} {worst['unit']} of {worst['metric']} ({worst['task']})"
    title(ax, f"{len(table)} nets in int8: the worst loses {lost}, half of them {table['worse'].median():.2f} or less")
    return ax
