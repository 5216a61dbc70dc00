"""CPUs: who one is, what a kernel for it may use, whose kernels it is given, and whose it refuses."""

from __future__ import annotations

import dataclasses
import json
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import tvm_orient as to
from tests.support.helpers import assert_close, line, operands, spec_of
from tvm_orient.compiler import lower
from tvm_orient.errors import EnvironmentProblem, InvalidArgument
from tvm_orient.kernels import build, build_key, bundle
from tvm_orient.kernels.cache import KernelCache
from tvm_orient.problem import cpus, device
from tvm_orient.problem.cpus import Cpu
from tvm_orient.problem.device import Device, arch_device, cpu_device, own_cpu
from tvm_orient.problem.spec import ConvSpec
from tvm_orient.runtime import foreign, kernel, loader, serving
from tvm_orient.schedules import choices
from tvm_orient.toolchain import tvm
from tvm_orient.tools import doctor

ROOT = Path(__file__).resolve().parents[2]
HERE = cpu_device()
SPEC = spec_of("conv", 4, 12, 20, line(0, 45, k=7))
XEON = "Intel(R) Xeon(R) Processor"  # the brand of each of these under some hypervisors
SKYLAKE = (
    "fpu sse sse2 ht pni pclmulqdq ssse3 fma cx16 sse4_1 sse4_2 movbe popcnt aes xsave avx f16c rdrand lahf_lm abm 3dnowprefetch bmi1 avx2 bmi2 "
    "avx512f avx512dq rdseed adx clflushopt clwb avx512cd avx512bw avx512vl"
)
SAPPHIRE = f"{SKYLAKE} avx512vbmi avx512_vbmi2 gfni vaes vpclmulqdq avx512_vnni avx512_bitalg avx512_vpopcntdq avx512_bf16 avx512_fp16 avx_vnni amx_tile"
HASWELL = SKYLAKE.partition(" avx512f")[0]
# features of LLVM for x86-64 that every CPU has, or that a compiler uses only where it is told to
NEVER_UNASKED = (
    "64bit cmov cx8 fxsr mmx sse sse2 clzero enqcmd fsgsbase hreset invpcid kl widekl mwaitx pconfig pku ptwrite rdpru serialize sgx shstk tsxldtrk uintr "
    "usermsr waitpkg wbnoinvd xsave xsavec xsaveopt xsaves"
)
x86_only = pytest.mark.skipif(not cpus.is_x86(), reason="kernels are linked for the architecture of this machine, which is no x86-64")


def x86_text(flags: str, model: int = 85, name: str = XEON, vendor: str = "GenuineIntel", family: int = 6, cores: int = 2) -> str:
    core = f"vendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: {model}\nmodel name\t: {name}\nstepping\t: 1\nflags\t\t: {flags}\nbugs\t\t:\n\n"
    return "".join(f"processor\t: {index}\n{core}" for index in range(cores))


def arm_text(*parts: tuple[str, str], features: str = "fp asimd aes pmull sha1 sha2 crc32 atomics") -> str:
    core = f"BogoMIPS\t: 50.00\nFeatures\t: {features}\nCPU implementer\t: %s\nCPU architecture: 8\nCPU variant\t: 0x1\nCPU part\t: %s\n\n"
    return "".join(f"processor\t: {index}\n{core % part}" for index, part in enumerate(parts))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Device]:
    """Makes this machine pass for one that shows a cpuinfo; LLVM's name for it is what it is given."""

    def pretend(text: str | None, llvm: str | None = None, arch: str = "x86_64") -> Device:
        if text is not None:
            (tmp_path / "cpuinfo").write_text(text)
        monkeypatch.setattr(cpus, "CPUINFO", tmp_path / ("cpuinfo" if text is not None else "absent"))
        monkeypatch.setattr(platform, "machine", lambda: arch)
        own = cpus.this_cpu()
        monkeypatch.setattr(device, "own_cpu", lambda: own)
        monkeypatch.setattr(tvm, "own_cpu", lambda: own)
        monkeypatch.setattr(foreign, "own_cpu", lambda: own)
        if llvm is not None:
            monkeypatch.setattr(tvm, "host_name", lambda: llvm)
        return cpu_device.__wrapped__()

    return pretend


