"""TVM's own schedules with records of a stock search, as rows of a comparison."""

from __future__ import annotations

from pathlib import Path

import pytest

from mobilenet_tvm import frontend, targets, zoo
from mobilenet_tvm.bench import stock_tuned
from mobilenet_tvm.bench.stock_tuned import build_stock_tuned
from mobilenet_tvm.build.compile import compile_model
from mobilenet_tvm.build.manifest import Manifest, ModelInfo, read_manifest
from mobilenet_tvm.frontend import RelayModel
from mobilenet_tvm.records import Task, run_path, write_run
from mobilenet_tvm.records.tasks import extract_tasks
from mobilenet_tvm.search import AutoTvmSearcher, Trial

from ..conftest import run_here

ZOO = {"name": "mobilenet_v1", "alpha": 0.25, "resolution": 32}
BOTH = ("tvm-autotvm", "tvm-ansor")


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.onnx"
    path.write_bytes(zoo.build(**ZOO).SerializeToString())
    return path


@pytest.fixture(scope="module")
def model(onnx_file: Path) -> RelayModel:
    return frontend.to_relay(frontend.clean(frontend.read(onnx_file)))


@pytest.fixture(scope="module")
def manifest(model: RelayModel, onnx_file: Path) -> Manifest:
    """Of an artifact of ours."""
    path = onnx_file.with_name("ours.so")
    info = ModelInfo("tiny", frontend.read(onnx_file).digest, zoo=ZOO)
    return compile_model(model, targets.resolve("x86"), path, info=info)


def line_of(task: Task) -> str:
    trial = Trial(task.candidates[0], (1e-5,))
    return AutoTvmSearcher(task, trials=1, seed=0).record_line(trial)


def log_of(model: RelayModel, folder: Path, schedules: str) -> int:
    """Records of all tasks of these schedules; how many."""
    tasks = extract_tasks(model.module, targets.resolve("x86"), schedules=schedules)
    folder.mkdir(parents=True)
    text = "".join(line_of(task) + "\n" for task in tasks)
    log = folder / "tiny.stock.autotvm.jsonl"
    log.write_text(text)
    write_run(log, run_here())
    return len(tasks)


def test_without_logs_each_row_says_how_to_make_them(
    manifest: Manifest, onnx_file: Path, tmp_path: Path
) -> None:
    field = build_stock_tuned(
        BOTH, manifest, onnx_file, None, tmp_path, threads=[1], warn=pytest.fail
    )
    assert field.contenders == ()
    preset = manifest.target.preset
    tune = f"(python -m mobilenet_tvm.tune --target {preset}"
    wanted = "--model mobilenet_v1 --alpha 0.25 --resolution 32 -o DIR, then --tvm-logs DIR)"
    assert [str(one) for one in field.absent] == [
        "TVM, stock AutoTVM: absent, no --tvm-logs was given "
        f"{tune} --tuner autotvm --schedules stock {wanted}",
        f"TVM, stock Ansor: absent, no --tvm-logs was given {tune} --tuner ansor {wanted}",
    ]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_records_of_the_stock_templates_are_compiled(
    model: RelayModel, manifest: Manifest, onnx_file: Path, tmp_path: Path
) -> None:
    count = log_of(model, tmp_path / "logs" / "x86", "stock")
    field = build_stock_tuned(
        BOTH, manifest, onnx_file, tmp_path / "logs", tmp_path, threads=[1], warn=pytest.fail
    )
    (row,) = field.contenders
    assert (row.kind, row.label, row.peer) == ("artifact", "TVM, stock AutoTVM", "tvm-autotvm")
    built = read_manifest(Path(row.path))
    assert (built.tuning.tuned, built.tuning.tasks) == (count, count)
    assert built.model.digest == manifest.model.digest
    (absent,) = field.absent
    assert absent.name == "TVM, stock Ansor"
    assert "has no record of it for this model" in absent.reason


def test_records_of_our_templates_are_no_stock_tuning(
    model: RelayModel, manifest: Manifest, onnx_file: Path, tmp_path: Path
) -> None:
    """But for the classifier, which has the same template in both."""
    preset = targets.resolve("x86")
    stock = {task.key for task in extract_tasks(model.module, preset, schedules="stock")}
    ours = [t for t in extract_tasks(model.module, preset) if t.key not in stock]
    assert ours
    folder = tmp_path / "logs"
    folder.mkdir()
    lines = "".join(line_of(task) + "\n" for task in ours)
    log = folder / "tiny.autotvm.jsonl"
    log.write_text(lines)
    write_run(log, run_here())
    field = build_stock_tuned(
        ["tvm-autotvm"], manifest, onnx_file, folder, tmp_path, threads=[1], warn=pytest.fail
    )
    assert field.contenders == ()
    assert "has no record of it for this model" in field.absent[0].reason


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"threads": 2}, ""),
        ({"cpu": "a CPU of theirs"}, "was measured on a CPU of theirs"),
        ({"timing": "emulated"}, "was emulated on"),
        (None, "has no run file"),
    ],
    ids=["threads", "cpu", "timing", "none"],
)
def test_what_was_measured_elsewhere_makes_no_row(
    model: RelayModel,
    manifest: Manifest,
    onnx_file: Path,
    tmp_path: Path,
    changes: dict[str, object] | None,
    said: str,
) -> None:
    log_of(model, tmp_path / "logs", "stock")
    (log,) = (tmp_path / "logs").glob("*.jsonl")
    if changes is None:
        run_path(log).unlink()
    else:
        write_run(log, run_here(**changes))
    warnings: list[str] = []
    field = build_stock_tuned(
        ["tvm-autotvm"],
        manifest,
        onnx_file,
        tmp_path / "logs",
        tmp_path,
        threads=[1],
        warn=warnings.append,
    )
    assert field.contenders == ()
    assert "measured on this machine with --threads 1 (" in str(field.absent[0])
    assert [said in one for one in warnings] == ([True] if said else [])


def test_each_number_of_threads_has_a_row_of_its_own(
    model: RelayModel,
    manifest: Manifest,
    onnx_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Built of the records with that number alone."""
    built = []
    monkeypatch.setattr(
        stock_tuned, "compile_model", lambda *_args, best, **_options: built.append(best)
    )
    task = extract_tasks(model.module, targets.resolve("x86"), schedules="stock")[1]
    for count in (1, 2):
        log = tmp_path / f"tiny.{count}-threads.autotvm.jsonl"
        trial = Trial(task.candidates[count], (1e-5 / count,))
        log.write_text(AutoTvmSearcher(task, trials=1, seed=0).record_line(trial) + "\n")
        write_run(log, run_here(threads=count))
    field = build_stock_tuned(
        ["tvm-autotvm"],
        manifest,
        onnx_file,
        tmp_path,
        tmp_path,
        threads=[1, 2, 4],
        warn=pytest.fail,
    )
    labels = [f"TVM, stock AutoTVM (tuned with --threads {count})" for count in (1, 2)]
    assert [row.label for row in field.contenders] == labels
    assert len({row.path for row in field.contenders}) == 2
    assert [best[task.key].config for best in built] == list(task.candidates[1:3])
    assert field.absent == ()
