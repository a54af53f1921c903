"""Model presets per task, and what each profile trains them with. One table to read.

The first preset of a task is its default. Sources of a number stand next to it; what has none was chosen on validation
(results/README.md, "How the schedules were found").
"""

import math
from dataclasses import dataclass, fields, replace

from .. import sparsify
from ..files import nearest
from ..nets.bidaf import BiDAF
from ..nets.models import CELLS, BagOfWords, Classifier, LanguageModel, StackedLanguageModel
from ..nets.speech import SpeechModel
from ..sparsify.options import refuse_unknown
from ..sparsify.plan import Plan


class Profile:
    """How long, and with what: a training's plan, and options of the methods that have such.

    plan     `Plan`          options  parameter → value; a method takes those it has
    """

    def __init__(self, plan, **options):
        self.plan, self.options = plan, options

    def but(self, **changes):
        """The same with other values, of the plan or of methods' options."""
        ours = {name: value for name, value in changes.items() if name in PLAN}
        refuse_unknown(changes.keys() - ours.keys(), sparsify.every_option(), "option")
        more = {name: value for name, value in changes.items() if name not in PLAN}
        return Profile(replace(self.plan, **ours), **(self.options | more))

    def of(self, method):
        """The options of a method, by name, in this profile."""
        kind = sparsify.make(method).Options
        return kind(**{one.name: self.options[one.name] for one in fields(kind) if one.name in self.options})


PLAN = tuple(one.name for one in fields(Plan))


@dataclass(frozen=True)
class Preset:
    """A model and its profiles. equivalent: the preset whose weights are `weights_total` (the dense net it stands for)."""

    model: type
    shape: dict
    profiles: dict
    equivalent: str | None = None

    def build(self, task):
        """The model, sized for what the task reads, a vocabulary or features, and for its classes."""
        sizes = len(task.vocabulary) or task.features, len(task.classes or ())
        return self.model(*filter(None, sizes), **self.shape)