# ---- who it is --------------------------------------------------------------------------------------


def test_a_cpu_is_vendor_family_model_and_instructions(machine: Callable[..., Device]) -> None:
    found = machine(x86_text(SAPPHIRE, 143))
    assert (found.name, found.model, found.arch, found.vector_bytes) == (XEON, "GenuineIntel family 6 model 143", "avx512f", 64)
    assert found.slug == f"cpu-intel-xeon-processor-avx512f-{found.units}c"
    words = found.features.split()
    assert words == sorted(words)
    assert {"avx512_fp16", "amx_tile", "avx2", "pni"} <= set(words)
    assert not {"fpu", "ht", "xsave"} & set(words), "words that decide nothing part caches for nothing"
    assert machine(x86_text(HASWELL, 143)).arch == "avx2"
    assert machine(x86_text("fpu sse sse2 pni", 15)).vector_bytes == 16


ARMS = {
    "cortex-a72": [("0x41", "0xd08")],
    "neoverse-n1": [("0x41", "0xd0c")],
    "neoverse-v1": [("0x41", "0xd40")],
    "arm-0x61-0x999": [("0x61", "0x999")],
    "cortex-a53-cortex-a72": [("0x41", "0xd03"), ("0x41", "0xd08"), ("0x41", "0xd03")],
}


def test_models_of_arm_are_told_apart(machine: Callable[..., Device]) -> None:
    found = {name: machine(arm_text(*parts), arch="aarch64") for name, parts in ARMS.items()}
    for name, arm in found.items():
        assert arm.slug == f"cpu-{name}-aarch64-{arm.units}c"
        assert (arm.arch, arm.vector_bytes, arm.features) == ("aarch64", 16, "aes atomics crc32 sha2")
    assert len({arm.model for arm in found.values()}) == len(ARMS)


@pytest.mark.parametrize("text", [None, "", arm_text(("0x41", "0xd0c"))], ids=["none", "empty", "of the machine that emulates this one"])
def test_a_cpu_that_does_not_tell_shares_with_no_other_machine(machine: Callable[..., Device], monkeypatch: pytest.MonkeyPatch, text: str | None) -> None:
    first = machine(text)
    monkeypatch.setattr(platform, "node", lambda: "another-machine")
    second = machine(text)
    assert first.features == ""
    assert first.model != second.model
    assert key(first) != key(second)
    (host, attributes) = tvm._cpu(second)
    assert host == tvm.host_name()
    assert {word[0] for word in attributes} == {"+", "-"}, "what LLVM asked the CPU itself"


def test_another_architecture_is_told_by_its_words(machine: Callable[..., Device]) -> None:
    found = machine("processor\t: 0\nhart\t: 1\nisa\t: rv64imafdcv\nuarch\t: sifive,u74-mc\n\n", arch="riscv64")
    assert found.model == "rv64imafdcv sifive,u74-mc"


def test_asking_who_it_is_needs_no_compiler() -> None:
    code = "import sys; from tvm_orient.problem.device import cpu_device; cpu_device(); print({'tvm', 'tvm_ffi', 'torch', 'subprocess'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip() == "set()"


# ---- whose kernels it is given ------------------------------------------------------------------------


def key(found: Device, spec: ConvSpec = SPEC, *, generic: bool = False) -> str:
    like = dataclasses.replace(HERE, vector_bytes=found.vector_bytes, arch=found.arch)
    return build_key.build_key(spec, found, (choices.generic_choices if generic else choices.default_choices)(spec, like)).name


@pytest.mark.parametrize("generic", [False, True])
def test_cpus_of_one_brand_never_share_a_kernel(machine: Callable[..., Device], generic: bool) -> None:
    texts = [(SKYLAKE, 85), (f"{SKYLAKE} avx512_vnni", 85), (SAPPHIRE, 143), (SAPPHIRE, 207), (SKYLAKE, 143), (f"{SAPPHIRE} amx_fp16", 207)]
    found = [machine(x86_text(flags, model)) for flags, model in texts]
    assert len({cpu.slug for cpu in found}) == 1, "which is why the slug cannot tell them apart"
    assert len({key(cpu, generic=generic) for cpu in found}) == len(texts)
    assert key(machine(x86_text(*texts[0])), generic=generic) == key(found[0], generic=generic)


