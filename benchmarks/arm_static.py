"""FMAs a cycle of MobileNet v1's untuned kernels on an ARM core, as llvm-mca estimates them.

    python benchmarks/arm_static.py [--preset rpi4] [--schedules ours]

No board is needed and none is timed. Of each kernel, the innermost loop with the most FMAs is
taken as straight code: caches, branches and what surrounds the loop do not count. Its model of
Cortex-A72 is A57's (one 128-bit FMA a cycle), N1's has two; those of the cores that issue in
order are poor (A53's waits for results in order, A55's FMAs are twice as fast as Arm says).
"""

from __future__ import annotations

import argparse
import re
import subprocess
from pathlib import Path
from typing import Any

from mobilenet_tvm import frontend, targets, toolchain, zoo
from mobilenet_tvm.records import extract_tasks

_FMA = re.compile(r"\s(fmla|vmla|vfma)")
_BRANCH = re.compile(r"\s(b\.?\w*|cbn?z|tbn?z)\s")
_ITERATIONS = 50


def innermost_loop(assembly: str) -> list[str]:
    """Instructions between a label and the last branch back to it; the loop with the most FMAs."""
    lines = [
        line
        for line in assembly.splitlines()
        if re.match(r"[\w.]+:", line) or (line[:1] == "\t" and line.strip()[0] != ".")
    ]
    labels = {line.split(":")[0]: i for i, line in enumerate(lines) if line[0] != "\t"}
    loops: dict[int, int] = {}
    for i, line in enumerate(lines):
        target = re.search(r"(\.L\w+)\s*$", line) if line[0] == "\t" else None
        if target and labels.get(target[1], i) < i:
            loops[labels[target[1]]] = i

    def body(begin: int) -> list[str]:
        return [line for line in lines[begin : loops[begin] + 1] if line[0] == "\t"]

    def fmas(begin: int) -> int:
        return sum(bool(_FMA.search(line)) for line in body(begin))

    inner = [
        begin
        for begin in loops
        if fmas(begin)
        and not any(begin < other <= loops[begin] and fmas(other) >= 4 for other in loops)
    ]
    return body(max(inner, key=fmas)) if inner else []


def cycles(loop: list[str], preset: Any) -> float:
    """Cycles of one iteration."""
    import llvm

    tool = Path(next(iter(llvm.__path__))) / "bin" / "llvm-mca"
    straight = "\n".join(line for line in loop if not _BRANCH.match(line))
    command = [tool, f"-mtriple={preset.triple}", f"-mcpu={preset.cpu}"]
    done = subprocess.run(
        [*command, f"-iterations={_ITERATIONS}"],
        input=straight,
        capture_output=True,
        text=True,
        check=True,
    )
    found = re.search(r"Total Cycles:\s+(\d+)", done.stdout)
    assert found is not None
    return int(found[1]) / _ITERATIONS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="rpi4")
    parser.add_argument("--schedules", default="ours", choices=("ours", "stock"))
    arguments = parser.parse_args()
    preset = targets.resolve(arguments.preset)
    toolchain.activate()
    import tvm
    from tvm import autotvm

    autotvm.GLOBAL_SCOPE.silent = True
    model = zoo.build("mobilenet_v1")
    relay = frontend.to_relay(frontend.clean(frontend.from_proto(model, "v1")))
    print(f"{'layer':38} {'FMAs':>5} {'per cycle':>9} {'loads/FMA':>9} {'stack':>5}")
    for task in extract_tasks(relay.module, preset, schedules=arguments.schedules):
        handle, fallback = task.handle, autotvm.task.space.FallbackConfigEntity()
        autotvm.GLOBAL_SCOPE.in_tuning = True  # blocked in and out, as in the model
        with handle.target, autotvm.task.ApplyConfig(fallback):
            schedule, tensors = handle.func(*handle.args)
            with tvm.transform.PassContext(opt_level=3, config=toolchain.pass_config()):
                library = tvm.build(schedule, tensors, target=handle.target)
        autotvm.GLOBAL_SCOPE.in_tuning = False
        loop = innermost_loop(library.get_source("asm"))
        fmas = sum(bool(_FMA.search(line)) for line in loop)
        if not fmas:
            print(f"{task.label:38} {'none':>5}  ({handle.name})")
            continue
        loads = sum(2 if "ldp" in line else 1 for line in loop if re.match(r"\s*v?ldp?r?", line))
        stack = sum("[sp" in line for line in loop)
        rate = fmas / cycles(loop, preset)
        print(f"{task.label:38} {fmas:5} {rate:9.2f} {loads / fmas:9.2f} {stack:5}", flush=True)


if __name__ == "__main__":
    main()