# Minutes on a CPU instead of the papers' days: what is kept is fixed towards the end and trained on, and a weight stays
# that is larger than its noise (threshold 0: |θ| > σ).
TOPIC = Profile(
    Plan(epochs=7, batch_size=64, lr=5.0e-3, lr_end=0.02, clip=1.0, word_dropout=0.15),
    lr_log_sigma=2.0e-2, log_sigma=-3.5, log_sigma_groups=-4.0, kl_weight=0.15, kl_weight_neurons=0.8, kl_full=2.0,
    threshold=0.0, fine_tune=0.3, l0_weight=0.05, lr_gates=2.0e-2, prune_start=1.0, prune_end=0.6, prune_every=20,
)  # fmt: skip
CHAR = Profile(
    Plan(epochs=3, batch_size=64, steps=50, lr=1.0e-2, lr_end=0.05, clip=1.0),
    lr_log_sigma=3.0e-2, log_sigma=-3.5, log_sigma_groups=-4.0, kl_weight=6.0, kl_full=1.0, threshold=0.0, fine_tune=0.34,
    l0_weight=5.0, lr_gates=3.0e-2, iss_weight=5.0e-4, prune_start=0.25, prune_end=0.6, prune_every=25,
)  # fmt: skip
SMOKE_TOPIC = TOPIC.but(
    epochs=8, batch_size=32, lr=2.0e-2, word_dropout=0.0, lr_log_sigma=0.1, kl_weight=0.01, kl_weight_neurons=0.0,
    kl_full=0.0, threshold=0.5, fine_tune=0.38, l0_weight=1.0e-3, lr_gates=0.1, iss_weight=0.03, prune_every=5,
)  # fmt: skip
SMOKE_CHAR = CHAR.but(
    epochs=4, batch_size=16, lr_log_sigma=0.1, kl_weight=0.1, kl_full=0.0, threshold=1.0, fine_tune=0.25, l0_weight=0.1,
    lr_gates=0.1, iss_weight=3.0e-3, prune_every=5,
)  # fmt: skip
# The schedules of 1812.05692, code and logs: Adam throughout, KL weight 1 from the first step, log σ −3, threshold 3. Their
# classifiers start from word2vec and GloVe vectors, ours from N(0, 0.1²); their IMDb net has one output, ours two.
PAPER_IMDB = Profile(Plan(epochs=800, batch_size=128, lr=5.0e-4), lr_log_sigma=5.0e-4, kl_fit="1812.05692")
PAPER_AG_NEWS = PAPER_IMDB.but(epochs=150)
PAPER_PTB_CHAR = Profile(Plan(epochs=250, batch_size=64, steps=100, clip=1.0), kl_fit="1812.05692")
PAPER_PTB_WORD = Profile(Plan(epochs=150, batch_size=32, steps=35, clip=10.0), kl_fit="1812.05692")
# A tenth as long: noise comes late, neurons are charged before words, rates fall while words are pressed.
SHORT_IMDB = PAPER_IMDB.but(
    epochs=80, lr=4.0e-3, lr_hold=0.275, lr_rest=0.75, lr_end=0.1, clip=5.0, lr_log_sigma=8.0e-3,
    log_sigma=-5.0, log_sigma_groups=-4.0, kl_start=1.0, kl_full=14.0, kl_weight_neurons=250.0, kl_peak=2.3,
    kl_press=24.0, kl_settle=60.0, kl_fit="molchanov", kl_every=4, sleep_above=1.0, products="bfloat16",
)  # fmt: skip
# Four topics need more neurons than two moods, and an epoch of 512 neurons is dear: the recurrent product is rounded too.
SHORT_AG_NEWS = SHORT_IMDB.but(
    epochs=32, lr=2.0e-3, lr_hold=0.4, lr_rest=0.8, lr_end=0.05, kl_full=8.0, kl_weight_neurons=20.0,
    kl_peak=0.0, kl_press=0.0, kl_settle=24.0, sleep_above=4.0, products="bfloat16-state",
)  # fmt: skip
# The authors' own plan, as far as it goes: their curve (results/published.csv) stands beside it epoch by epoch.
SHORT_PTB_WORD = PAPER_PTB_WORD.but(epochs=10, kl_every=4, products="bfloat16")
SHORT_PTB_CHAR = PAPER_PTB_CHAR.but(epochs=5, kl_every=4, products="bfloat16-state")
SHORT_PYDOCS_CHAR = SHORT_PTB_CHAR.but(epochs=8)  # 3 million characters for PTB's 5: as many steps
# An epoch of 1,589 utterances is 15 s of one core for rnn-128, 27 s for gru-128; after three the RNN misses one digit in
# twenty. Densities that are asked for are reached by methods themselves; penalties without one are scaled, not searched for.
SPOKEN = Profile(
    Plan(epochs=8, batch_size=16, lr=3.0e-3, lr_end=0.05, clip=1.0),
    lr_log_sigma=1.0e-2, log_sigma=-4.5, log_sigma_groups=-4.0, kl_weight=0.02, kl_full=2.0, threshold=0.0, fine_tune=0.25,
    l0_weight=0.02, lr_gates=2.0e-2, iss_weight=1.0e-3, prune_every=20,
)  # fmt: skip
SMOKE_SPOKEN = SPOKEN.but(
    epochs=10, batch_size=4, lr_log_sigma=0.1, kl_weight=1.0e-3, kl_full=0.0, threshold=1.0, l0_weight=1.0e-3,
    lr_gates=0.1, iss_weight=1.0e-3, prune_every=5,
)  # fmt: skip
# 1709.05027 trains its reader with Adam at 1e-3, 60 questions a step, for 12 epochs of eight times as many questions; its penalty
# and the weight below which it sets 0 are these. Fewer data ask for fewer questions a step, and for a rate that falls; an epoch
# of ours is seven minutes of one core.
SHORT_SQUAD = Profile(
    Plan(
        epochs=8, batch_size=32, lr=2.0e-3, lr_hold=0.4, lr_end=0.05, clip=5.0, word_dropout=0.05, products="bfloat16"
    ),
    lr_log_sigma=2.0e-2, log_sigma=-5.0, log_sigma_groups=-5.0, kl_weight=5.0e-3, kl_start=2.0, kl_full=5.0, threshold=0.0,
    fine_tune=0.3, l0_weight=5.0e-3, lr_gates=1.0e-2, iss_weight=1.0e-3, zero_below=4.0e-4, prune_start=2.0, prune_end=0.7,
    prune_every=50,
)  # fmt: skip
QUICK_SQUAD = SHORT_SQUAD.but(epochs=3, lr=5.0e-3, kl_start=0.0, kl_full=1.0, prune_start=1.0, prune_every=5)
SMOKE_SQUAD = QUICK_SQUAD.but(batch_size=16, fine_tune=0.34, lr_log_sigma=0.1, lr_gates=0.1, prune_end=0.6)
ONCE = Profile(Plan(epochs=1, batch_size=256))  # for what is fitted, not trained


def _zaremba(steps, clip, **more):
    """The plans of 1409.2329, section 4: SGD at a rate of 1. Their gradient is that of a window's sum of losses, ours that of
    the mean: the rate is multiplied with the steps, the clip divided by them."""
    return Profile(
        Plan(batch_size=20, steps=steps, optimiser="sgd", lr=1.0 * steps, clip=clip / steps, lr_schedule="step", **more)
    )