def test_the_number_of_cores_parts_no_kernels() -> None:
    here = HERE
    other = dataclasses.replace(here, slug=f"{here.kin}-{here.units + 1}c", units=here.units + 1)
    assert other.kin == here.kin
    assert key(other) == key(here)
    gpu = Device("cuda", "a card", "a-card-2c", "sm_90a", 2, 0, 16)
    assert gpu.kin == gpu.slug


# ---- what a kernel may use ----------------------------------------------------------------------------


def assembly(found: Device, dtype: str = "float32", generic: bool = False) -> str:
    import tvm

    from tvm_orient.toolchain.tvm import target

    spec = dataclasses.replace(SPEC, dtype=dtype)
    module = lower.scheduled(spec, found, (choices.generic_choices if generic else choices.default_choices)(spec, found))
    return str(tvm.compile(module, target=target(found)).mod.inspect_source("asm"))


AVX512 = re.compile(r"%zmm|%k[1-7]\b|%[xy]mm(?:1[6-9]|2\d|3[01])\b")
SAPPHIRE_ONLY = re.compile(r"\bv\w+(?:sh|ph)\b(?<!vcvtps2ph)(?<!vcvtph2ps)")  # AVX512-FP16; those two are F16C


@x86_only
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", *(pytest.param(dtype, marks=pytest.mark.long) for dtype in ("float16", "float64"))])
def test_instructions_that_are_hidden_are_not_used(machine: Callable[..., Device], dtype: str) -> None:
    """As under a hypervisor that hides AVX-512 of a Zen 4, for which LLVM's name implies it."""
    for name in ("znver4", "sapphirerapids"):
        hidden = machine(x86_text(HASWELL, 17, "AMD EPYC 9V74 80-Core Processor", "AuthenticAMD", 25), name)
        assert (hidden.slug.rpartition("-")[0], hidden.arch) == ("cpu-amd-epyc-9v74-avx2", "avx2")
        for generic in (False, True) if dtype in ("float32", "float16") else (False,):
            code = assembly(hidden, dtype, generic)
            assert "%ymm" in code
            assert not (found := AVX512.findall(code)), f"{name}, {dtype}: {found[:3]}"


@x86_only
def test_the_tests_of_the_code_see_what_is_used(machine: Callable[..., Device]) -> None:
    sapphire = machine(x86_text(SAPPHIRE, 143), "sapphirerapids")
    code = assembly(sapphire, "float16", generic=True)
    assert AVX512.search(code)
    assert SAPPHIRE_ONLY.search(code)
    skylake = machine(x86_text(SKYLAKE, 85), "sapphirerapids")
    code = assembly(skylake, "float16", generic=True)
    assert AVX512.search(code)
    assert not SAPPHIRE_ONLY.search(code)


def features(mcpu: str, attributes: list[str], triple: str) -> set[str]:
    import tvm

    target = tvm.target.Target({"kind": "llvm", "mtriple": triple, "mcpu": mcpu, "mattr": attributes})
    return {str(name) for name in tvm.get_global_func("target.llvm_get_cpu_features")(target)}


def models(triple: str) -> list[str]:
    import tvm

    found = tvm.get_global_func("target.llvm_get_cpu_archlist")(tvm.target.Target({"kind": "llvm", "mtriple": triple}))
    return sorted(str(name) for name in found)


TRIPLES = {"x86_64": ("x86_64-unknown-linux-gnu", HASWELL, "x86-64"), "aarch64": ("aarch64-unknown-linux-gnu", "fp asimd atomics crc32 asimdrdm", "generic")}


