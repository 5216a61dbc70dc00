"""Doctor: what this machine has, what it lacks, and what works here. Looks at everything and changes nothing."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import env
from ..errors import EnvironmentProblem, OrientError, first_line
from ..kernels.manifest import KERNEL
from ..perf_model import gpu_specs
from ..problem.device import Device, archs, capability, cpu_device, cuda_devices, own_cpu
from ..problem.spec import ConvSpec
from ..problem.taps import Taps
from ..sass import cubin
from ..toolchain import nvrtc, openmp
from ..toolchain.tvm import TVM_VERSION, check_ffi, load_tvm
from ..toolchain.versions import installed
from .doctor_files import Finding, State, kernel_cache, log_folder, user_logs, variable


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. hint: what to install, and for what; for a variable, what it means."""

    section: str
    name: str
    state: State
    detail: str
    hint: str = ""


_GENERATE = ("apache-tvm-ffi", "apache-tvm", "LLVM", "C compiler")
_CPU = ("torch", *_GENERATE)
_CUDA = (*_GENERATE, "NVRTC", "nvdisasm", "cudart 13")
_GPU = ("torch", *_GENERATE, "NVRTC", "libcuda", "GPU", "torch CUDA", "cudart 13", "GPU kernel")
_TUNE = ("xgboost", "psutil", "cloudpickle")

# what can be done here, and the checks that it needs to be ok
NEEDS: dict[str, tuple[str, ...]] = {
    "run on the CPU": (*_CPU, "CPU kernel"),
    "tune for the CPU": (*_CPU, "CPU kernel", *_TUNE),
    "generate for CUDA without a GPU": _CUDA,
    "run on a GPU": _GPU,
    "tune on a GPU": (*_GPU, *_TUNE),
    "plots": ("matplotlib",),
    "demo": (*_CPU, "CPU kernel", *_TUNE, "matplotlib", "scikit-image"),
}


def examine() -> list[Check]:
    """Returns every check, in the order in which they are shown."""
    checks = [
        _check("packages", "Python", _python),
        _check("packages", "torch", _torch),
        _check("packages", "apache-tvm-ffi", _ffi),
        _check("packages", "apache-tvm", _tvm),
        _check("packages", "LLVM", _llvm),
        _check("packages", "C compiler", _compiler),
    ]
    checks += [_check("packages", name, functools.partial(_package, name)) for name in _PACKAGES]
    checks += [
        _check("devices", "CPU", _cpu),
        _check("devices", "libcuda", _libcuda),
        *_gpus(),
        _check("devices", "torch CUDA", _torch_cuda),
        _check("devices", "cudart 13", _cudart),
        _check("CUDA compilers", "NVRTC", _nvrtc),
        _check("CUDA compilers", "nvdisasm", _nvdisasm),
        _check("CUDA compilers", "nvcc", _nvcc),
        _check("kernels", "CPU kernel", lambda: _kernel(cpu_device())),
        _check("kernels", "GPU kernel", _gpu_kernel),
        _check("files", "user logs", user_logs),
        _check("files", "shipped logs", lambda: log_folder(env.shipped_log_dir(), "none", shipped=True)),
        _check("files", "kernel cache", kernel_cache),
    ]
    return checks + [_check("environment", name, functools.partial(variable, name)) for name in env.VARIABLES]


def lacks(checks: Iterable[Check]) -> dict[str, list[str]]:
    """Lists what can be done here, each with the names of what it lacks: nothing lacking means that it works."""
    fine = {check.name for check in checks if check.state == "ok"}
    return {what: [need for need in needs if need not in fine] for what, needs in NEEDS.items()}


def _check(section: str, name: str, look: Callable[[], Finding]) -> Check:
    try:
        return Check(section, name, *look())
    except OrientError as problem:  # says itself what to do
        return Check(section, name, "broken", first_line(problem))
    except Exception as problem:  # a doctor that dies of what it finds is no use
        return Check(section, name, "broken", f"{type(problem).__name__}: {first_line(problem)}", "reinstall it")


# ---- packages -----------------------------------------------------------------------------------

# name: (module, distributions, extra, what it is for)
_PACKAGES = {
    "xgboost": ("xgboost", ("xgboost-cpu", "xgboost"), "tune", "the cost model of tuning"),
    "psutil": ("psutil", ("psutil",), "compile", "measuring candidates"),
    "cloudpickle": ("cloudpickle", ("cloudpickle",), "compile", "measuring candidates"),
    "matplotlib": ("matplotlib", ("matplotlib",), "plot", "pictures"),
    "scikit-image": ("skimage", ("scikit-image",), "demo", "the demo's photographs"),
}


def _python() -> Finding:
    return "ok", f"{platform.python_version()}, {platform.system()} {platform.machine()}, {sys.executable}", ""


def _torch() -> Finding:
    if importlib.util.find_spec("torch") is None:
        return "missing", "not installed", "pip install 'tvm-orient[torch]' to call the ops"
    import torch

    cuda = torch.version.cuda
    return "ok", f"{torch.__version__}, {f'for CUDA {cuda}' if cuda else 'for the CPU only'}", ""


