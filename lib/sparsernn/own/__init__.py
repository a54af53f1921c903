"""A method on a model of your own, and the small model that comes out of it.

    study = attach(model, "sparse-vd-wgn", steps=2000, n_examples=len(data))
    optimizer = torch.optim.Adam(study.parameter_groups(lr=1e-3))
    for x, y in batches:
        loss = criterion(model(x), y) + study.penalty()
        optimizer.zero_grad(), loss.backward(), optimizer.step()
        study.after_step()
    model.eval()  # now it runs pruned
    small, proof = compact(model, example=x)

The model keeps its class, its parameters and its state_dict. Known are nn.LSTM, nn.GRU, nn.RNN, nn.Embedding and
nn.Linear, wherever they are inside; everything else runs as it is.
"""

from .attaching import Study, attach
from .compaction import Proof, compact

__all__ = ["Proof", "Study", "attach", "compact"]
