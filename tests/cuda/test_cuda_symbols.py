"""What the plug-in leans on in the pinned libtvm: a guard for each name, and for a size."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from mobilenet_tvm import toolchain
from mobilenet_tvm.cuda import plugin

NATIVE = Path(plugin.__file__).parent / "native"
PLACE_BYTES = 64 << 10


@pytest.fixture(scope="module")
def libtvm():
    toolchain.activate()
    from tvm._ffi import base

    return base._LIB


@pytest.fixture(scope="module")
def plugin_symbols(cuda_compiler):
    """Dynamic symbols of the plug-in: wanted of others, and offered."""
    with plugin.library().open("rb") as file:
        symbols = list(ELFFile(file).get_section_by_name(".dynsym").iter_symbols())
    wanted = {s.name for s in symbols if s["st_shndx"] == "SHN_UNDEF" and s.name}
    return wanted, {s.name for s in symbols if s["st_shndx"] != "SHN_UNDEF"}


@pytest.mark.parametrize("symbol", plugin.SYMBOLS)
def test_libtvm_has_the_generator(libtvm, symbol):
    assert hasattr(libtvm, symbol)


def test_the_list_is_what_the_native_code_calls():
    source = (NATIVE / "codegen.cc").read_text()
    assert set(re.findall(r'"(_ZN3tvm\w+)"', source)) == set(plugin.SYMBOLS)


def test_a_generator_fits_into_its_place(libtvm):
    source = (NATIVE / "codegen.cc").read_text()
    assert "kGeneratorBytes = 64 << 10;" in source
    place = (ctypes.c_ubyte * PLACE_BYTES).from_buffer(bytearray(b"\xa5" * PLACE_BYTES))
    address = ctypes.c_void_p(ctypes.addressof(place))
    libtvm["_ZN3tvm7codegen11CodeGenCUDAC1Ev"](address)
    libtvm["_ZN3tvm7codegen11CodeGenCUDA4InitEb"](address, ctypes.c_bool(False))
    written = max(i for i, byte in enumerate(bytes(place)) if byte != 0xA5)
    libtvm["_ZN3tvm7codegen11CodeGenCUDAD1Ev"](address)
    # It is some 2 KiB; far more would mean that it is no longer what it was.
    assert 512 < written < PLACE_BYTES // 4


def test_all_that_the_plugin_wants_of_tvm_is_in_its_runtime(libtvm, plugin_symbols):
    wanted, _ = plugin_symbols
    of_tvm = {name for name in wanted if re.match(r"_Z(N|NK|TIN|TVN)3tvm|TVM", name)}
    assert of_tvm, "it registers with TVM"
    path = Path(libtvm._name).with_name("libtvm_runtime.so")
    with path.open("rb") as file:
        symbols = ELFFile(file).get_section_by_name(".dynsym").iter_symbols()
        offered = {s.name for s in symbols if s["st_shndx"] != "SHN_UNDEF"}
    assert of_tvm <= offered
    assert [name for name in sorted(of_tvm) if not hasattr(libtvm, name)] == []


def test_the_plugin_calls_no_entry_point_of_the_driver_that_it_lacks(plugin_symbols):
    wanted, _ = plugin_symbols
    assert [name for name in sorted(wanted) if re.match(r"cu[A-Z]|cuda[A-Z]", name)] == []


def test_the_driver_s_names_are_not_offered_to_others(plugin_symbols):
    _, offered = plugin_symbols
    assert [name for name in sorted(offered) if re.match(r"cu[A-Z]|cuda[A-Z]", name)] == []
    # Ours has another name than the stub in libtvm, or one of the two would stand for both.
    assert [name for name in offered if name.startswith("_ZN3tvm7runtime16CUDAModuleCreate")] == []
