"""One product y [M, N] = W [M, K] x [K, N] through torch: dense (cuBLAS, MKL, oneDNN), CSR (cuSPARSE, MKL), 2:4 (CUTLASS)."""

import warnings

import torch
from torch import nn

from ..nets.multiply import times
from .base import Unsupported
from .precision import tf32


class Product:
    """`Product(weight, device)` prepares W [M, K] (untimed); called with x [K, N] it returns W x, both in `dtype`.

    A single column goes to the library as a vector.
    """

    devices = ("cpu", "cuda")
    dtype = torch.float32
    tf32 = False

    def __init__(self, weight, device="cpu"):
        self.weight = self.prepare(weight.to(device, self.dtype))

    @property
    def reads(self):
        """The dtype that it takes x in."""
        return self.dtype

    def prepare(self, weight):
        return weight

    @torch.no_grad()
    def __call__(self, x):
        with tf32(self.tf32):
            return (self.weight @ x[:, 0]).unsqueeze(1) if x.shape[1] == 1 else self.weight @ x


class Dense(Product):
    pass


class DenseTF32(Product):
    devices, tf32 = ("cuda",), True


class DenseBF16(Product):
    dtype = torch.bfloat16


class DenseFP16(Product):
    devices, dtype = ("cuda",), torch.float16


class DenseFP16Padded(DenseFP16):
    """Filled up with columns to a multiple of 8, which the library has its quick kernels for: 4 columns alone take longer."""

    def __call__(self, x):
        more = -x.shape[1] % 8
        if not more:
            raise Unsupported(f"{x.shape[1]} columns are a multiple of 8 as they are")
        return super().__call__(torch.nn.functional.pad(x, (0, more)))[:, :-more]


class DenseOneDNN(Product):
    """By the other library that torch is built with on a CPU (`nets.multiply`): on some processors the faster one."""

    devices = ("cpu",)

    def prepare(self, weight):
        if not torch.backends.mkldnn.is_available():
            raise Unsupported("torch was built without oneDNN")
        return weight

    @torch.no_grad()
    def __call__(self, x):
        return times(x.t(), self.weight).t() if x.shape[1] == 1 else times(self.weight, x.t())


class DenseInt8(Product):
    """int8 weights, x quantised as it comes (torch's dynamic quantisation, CPU)."""

    devices, dtype, reads = ("cpu",), torch.int8, torch.float32

    def __init__(self, weight, device="cpu"):
        linear = nn.Linear(*weight.T.shape, bias=False).requires_grad_(False)
        linear.weight.copy_(weight)
        self.linear = quantised(linear)

    @torch.no_grad()
    def __call__(self, x):
        return self.linear(x.T).T


def quantised(module):
    """The module with weights in int8, by torch."""
    with warnings.catch_warnings():  # it announces that it will move to another package
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(nn.Sequential(module), {type(module)})[0]


class Csr(Product):
    """int32 indices: MKL and cuSPARSE are fastest with them."""

    def prepare(self, weight):
        rows, columns = weight.nonzero(as_tuple=True)
        pointers = torch.zeros(len(weight) + 1, dtype=torch.int32, device=weight.device)
        pointers[1:] = torch.bincount(rows, minlength=len(weight)).cumsum(0)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
            warnings.filterwarnings("ignore", "Sparse invariant checks are implicitly", UserWarning)  # torch 2.11's
            return torch.sparse_csr_tensor(
                pointers, columns.int(), weight[rows, columns], weight.shape, check_invariants=True
            )


class TwoToFour(Product):
    """At most two weights of every four in a row are not zero: sparse tensor cores, fp16, on the GPU alone."""

    devices, dtype = ("cuda",), torch.float16

    def prepare(self, weight):
        if weight.shape[0] % 32 or weight.shape[1] % 64:
            raise Unsupported(f"2:4 wants rows in 32s and columns in 64s, not {tuple(weight.shape)}")
        if int((weight.view(len(weight), -1, 4) != 0).sum(2).max()) > 2:
            raise Unsupported("some group of four has more than two weights")
        torch.sparse.SparseSemiStructuredTensor._FORCE_CUTLASS = False  # torch's CUTLASS kernel is for sm_80 alone
        self.searched = set()
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "The PyTorch API of SparseSemiStructuredTensor is in prototype", UserWarning
            )
            return torch.sparse.to_sparse_semi_structured(weight)

    @torch.no_grad()
    def __call__(self, x):
        columns = x.shape[1]
        x = torch.nn.functional.pad(x, (0, -columns % 8)).contiguous()  # the library wants multiples of 8
        if x.shape[1] not in self.searched and hasattr(torch, "_cslt_sparse_mm_search"):
            self.weight.alg_id_cusparselt = torch._cslt_sparse_mm_search(self.weight.packed, x)
            self.searched.add(x.shape[1])
        return (self.weight @ x)[:, :columns]