@pytest.mark.parametrize("arch", TRIPLES)
def test_no_model_brings_an_instruction_set_that_the_cpu_does_not_show(machine: Callable[..., Device], arch: str) -> None:
    """Every model that LLVM knows, with the same few instruction sets: of those that cpuinfo can tell each then has these and no other."""
    (triple, words, least), x86 = TRIPLES[arch], arch == "x86_64"
    shown = machine(x86_text(words) if x86 else arm_text(("0x41", "0xd0c"), features=words), arch=arch).features.split()
    attributes = cpus.attributes(shown)
    told = {word[1:] for word in attributes}
    wanted = features(least, attributes, triple) & told
    assert wanted == {word[1:] for word in attributes if word[0] == "+"}
    bare = features(least, [], triple)
    for model in models(triple):
        usual = features(model, [], triple)
        if not x86 or "64bit" in usual:
            assert features(model, attributes, triple) & told == wanted, model
    assert any((features(model, [], triple) - bare) & told - wanted for model in models(triple)), "no model brings more, so this tests nothing"
    assert told <= features(least, [f"+{name}" for name in told], triple) | {"fma4"}, "LLVM knows no such feature"


@x86_only
def test_every_feature_that_llvm_detects_is_told_or_harmless() -> None:
    import tvm

    found = set(map(str, tvm.get_global_func("tvm.codegen.llvm.GetHostCPUFeatures")()))
    assert found.difference(NEVER_UNASKED.split()) == {word[1:] for word in cpus.attributes(())}


@x86_only
def test_levels_are_those_of_the_abi() -> None:
    triple = TRIPLES["x86_64"][0]
    for level, words in cpus.LEVELS.items():
        assert features(level, cpus.attributes(words), triple) == features(level, [], triple)


# ---- levels -----------------------------------------------------------------------------------------


@x86_only
@pytest.mark.parametrize(("level", "isa", "width"), [("x86-64-v2", "x86_64", 16), ("x86-64-v3", "avx2", 32), ("x86-64-v4", "avx512f", 64)])
def test_a_level_is_a_device(level: str, isa: str, width: int) -> None:
    found = arch_device(level)
    assert (found.kind, found.arch, found.vector_bytes, found.model) == ("cpu", isa, width, level)
    assert found.features.split() == sorted(cpus.LEVELS[level])
    assert str(tvm.target(found).attrs["mcpu"]) == level
    code = assembly(found, generic=True)
    assert bool(AVX512.search(code)) == (level == "x86-64-v4")
    assert ("%ymm" in code) == (level != "x86-64-v2")


@x86_only
def test_a_folder_of_a_level_runs_on_every_cpu_that_has_it(tmp_path: Path) -> None:
    low = arch_device("x86-64-v2")
    for spec in (SPEC, dataclasses.replace(SPEC, op="conv_dw")):
        folder = bundle.export(spec, low, tmp_path)
        how = json.loads((folder / "how.json").read_text())
        assert (how["key"]["model"], how["key"]["features"], how["facts"]["mcpu"]) == ("x86-64-v2", low.features, "x86-64-v2")
        given = operands(spec, 2)
        assert_close(kernel.Kernel(spec, low, folder / "kernel.so")(*given), spec, given)


