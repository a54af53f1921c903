"""Whether a GPU may round fp32 factors to tf32, here and only here.

Torch has two ways to say it and lets nobody read the older one once the newer was used: `allow_tf32` and
`set_float32_matmul_precision` for all of a library, `fp32_precision` operation by operation. Whichever was used is set and put
back as it was.
"""

from contextlib import contextmanager

import torch
from torch import backends


@contextmanager
def products(allowed):
    """cuBLAS, inside, alone."""
    with _set(allowed, cudnn=False):
        yield


@contextmanager
def tf32(allowed):
    """cuDNN and cuBLAS, inside."""
    with _set(allowed, cudnn=True):
        yield


@contextmanager
def _set(allowed, cudnn):
    try:
        before = torch.get_float32_matmul_precision(), backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32
    except RuntimeError:  # set operation by operation
        operations = [backends.cuda.matmul, *([backends.cudnn.conv, backends.cudnn.rnn] if cudnn else [])]
        before = [operation.fp32_precision for operation in operations]
        for operation in operations:
            operation.fp32_precision = "tf32" if allowed else "ieee"
        try:
            yield
        finally:
            for operation, precision in zip(operations, before, strict=True):
                operation.fp32_precision = precision
        return
    own = getattr(backends.cuda.matmul, "fp32_precision", None)  # torch before 2.9 has the older way alone
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    if cudnn:
        backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        if own is not None:
            backends.cuda.matmul.fp32_precision = own
        if cudnn:
            backends.cudnn.allow_tf32 = before[2]