# 1908.07724's code: SGD under a cosine (versions of it differ, and which made its tables is not said); no dropout, or "TD":
# tied, and dropout between the layers alone.
RRNN = Profile(
    Plan(
        epochs=100, batch_size=80, steps=35, optimiser="sgd", lr=1.0, momentum=0.9, weight_decay=1.0e-6, clip=0.25,
        lr_schedule="cosine", lr_end=0.0,
    )
)  # fmt: skip
TD = {"tied": True, "dropout_between": 0.2}


def _two_layers(neurons, uniform, dropout=0.0):
    """The nets of 1409.2329: an embedding as wide as its two layers, the same dropout in all three places."""
    drops = dict.fromkeys(("dropout_input", "dropout_between", "dropout_output"), dropout)
    return {"embedding": neurons, "hidden": neurons, "layers": 2, "uniform": uniform} | drops


def _three_layers(cell, **more):
    """The nets of 1908.07724 without sharing, from torch's own start."""
    return {"embedding": 200, "hidden": 200, "layers": 3, "cell": cell} | more


STACKS = {
    "zaremba-small": (_two_layers(200, 0.1), _zaremba(20, 5.0, epochs=13, lr_from=4, lr_factor=2.0)),
    "zaremba-medium": (_two_layers(650, 0.05, 0.5), _zaremba(35, 5.0, epochs=39, lr_from=6, lr_factor=1.2)),
    "zaremba-large": (_two_layers(1500, 0.04, 0.65), _zaremba(35, 10.0, epochs=55, lr_from=14, lr_factor=1.15)),
    **{f"rrnn-3x200-{cell.lower()}": (_three_layers(cell), RRNN) for cell in CELLS},
    **{f"rrnn-3x200-{cell.lower()}-td": (_three_layers(cell, **TD), RRNN) for cell in CELLS},
}
LARGEST_RRNN = "rrnn-3x200-lstm"
CALM = 1.0e-3  # rate at which an RNN learns topics; at 5e-3 it ends ten points lower (pydocs-topic, validation)


def _classifier(name, hidden, profiles):
    """300 numbers a word, one LSTM layer with hard gates; beside it the opponent on the same words."""
    smoke = {"smoke": profiles["paper"].but(epochs=2, batch_size=32)}
    opponent = Preset(BagOfWords, {}, dict.fromkeys((*profiles, "smoke"), ONCE), name)
    net = Preset(Classifier, {"embedding": 300, "hidden": hidden}, profiles | smoke)
    return {name: net, "bag-of-words": opponent}


def _language_model(hidden, profiles, **shape):
    """One-hot symbols, one LSTM layer with logistic gates."""
    smoke = {"smoke": profiles["paper"].but(epochs=2, batch_size=8)}
    return {f"bayes-{hidden}": Preset(LanguageModel, {"hidden": hidden} | shape, profiles | smoke)}


def _with_cells(presets, fastest=math.inf):
    """The presets, and the first one's net with the other cells: `gru-…` and `rnn-…`.

    fastest: rate of the RNN at most. Its gradient grows with every step back, so it is clipped where the plan does not.
    """
    net, calmer = next(iter(presets.values())), {}
    for name, profile in net.profiles.items():
        calmer[name] = profile.but(lr=min(profile.plan.lr, fastest), clip=1.0)
    gru = replace(net, shape=net.shape | {"cell": "GRU"})
    rnn = replace(net, shape=net.shape | {"cell": "RNN"}, profiles=calmer)
    return presets | {f"gru-{net.shape['hidden']}": gru, f"rnn-{net.shape['hidden']}": rnn}


def _with_sizes(presets, *sizes, called="lstm"):
    """The presets, and the first one's net in other sizes, `lstm-…` by their neurons, which count against it: small ones to
    be trained instead of making it small, a larger one to be made as small."""
    name, net = next(iter(presets.items()))
    widths = [width for width in ("embedding", "hidden") if width in net.shape]
    return presets | {
        f"{called}-{n}": replace(net, shape=net.shape | dict.fromkeys(widths, n), equivalent=name) for n in sizes
    }


def _tied(profiles, first, *sizes):
    """Small language models of words, `tied-…` by their neurons, which count against `first`: one LSTM layer, and words that are
    as wide and stand in the head too. A one-hot net of as few weights would have ten neurons."""
    shape = {"layers": 1, "tied": True, "uniform": 0.1}
    return {
        f"tied-{n}": Preset(StackedLanguageModel, shape | {"embedding": n, "hidden": n}, profiles, first) for n in sizes
    }


def _recognisers(*sizes):
    """The two nets of 1704.05119 in small, the first of the sizes and others that count against it: `rnn-…` in both
    directions, `gru-…` forward under a row convolution. Table 3 there has 1760, 704, 2560 and 3072 units, and 2560 and 3568.

    A step is 40 ms: of steps of 20 ms, ten a word more, nets of 48 answer with the blank alone for eight epochs."""
    gru = {"cell": "GRU", "activation": "logistic", "bidirectional": False, "window": 8}
    profiles, found = {"smoke": SMOKE_SPOKEN, "quick": SPOKEN}, {}
    for cell, shape in (("rnn", {}), ("gru", gru)):
        for size in sizes:
            equivalent = None if size == sizes[0] else f"{cell}-{sizes[0]}"
            found[f"{cell}-{size}"] = Preset(
                SpeechModel, {"hidden": size, "layers": 3, "stride": 4} | shape, profiles, equivalent
            )
    return found


