"""Connected tones to be written down: word w is a tone at frequency w, held for some frames, with gaps between. CTC, no audio."""

import torch
import torch.nn.functional as F

FEATURES, CLASSES = 9, 4  # frequencies; the blank and three words


def batch(sequences, seed=0, words=3, dtype=torch.float32):
    """→ features [T, B, F] padded on the right with numbers that mean nothing, lengths [B], targets [B, words]."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(1, CLASSES, (sequences, words), generator=generator)
    tones = []
    for row in targets.tolist():
        frames = []
        for word in row:
            held, gap = (int(torch.randint(low, high, (), generator=generator)) for low, high in ((4, 7), (2, 5)))
            tone = torch.zeros(held + gap, FEATURES)
            tone[:held, 2 * word] = 2.0
            frames.append(tone)
        frames = torch.cat(frames)
        tones.append(frames + 0.3 * torch.randn(frames.shape, generator=generator))
    lengths = torch.tensor([len(frames) for frames in tones])
    features = torch.nn.utils.rnn.pad_sequence(tones, padding_value=7.0)
    return features.to(dtype), lengths, targets


def loss(logits, lengths, targets, stride):
    """Mean nats a sequence of connectionist temporal classification, by torch."""
    steps, counts = -(-lengths // stride), torch.full((len(targets),), targets.shape[1])
    return F.ctc_loss(logits.log_softmax(-1), targets, steps, counts, reduction="sum") / len(targets)


def read(logits, lengths, stride):
    """Best path: repeats are one, blanks are none → a list of words a sequence."""
    said = []
    for answers, steps in zip(logits.argmax(-1).T.tolist(), (-(-lengths // stride)).tolist(), strict=True):
        answers = answers[:steps]
        said.append([a for a, before in zip(answers, [0, *answers[:-1]], strict=True) if a and a != before])
    return said
