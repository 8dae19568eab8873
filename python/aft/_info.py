"""aft.info(): what runs here, the first thing to ask for in a bug report."""

import dataclasses
import platform

import torch

from . import _library


@dataclasses.dataclass(frozen=True)
class Info:
    """What info() gives; str() of it is a table."""

    aft: str
    """Version of aft."""
    torch: str
    """Version of the torch that is loaded, as torch.__version__."""
    built_for: str
    """Version of the torch that the library was built for."""
    python: str
    """Version of Python."""
    library: str
    """The file that the operators come from."""
    cpu_target: str
    """The instruction set that the CPU kernels run here, by Highway's name: AVX3 is AVX-512."""
    cpu_targets: tuple[str, ...]
    """The instruction sets that the CPU kernels are compiled for, the best first."""
    threads: int
    """Threads of a call on the CPU, torch.get_num_threads()."""
    cuda_architectures: str
    """The GPUs that the CUDA kernels are compiled for, such as "80, 90, PTX 90"; empty where built without CUDA."""
    devices: tuple[str, ...]
    """The devices that the operators run on, such as "cuda:0 NVIDIA H200 (90)", the compute capability in brackets."""

    def __str__(self):
        cuda = f"compiled for {self.cuda_architectures}" if self.cuda_architectures else "none, built without CUDA"
        rows = {
            "aft": self.aft,
            "torch": f"{self.torch}, built for {self.built_for}",
            "Python": self.python,
            "library": self.library,
            "CPU kernels": f"{self.cpu_target} of {', '.join(self.cpu_targets)}; {self.threads} threads",
            "CUDA kernels": cuda,
            "devices": ", ".join(self.devices),
        }
        return "\n".join(f"{name + ':':14}{value}" for name, value in rows.items())

    __repr__ = __str__


def info() -> Info:
    """Versions, devices and what the kernels are compiled for, as an object with a field each that prints as a table.

    >>> aft.info().torch == torch.__version__
    True
    """
    ops = _library.ops
    chosen, compiled = ops.simd_targets()
    devices = ["cpu", *(f"cuda:{index} {name}" for index, name in enumerate(ops.cuda_devices()))]
    return Info(
        aft=_library.__version__,
        torch=str(torch.__version__),
        built_for=f"{_library.built_for['torch']} ({_library.built_for['torch_build']})",
        python=platform.python_version(),
        library=ops.library_path(),
        cpu_target=chosen,
        cpu_targets=tuple(compiled),
        threads=torch.get_num_threads(),
        cuda_architectures=ops.cuda_architectures(),
        devices=tuple(devices),
    )