def _ffi() -> Finding:
    version, remedy = installed("apache-tvm-ffi"), "pip install 'apache-tvm-ffi>=0.1.14.post0,<0.1.15' for everything"
    if version is None:
        return "missing", "not installed", remedy
    try:
        check_ffi()
    except OrientError:
        return "broken", f"{version}: must be 0.1.14.x, 0.1.15 crashes when IR is saved", remedy
    return "ok", version, ""


def _tvm() -> Finding:
    version, remedy = installed("apache-tvm"), "pip install 'tvm-orient[compile]' to generate kernels"
    if version is None and importlib.util.find_spec("tvm") is None:
        return "missing", "not installed", remedy
    try:
        load_tvm()
    except OrientError as problem:
        return "broken", f"{version}: {problem}", remedy
    return "ok", version or "a build of your own", ""


def _llvm() -> Finding:
    try:
        tvm = load_tvm()
    except OrientError:
        return "missing", "comes with apache-tvm", "pip install 'tvm-orient[compile]' to generate kernels"
    processor = tvm.get_global_func("target.llvm_get_system_cpu", allow_missing=True)
    if processor is None:
        return "missing", "this apache-tvm was built without LLVM", f"pip install 'apache-tvm=={TVM_VERSION}' to compile kernels"
    number = tvm.get_global_func("target.llvm_version_major", allow_missing=True)
    return "ok", f"{f'version {number()}, ' if number else ''}sees a {processor()}", ""


def _compiler() -> Finding:
    try:
        found = openmp.compiler()
    except EnvironmentProblem as problem:
        return "missing", str(problem), "install gcc or clang to make kernels that can be loaded"
    said = subprocess.run([found, "--version"], capture_output=True, text=True, check=False, timeout=30)
    if said.returncode:
        return "broken", f"{found} --version failed: {said.stderr.strip()[:200]}", "reinstall it"
    return "ok", f"{said.stdout.strip().splitlines()[0]}, {found}", ""


def _package(name: str) -> Finding:
    module, distributions, extra, purpose = _PACKAGES[name]
    if importlib.util.find_spec(module) is None:
        return "missing", "not installed", f"pip install 'tvm-orient[{extra}]' for {purpose}"
    return "ok", installed(*distributions) or "installed", ""


# ---- devices ------------------------------------------------------------------------------------


def _libcuda() -> Finding:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "missing", "no NVIDIA driver", "install NVIDIA's driver r580 or later to run on a GPU"
    version = ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(version)):
        return "broken", "the driver does not answer", "reinstall NVIDIA's driver, r580 or later"
    name = f"{version.value // 1000}.{version.value % 1000 // 10}"
    if version.value < 13000:
        return "broken", f"the driver serves CUDA {name}, kernels need 13", "install NVIDIA's driver r580 or later to run on a GPU"
    return "ok", f"the driver serves CUDA {name}", ""


def _cpu() -> Finding:
    cpu = own_cpu()
    try:
        device = cpu_device()
    except OrientError as problem:
        return "broken", f"{cpu.name}: {problem}", "unset TVM_ORIENT_CPU"
    whose = "" if device.model == cpu.model else f", kernels for {device.model}"
    return "ok", f"{cpu.name} ({cpu.model}), {device.arch}, {device.units} cores{whose}", ""


def _gpus() -> list[Check]:
    none = Check("devices", "GPU", "missing", "none that the driver shows", "`tvm-orient build --arch sm_90a` generates kernels for one elsewhere")
    return [Check("devices", "GPU", "ok", _gpu(gpu)) for gpu in cuda_devices()] or [none]


def _gpu(gpu: Device) -> str:
    said = f"{gpu.name}, {gpu.arch}, {gpu.units} SMs, {gpu.shared_memory // 1024} KiB of shared memory a block, index {gpu.index}"
    return f"{said}; {note}" if (note := gpu_specs.borrowed(gpu.arch)) else said


def _torch_cuda() -> Finding:
    if importlib.util.find_spec("torch") is None:
        return "missing", "no torch", "pip install 'tvm-orient[torch]'"
    import torch

    if torch.version.cuda is None:
        return "missing", f"torch {torch.__version__} is a CPU build", "install a CUDA 13 build of torch to run on a GPU"
    if not torch.cuda.is_available():
        state: State = "broken" if cuda_devices() else "missing"
        return state, f"torch {torch.__version__} for CUDA {torch.version.cuda} sees no GPU", "torch.cuda.init() says why"
    return "ok", f"{torch.cuda.device_count()} GPUs, CUDA {torch.version.cuda}", ""


def _cudart() -> Finding:
    for place in ("libcudart.so.13", *map(str, _in_wheels("lib/libcudart.so.13"))):
        try:
            runtime = ctypes.CDLL(place)
        except OSError:
            continue
        version = ctypes.c_int()
        runtime.cudaRuntimeGetVersion(ctypes.byref(version))
        return "ok", f"{version.value // 1000}.{version.value % 1000 // 10}", ""
    return "missing", "libcudart.so.13 was not found", "pip install 'nvidia-cuda-runtime>=13,<14' to run on a GPU"


