"""Refusals: the answers of a GPU's driver to a kernel, in plain words. TVM repeats them in an error that names neither the layer nor a way on."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import LaunchFailed
from ..problem.device import Device
from ..problem.spec import ConvSpec

# what TVM's errors hold: of a launch, of the runtime (a device that cannot be made current, say), of a module, of a function's attribute
_OURS = re.compile(r"CUDALaunch Error|CUDA Runtime Error|\bcu(?:Module|Func)\w+\b.*failed with error|dynamic shared memory size")
_ANSWER = re.compile(r"\b(?:CUDA_ERROR_|cudaError)\w+")
_SHAPE = re.compile(r"grid=\(([\d,]+)\),\s*block=\(([\d,]+)\)")
_REBUILD = "run `tvm-orient cache clear` and call again"
_CHOICE = "`tvm-orient explain` says where its choice comes from, TVM_ORIENT_LOOKUP=strict leaves out the records of other GPUs"
_STREAM = "the stream does not belong to this GPU, or is gone", "make one on the device of the tensors"
_MEMORY = "the memory of the GPU is full", "free some, or split the batch"
_DRIVER = "the driver is older than these kernels", "install NVIDIA's driver r580 or later"
_FAULT = (
    "this kernel or one before it failed while it ran, and no other runs on this GPU in this process",
    "start a new process, with CUDA_LAUNCH_BLOCKING=1 to learn which one it was",
)
# (what it means, what to do) by the names that the driver and the runtime give; see _key
_MEANINGS = {
    **dict.fromkeys(("outofmemory", "memoryallocation"), _MEMORY),
    **dict.fromkeys(("invalidvalue", "invalidconfiguration"), ("its grid, block or shared memory is more than this GPU has", _CHOICE)),
    "launchoutofresources": ("a block of it asks for more registers or threads than this GPU has", _CHOICE),
    **dict.fromkeys(("nobinaryforgpu", "nokernelimagefordevice"), ("it was made for another GPU", _REBUILD)),
    **dict.fromkeys(("invalidimage", "invalidkernelimage", "invalidsource"), ("its file holds no machine code that the driver can read", _REBUILD)),
    **dict.fromkeys(("notfound", "symbolnotfound"), ("its file holds no kernel of that name", _REBUILD)),
    **dict.fromkeys(("invalidhandle", "invalidresourcehandle"), _STREAM),
    **dict.fromkeys(("insufficientdriver", "systemdrivermismatch"), _DRIVER),
    **dict.fromkeys(("illegaladdress", "misalignedaddress", "launchfailed", "launchfailure", "illegalinstruction", "invalidaddressspace"), _FAULT),
    **dict.fromkeys(("invalidpc", "hardwarestackerror", "launchtimeout", "eccuncorrectable", "assert"), _FAULT),
}
_UNKNOWN = "the CUDA driver's documentation says what that means", "`tvm-orient doctor` says what works on this machine"


def _key(name: str) -> str:
    """Returns one key for the two names of an error, as CUDA_ERROR_ILLEGAL_ADDRESS and cudaErrorIllegalAddress."""
    return re.sub("^CUDA_ERROR_|^cudaError|_", "", name).lower()


def refuse(problem: Exception, spec: ConvSpec, device: Device, kernel: Path) -> None:
    """Raises LaunchFailed for an error of a call of a kernel where the driver refused it, and returns where it is another error.

    Raises:
        LaunchFailed: the driver did not load or launch the kernel.
    """
    said = str(problem)
    if not _OURS.search(said):
        return
    answer, shape = _ANSWER.search(said), _SHAPE.search(said)
    name = answer[0] if answer else "a code that has no name"
    meaning, remedy = _MEANINGS.get(_key(name), _UNKNOWN)
    did = "load" if "cuModule" in said else "launch"
    how = f", grid {shape[1]}, block {shape[2]}," if shape else ""
    where = f"the kernel of {spec}{how} in {kernel.parent}"
    raise LaunchFailed(f"{device.name} did not {did} {where}: the driver answered {name} ({meaning}): {remedy}") from problem
