"""CUDA source compiled when it is needed (NVRTC) and launched, where blocks wait for each other so that all run at once.

Needs the packages cuda-bindings and nvidia-cuda-nvrtc; torch for a GPU brings both. Compiling needs no GPU.
"""

import ctypes
from functools import lru_cache
from pathlib import Path

import torch
from cuda.bindings import driver, nvrtc

FLAGS = ("--std=c++17", "--use_fast_math")


def _checked(result):
    """What a call of the two libraries returns besides its status. Raises RuntimeError naming the status."""
    status, *found = result
    if int(status) != 0:
        raise RuntimeError(f"{type(status).__name__}: {status.name}")
    return found[0] if found else None


@lru_cache
def compile_source(path, architecture, **constants):
    """The machine code (bytes) of a .cu file for "sm_90" and its like, each constant a macro.

    Raises RuntimeError with what the compiler said.
    """
    source = Path(path).read_bytes()
    program = _checked(nvrtc.nvrtcCreateProgram(source, Path(path).name.encode(), 0, [], []))
    options = [*FLAGS, f"--gpu-architecture={architecture}", f"--include-path={Path(path).parent}"]
    options += [f"-D{name}={n}" for name, n in constants.items()]
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
    if int(status) != 0:
        said = b" " * _checked(nvrtc.nvrtcGetProgramLogSize(program))
        _checked(nvrtc.nvrtcGetProgramLog(program, said))
        text = said.decode(errors="replace").strip("\0\n ")
        raise RuntimeError(f"{Path(path).name} for {architecture}: {text}")
    code = b" " * _checked(nvrtc.nvrtcGetCUBINSize(program))
    _checked(nvrtc.nvrtcGetCUBIN(program, code))
    _checked(nvrtc.nvrtcDestroyProgram(program))
    return code


def _made_again(path, name, device, cooperative, constants):
    return Kernel(path, name, device, cooperative, **constants)


class Kernel:
    """One function of a .cu file on one GPU: `kernel(blocks, threads, shared, *tensors and ints)`, on torch's stream.

    shared       bytes a block
    cooperative  whether its blocks wait for each other: the launch then fails where one of them has no room
    """

    def __init__(self, path, name, device, cooperative=True, **constants):
        self.device, self.cooperative = torch.device(device), cooperative
        self.made_of = path, name, device, cooperative, constants
        major, minor = torch.cuda.get_device_capability(self.device)
        code = compile_source(path, f"sm_{major}{minor}", **constants)
        with torch.cuda.device(self.device):
            torch.empty(1, device=self.device)  # makes torch's context the current one
            self.module = _checked(driver.cuModuleLoadData(code))
            self.function = _checked(driver.cuModuleGetFunction(self.module, name.encode()))
        self.most = 0

    def __deepcopy__(self, memo):
        return self

    def __reduce__(self):
        return _made_again, self.made_of

    def __call__(self, blocks, threads, shared, *arguments):
        values = tuple(a.data_ptr() if isinstance(a, torch.Tensor) else a for a in arguments)
        kinds = tuple(ctypes.c_void_p if isinstance(a, torch.Tensor) else ctypes.c_int for a in arguments)
        with torch.cuda.device(self.device):
            if shared > self.most:
                attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                _checked(driver.cuFuncSetAttribute(self.function, attribute, shared))
                self.most = shared
            stream = driver.CUstream(torch.cuda.current_stream().cuda_stream)
            given = self.function, blocks, 1, 1, threads, 1, 1, shared, stream, (values, kinds)
            if self.cooperative:
                _checked(driver.cuLaunchCooperativeKernel(*given))
            else:
                _checked(driver.cuLaunchKernel(*given, 0))
