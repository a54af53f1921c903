"""A made-up reading task in the form of SQuAD's files, registered like a real one: `tiny-squad`."""

import numpy as np

from sparsernn import tasks
from sparsernn.nets.bidaf import BiDAF
from sparsernn.sparsify.plan import Plan
from sparsernn.study.presets import PRESETS, Preset, Profile
from sparsernn.tasks.squad import of_articles

ANIMALS, PEOPLE = ["cat", "dog", "cow", "hen"], ["Anna", "Bert", "Cleo", "Dora", "Emil", "Finn"]
COLOURS = ["red", "dark red", "blue", "pale blue", "green", "black"]


def article(title, paragraphs, rng):
    """Paragraphs that say of three animals whose they are and which colour, and a question about each."""
    found = []
    for _ in range(paragraphs):
        owners, context, asked = rng.permutation(PEOPLE), "", []
        for animal, owner, colour in zip(rng.permutation(ANIMALS)[:3], owners, rng.permutation(COLOURS), strict=False):
            colour = str(colour)
            context += f"The {animal} of {owner} is "
            place = len(context)
            answers = [{"text": colour, "answer_start": place}] * int(rng.integers(1, 3))
            asked.append(
                {
                    "id": f"{title}-{len(found)}-{animal}",
                    "question": f"Which colour has the {animal}?",
                    "answers": answers,
                }
            )
            context += f"{colour}. "
        found.append({"context": context.strip(), "qas": asked})
    return {"title": title, "paragraphs": found}


def articles(*sizes, seed=0):
    """Articles of so many paragraphs each."""
    rng = np.random.default_rng(seed)
    return [article(f"article {seed}.{number}", size, rng) for number, size in enumerate(sizes)]


def tiny(profile):
    size = 24 if profile == "short" else 6
    return of_articles("tiny-squad", articles(*[size] * 4), articles(size // 2, 2, seed=1), "short", ["made up"])


OPTIONS = {
    "lr_log_sigma": 5e-2, "log_sigma": -4.0, "log_sigma_groups": -4.0, "kl_weight": 0.02, "kl_full": 2.0, "threshold": 1.0,
    "fine_tune": 0.34, "l0_weight": 0.02, "lr_gates": 3e-2, "iss_weight": 0.02, "prune_every": 3,
}  # fmt: skip


def register():
    tasks.TASKS["tiny-squad"] = tiny
    plan = Plan(epochs=3, batch_size=12, lr=1e-2, clip=5.0, word_dropout=0.05)
    shape = {"word_size": 6, "letter_size": 4, "filters": 6, "hidden": 8, "dropout": 0.0}
    longer = Plan(epochs=12, batch_size=12, lr=2e-2, clip=5.0)
    PRESETS["tiny-squad"] = {
        "bidaf-8": Preset(BiDAF, shape, {"quick": Profile(plan, **OPTIONS), "short": Profile(longer)})
    }
