"""A key, and what makes entries of the kernel cache without compiling."""

from tvm_orient.kernels.build_key import BuildKey
from tvm_orient.kernels.manifest import KERNEL

SPEC = "conv-c96h56w56-s1-zeros-float32-nchw-k31a0_90"
KEY = BuildKey(
    spec=SPEC,
    choices=(("patch", 2, (("patch_h", 4), ("stage", "shared"))), ("patch", 2, (("patch_h", 8), ("stage", "direct")))),
    device="nvidia-h200",
    arch="sm_90a",
    toolchain=(("tvm", "0.27.0.post1"), ("tvm_ffi", "0.1.14.post1"), ("cuda", "13.0"), ("mode", "nvrtc")),
    source="0" * 64,
    flags=(("TVM_CUDA_PTXAS_REG_LEVEL", "10"),),
)


def maker(content=b"\x7fELF kernel", facts=None):
    def make(folder):
        (folder / KERNEL).write_bytes(content)
        return facts if facts is not None else {"registers": 40}

    return make


def names(folder):
    """What lies in a cache folder, but for the locks."""
    return sorted(p.name for p in folder.iterdir() if not p.name.endswith(".lock"))


def flip(entry):
    content = bytearray((entry / KERNEL).read_bytes())
    content[3] ^= 1
    (entry / KERNEL).write_bytes(content)