@x86_only
def test_a_process_is_held_to_a_level(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One cache then serves every CPU that has the level."""
    monkeypatch.setenv("TVM_ORIENT_CACHE_DIR", str(tmp_path / "kernels"))
    given = operands(SPEC, 2)

    def call(**environment: str) -> None:
        for name in ("TVM_ORIENT_CPU", "TVM_ORIENT_BUILD"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        cpu_device.cache_clear()
        serving.forget()
        assert_close(to.tap_conv2d(*given, SPEC.taps), SPEC, given)

    try:
        call(TVM_ORIENT_CPU="x86-64-v2", TVM_ORIENT_BUILD="1")
        (entry,) = KernelCache(tmp_path / "kernels").entries()
        assert (entry.key["device"], entry.model) == ("cpu-x86-64-v2", "x86-64-v2")
        assert list(entry.features) == sorted(cpus.LEVELS["x86-64-v2"])
        call(TVM_ORIENT_CPU="x86-64-v2", TVM_ORIENT_BUILD="0")
        with pytest.raises(EnvironmentProblem, match=re.escape(HERE.slug)):  # this very CPU's kernels are others
            call(TVM_ORIENT_BUILD="0")
    finally:
        cpu_device.cache_clear()
        serving.forget()


def test_levels_that_cannot_be(machine: Callable[..., Device], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVM_ORIENT_CPU", "x86-64-v9")
    with pytest.raises(InvalidArgument, match=r"TVM_ORIENT_CPU must be one of x86-64-v2, x86-64-v3, x86-64-v4, got 'x86-64-v9': unset it or choose one"):
        machine(x86_text(HASWELL))
    monkeypatch.setenv("TVM_ORIENT_CPU", "x86-64-v4")
    with pytest.raises(EnvironmentProblem, match=r"x86-64-v4, and Intel.* lacks avx512bw, .*avx512vl of it: unset it, or choose a lower level"):
        machine(x86_text(HASWELL))
    monkeypatch.setenv("TVM_ORIENT_CPU", "x86-64-v3")
    assert machine(x86_text(HASWELL)) == arch_device("x86-64-v3"), "what was built ahead for the level serves a process that is held to it"
    with pytest.raises(EnvironmentProblem, match=r"architecture of this machine, aarch64, got x86-64-v3"):
        machine(arm_text(("0x41", "0xd0c")), arch="aarch64")


@x86_only
def test_doctor_says_what_a_cpu_is_taken_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert HERE.model in doctor._cpu()[1]
    monkeypatch.setattr(doctor, "cpu_device", lambda: arch_device("x86-64-v2"))
    state, detail, _ = doctor._cpu()
    assert state == "ok"
    assert detail.endswith("kernels for x86-64-v2")

    def refused() -> Device:
        raise EnvironmentProblem("this CPU lacks it: choose a lower level")

    monkeypatch.setattr(doctor, "cpu_device", refused)
    state, detail, hint = doctor._cpu()
    assert (state, hint) == ("broken", "unset TVM_ORIENT_CPU")
    assert "choose a lower level" in detail
    told = doctor._check("kernels", "CPU kernel", lambda: doctor._kernel(doctor.cpu_device()))
    assert (told.state, told.detail, told.hint) == ("broken", "this CPU lacks it: choose a lower level", "")


# ---- whose kernels it refuses -------------------------------------------------------------------------


def test_a_kernel_for_more_than_this_cpu_has_is_refused(machine: Callable[..., Device], tmp_path: Path) -> None:
    """In an exported folder and in an entry of the cache: an error instead of a signal that ends the process."""
    here = HERE
    spec = spec_of("conv", 2, 5, 6, line(0, k=3))
    folder, entry = bundle.export(spec, here, tmp_path) / "kernel.so", build.build(spec, here)
    given = operands(spec, 1)
    for path in (folder, entry):
        loader.forget_libraries()
        assert_close(kernel.Kernel(spec, here, path)(*given), spec, given)
        how = json.loads((path.parent / "how.json").read_text())
        assert how["key"]["features"] == here.features
        assert how["facts"]["mcpu"] == tvm.host_name()
    missing = here.features.split()[0]
    less = dataclasses.replace(own_cpu(), name="a lesser CPU", features=tuple(here.features.split()[1:]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(foreign, "own_cpu", lambda: less)
        for path in (folder, entry):
            loader.forget_libraries()
            with pytest.raises(EnvironmentProblem, match=rf"{re.escape(here.model)}.* a lesser CPU lacks {missing}: .*build it on this machine"):
                kernel.Kernel(spec, here, path)
    loader.forget_libraries()


def test_what_says_nothing_of_instructions_is_let_pass(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for text in (None, "spoiled", "[]", '{"spec": "conv"}', '{"key": 3}', '{"arch": "sm_90a", "features": ""}'):
        if text is not None:
            (tmp_path / "how.json").write_text(text)
        foreign.refuse_foreign(tmp_path / "kernel.so")
    (tmp_path / "how.json").write_text('{"spec": "conv", "features": "avx9 avx8", "model": "that"}')
    with pytest.raises(EnvironmentProblem, match="avx8, avx9"):
        foreign.refuse_foreign(tmp_path / "kernel.so")
    monkeypatch.setattr(foreign, "own_cpu", lambda: Cpu("who knows", "who knows", ()))
    foreign.refuse_foreign(tmp_path / "kernel.so")