def _stacks(short, rrnn):
    """STACKS for a corpus of words; those of 1908.07724 count against its LSTM, whatever their cell, as in its figures. short:
    name → the epochs of its plan that a CPU can afford; rrnn: of the others'."""
    found = {}
    for name, (shape, profile) in STACKS.items():
        profiles = {"paper": profile, "short": profile.but(epochs=short.get(name, rrnn), products="bfloat16")}
        equivalent = None if name in short or name == LARGEST_RRNN else LARGEST_RRNN
        found[name] = Preset(StackedLanguageModel, shape, profiles, equivalent)
    return found


def _readers(first, *smaller):
    """BiDAF with so many filters over letters, and neurons a direction: the paper's, and smaller ones that count against it. All
    have as many numbers a word as the first."""
    profiles, found = {"smoke": SMOKE_SQUAD, "quick": QUICK_SQUAD, "short": SHORT_SQUAD}, {}
    for size in (first, *smaller):
        shape = {"word_size": first, "filters": size, "hidden": size}  # a file of vectors of words is as wide
        found[f"bidaf-{size}"] = Preset(BiDAF, shape, profiles, None if size == first else f"bidaf-{first}")
    return found


TOPICS = {
    "lstm-64": Preset(Classifier, {"embedding": 64, "hidden": 64}, {"smoke": SMOKE_TOPIC, "quick": TOPIC}),
    "bag-of-words": Preset(BagOfWords, {}, {"smoke": ONCE, "quick": ONCE}, "lstm-64"),
}
CHARACTERS = _with_cells(
    {"lstm-128": Preset(LanguageModel, {"hidden": 128, "forget_bias": 1.0}, {"smoke": SMOKE_CHAR, "quick": CHAR})}
)
WORDS = {"forget_bias": 1.0, "word_noise": True}

REVIEWS = _with_sizes(
    _with_cells(_classifier("bayes-128", 128, {"paper": PAPER_IMDB, "short": SHORT_IMDB}), CALM), 1, 2, 4, 8, 16, 32
)

PRESETS = {
    "pydocs-topic": _with_sizes(_with_cells(TOPICS, CALM), 2, 4, 8, 16),
    "pydocs-char": {
        **_with_sizes(CHARACTERS, 32, 48, 56, 64, 80, 256),
        **_with_sizes({"rnn-128": CHARACTERS["rnn-128"]}, 42, called="rnn"),
        **_with_sizes(
            _language_model(512, {"paper": PAPER_PTB_CHAR, "short": SHORT_PYDOCS_CHAR}),
            80,
            128,
            256,
            350,
            called="bayes",
        ),
    },
    "imdb": REVIEWS,
    "imdb-authors": dict(REVIEWS),
    "ag-news": _with_sizes(
        _with_cells(_classifier("bayes-512", 512, {"paper": PAPER_AG_NEWS, "short": SHORT_AG_NEWS}), CALM),
        2,
        4,
        8,
        16,
        32,
    ),
    "ptb-char": _with_sizes(
        _with_cells(_language_model(1000, {"paper": PAPER_PTB_CHAR, "short": SHORT_PTB_CHAR})), 200, 280, called="bayes"
    ),
    "ptb-word": {
        **_with_cells(_language_model(256, {"paper": PAPER_PTB_WORD, "short": SHORT_PTB_WORD}, **WORDS)),
        **_tied({"short": SHORT_PTB_WORD}, "bayes-256", 24, 48, 96),
        **_stacks({"zaremba-small": 13, "zaremba-medium": 10, "zaremba-large": 4}, rrnn=20),
    },
    "wikitext-2": {
        **_with_cells(_language_model(256, {"paper": PAPER_PTB_WORD}, **WORDS)),
        **_stacks({"zaremba-small": 5, "zaremba-medium": 2, "zaremba-large": 1}, rrnn=5),
    },
    "pydocs-word": _with_cells(_language_model(256, {"paper": PAPER_PTB_WORD}, **WORDS)),
    "digits": _recognisers(128, 48, 192, 256),
    "squad": _readers(100, 50, 24),
}


def preset(task, model):
    """The preset `model` of `task`. Raises ValueError naming the nearest."""
    if task not in PRESETS:
        raise ValueError(nearest("task", task, PRESETS))
    if model not in PRESETS[task]:
        raise ValueError(nearest(f"model of {task}", model, PRESETS[task]))
    return PRESETS[task][model]