# ---- CUDA compilers -----------------------------------------------------------------------------

# needs the library, the runtime's headers and CCCL's, as generated kernels do
_PROBE = '#include <cuda_runtime.h>\n#include <cuda/std/cstdint>\nextern "C" __global__ void probe(::cuda::std::int32_t* x) { *x = 1; }\n'


def _nvrtc() -> Finding:
    remedy = "pip install 'tvm-orient[compile]' to generate CUDA kernels without nvcc"
    try:
        number = ".".join(map(str, nvrtc.version()))
    except EnvironmentProblem as problem:
        return "missing", first_line(problem), remedy
    try:
        nvrtc.compile_cubin(_PROBE, "sm_90a")
    except OrientError as problem:
        return "missing", f"version {number}, but a kernel does not compile: {first_line(problem)}", remedy
    known = set(map(capability, nvrtc.archs()))
    return "ok", f"{number}, for --arch {', '.join(arch for arch in archs() if capability(arch) in known)}", ""


def _nvdisasm() -> Finding:
    remedy = "pip install nvidia-cuda-nvdisasm to export CUDA kernels, with what their code does"
    try:
        cubin.kernels(nvrtc.compile_cubin(_PROBE, "sm_90a"))
    except OrientError as problem:
        return "missing", first_line(problem), remedy
    return "ok", f"reads what NVRTC makes{'' if (number := installed('nvidia-cuda-nvdisasm')) is None else f', {number}'}", ""


def _in_wheels(tail: str) -> list[Path]:
    """Returns the files of that name in NVIDIA's wheels, whose layout is nvidia/cu13/..."""
    spec = importlib.util.find_spec("nvidia")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    return sorted(path for folder in folders for path in Path(folder).glob(f"cu*/{tail}"))


def _nvcc() -> Finding:
    toolkits = [os.environ[name] for name in ("CUDA_PATH", "CUDA_HOME") if name in os.environ] + ["/usr/local/cuda"]
    found, use = shutil.which("nvcc") or shutil.which("nvcc", path=os.pathsep.join(f"{folder}/bin" for folder in toolkits)), "kernels do without it"
    if found is None:
        return "missing", "not found", use
    said = subprocess.run([found, "--version"], capture_output=True, text=True, check=False, timeout=30)
    release = re.search(r"release ([\d.]+)", said.stdout)
    if said.returncode or release is None:
        return "missing", f"{found} --version failed: {(said.stderr or said.stdout).strip()[:200]}", use
    return "ok", f"{release[1]}, {found}", ""


# ---- kernels ------------------------------------------------------------------------------------

_LAYER = ConvSpec("conv", 8, 14, 14, Taps.oriented([0.0, 0.8], 7))  # of two angles: merging is looked at too
_IMAGES = 2  # N of the layer that is run


def _kernel(device: Device) -> Finding:
    """Builds a layer's kernel for a device as for a call, runs it there and compares it with the reference; the user's cache and logs are not touched."""
    if importlib.util.find_spec("torch") is None:
        return "missing", "no torch to run one", "pip install 'tvm-orient[torch]'"
    import torch

    from ..evaluate.verified import Expected
    from ..kernels.layer_build import compiled
    from ..runtime import kernel
    from ..schedules import choices

    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        try:
            compiled(_LAYER, device, choices.default_choices(_LAYER, device), Path(folder))
            built = f"built in {time.perf_counter() - start:.1f} s"
            if device.kind == "cuda" and not torch.cuda.is_available():
                return "missing", f"{built}, but not run: torch {torch.__version__} sees no GPU", "install a CUDA 13 build of torch to run on a GPU"
            generator = torch.Generator().manual_seed(0)
            x = torch.randn(_IMAGES, _LAYER.channels, _LAYER.height, _LAYER.width, generator=generator)
            w = torch.randn(_LAYER.channels, _LAYER.kernel_size, generator=generator)
            where = "cpu" if device.kind == "cpu" else f"cuda:{device.index}"
            out = kernel.Kernel(_LAYER, device, Path(folder) / KERNEL)(x.to(where), w.to(where)).cpu()
        except EnvironmentProblem as problem:
            return "missing", first_line(problem), "install what it asks for"
        except OrientError as problem:
            return "broken", first_line(problem), ""
    verdict = Expected(_LAYER, x, w).verdict(out)
    if verdict.wrong:
        return "broken", f"{built} and run, but its result is {verdict.wrong}", "please report it, with what else is said here"
    return "ok", f"{built}, run, and right within {verdict.difference:.1g}", ""


def _gpu_kernel() -> Finding:
    gpus = cuda_devices()
    if not gpus:
        return "missing", "no GPU to build it for and to run it on", "`tvm-orient build --arch sm_90a` generates kernels for one elsewhere"
    return _kernel(gpus[0])


def broken(checks: Sequence[Check]) -> list[Check]:
    """Returns those that must be mended; what is only missing limits what works, no more."""
    return [check for check in checks if check.state == "broken"]
