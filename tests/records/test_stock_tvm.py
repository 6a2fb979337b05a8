"""Stock TVM and tvmc read our logs: real trials of both searchers, in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mobilenet_tvm import frontend, targets, zoo

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not targets.resolve("x86-avx2").runs_here(), reason="needs an x86 CPU with AVX2"
    ),
]
TARGET = targets.resolve("x86-avx2").target

# Measures a few candidates of either searcher and writes the two logs as a tuning run does.
MAKE = """
import sys, time
from pathlib import Path
from mobilenet_tvm import frontend, targets, toolchain
from mobilenet_tvm.records import RecordLog, extract_tasks, write_workloads
from mobilenet_tvm.records.ansor_tasks import extract_ansor_tasks

toolchain.activate()
import numpy as np
import tvm
from tvm import auto_scheduler, autotvm

folder, preset = Path(sys.argv[1]), targets.resolve("x86-avx2")
module = frontend.to_relay(frontend.clean(frontend.read(folder / "tiny.onnx"))).module

def seconds(schedule, arguments):
    function = tvm.build(schedule, arguments, target=preset.target)
    device = tvm.cpu()
    arrays = [
        tvm.nd.array(np.ones([int(n) for n in a.shape], a.dtype), device) for a in arguments
    ]
    return function.time_evaluator(function.entry_name, device, number=3, repeat=3)(*arrays).results

autotvm.GLOBAL_SCOPE.in_tuning = True
with RecordLog(folder / "tiny.autotvm.jsonl", sys.exit) as log:
    for schedules in ("ours", "stock"):
        for task in extract_tasks(module, preset, schedules=schedules)[:2]:
            handle = task.handle
            for index in task.candidates[:2]:
                config = handle.config_space.get(index)
                with handle.target:
                    costs = seconds(*handle.instantiate(config))
                given = autotvm.measure.MeasureInput(handle.target, handle, config)
                result = autotvm.measure.MeasureResult(costs, 0, 1.0, time.time())
                log.append(autotvm.record.encode(given, result))
                failed = autotvm.measure.MeasureResult((), 6, 1.0, time.time())
                log.append(autotvm.record.encode(given, failed))

tasks = [task.handle for task in extract_ansor_tasks(module, preset)]
tasks = [task for task in tasks if "conv2d" in task.desc][:2]
with RecordLog(folder / "tiny.ansor.jsonl", sys.exit) as log:
    write_workloads(log.path, tasks)
    for task in tasks:
        policy = auto_scheduler.SketchPolicy(
            task,
            program_cost_model=auto_scheduler.RandomModel(),
            params={"sample_init_min_population": 2},
            seed=1,
            verbose=0,
        )
        for state in policy.sample_initial_population()[:2]:
            costs = seconds(*task.compute_dag.apply_steps_from_state(state))
            given = auto_scheduler.MeasureInput(task, state)
            dump = auto_scheduler.measure_record.dump_record_to_string
            log.append(dump(given, auto_scheduler.MeasureResult(costs, 0, "", 1.0, time.time())))
            log.append(dump(given, auto_scheduler.MeasureResult([1e10], 4, "", 1.0, time.time())))
"""

# What stock TVM finds in the logs, in a process that has never heard of this package.
READ = """
import json, sys
import tvm
from tvm import auto_scheduler, autotvm

autotvm_log, ansor_log = sys.argv[1:]
found = {}
with autotvm.apply_history_best(autotvm_log) as history:
    found["autotvm"] = sorted(
        str(workload) for key, workload in history.best_by_targetkey if key == "cpu"
    )
with auto_scheduler.ApplyHistoryBest(ansor_log) as history:
    found["ansor"] = sorted(
        json.dumps([name, list(shapes)])
        for name, entry in history.best_by_targetkey["cpu"].items() for shapes in entry
    )
try:  # tvmc tells the two kinds apart by that
    autotvm.apply_history_best(ansor_log)
    raise SystemExit("AutoTVM reads Ansor's log")
except KeyError:
    pass
try:
    auto_scheduler.load_records(autotvm_log)
    raise SystemExit("Ansor reads AutoTVM's log")
except tvm.TVMError:
    pass
assert not any(name.startswith("mobilenet_tvm") for name in sys.modules)
print(json.dumps(found))
"""

# tvmc links with a compiler; the machine may have none but zig's linker.
LINKER = f"""#!{sys.executable}
import subprocess, sys
objects = [a for a in sys.argv[1:] if a.endswith(".o")]
output = sys.argv[sys.argv.index("-o") + 1]
linker = [sys.executable, "-m", "ziglang", "ld.lld", "-m", "elf_x86_64", "-shared"]
raise SystemExit(subprocess.call([*linker, "-o", output, *objects]))
"""


@pytest.fixture(scope="session")
def real_logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``tiny.onnx`` and two logs of a few real trials each."""
    folder = tmp_path_factory.mktemp("real")
    proto = zoo.build("mobilenet_v1", alpha=0.25, resolution=32, classes=10)
    (folder / "tiny.onnx").write_bytes(
        frontend.clean(frontend.from_proto(proto, "tiny")).proto.SerializeToString()
    )
    subprocess.run([sys.executable, "-c", MAKE, str(folder)], check=True)
    return folder


def test_stock_tvm_reads_both(real_logs: Path) -> None:
    logs = [real_logs / "tiny.autotvm.jsonl", real_logs / "tiny.ansor.jsonl"]
    ran = subprocess.run(
        [sys.executable, "-c", READ, *map(str, logs)], check=True, capture_output=True, text=True
    )
    found = json.loads(ran.stdout)
    ours = [json.loads(line) for line in logs[0].read_text().splitlines()]
    assert len(found["autotvm"]) == len({json.dumps(line["input"]) for line in ours}) >= 3
    keys = {json.loads(line)["i"][0][0] for line in logs[1].read_text().splitlines()}
    assert len(found["ansor"]) == len(keys) == 2
    assert {json.loads(text)[0] for text in found["ansor"]} == {json.loads(k)[0] for k in keys}


@pytest.mark.parametrize("searcher", ["autotvm", "ansor"])
def test_tvmc_compiles_with_either(real_logs: Path, tmp_path: Path, searcher: str) -> None:
    linker = tmp_path / "link"
    linker.write_text(LINKER)
    linker.chmod(0o755)
    command = [
        *(sys.executable, "-m", "tvm.driver.tvmc", "compile", "--target", TARGET),
        *("--tuning-records", str(real_logs / f"tiny.{searcher}.jsonl")),
        *(str(real_logs / "tiny.onnx"), "-o", str(tmp_path / "x.tar")),
        *("--cross-compiler", str(linker)),
    ]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert (tmp_path / "x.tar").stat().st_size > 10_000


@pytest.mark.parametrize("searcher", ["autotvm", "ansor"])
def test_distilled_ones_verify(real_logs: Path, tmp_path: Path, searcher: str) -> None:
    from mobilenet_tvm import logs

    best = str(tmp_path / f"best.{searcher}.jsonl")
    assert logs.main(["best", str(real_logs / f"tiny.{searcher}.jsonl"), "-o", best]) == 0
    assert logs.main(["verify", best, "--target", "x86-avx2"]) == 0
