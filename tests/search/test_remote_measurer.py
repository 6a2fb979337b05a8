"""Trials on boards that are made up: retries, order, odd boards, and no board at all."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mobilenet_tvm import targets
from mobilenet_tvm.errors import DeviceError
from mobilenet_tvm.records import Task
from mobilenet_tvm.search import Failure, fleet, remote
from mobilenet_tvm.search.board import Lost, NoBoard, Opened, Sent
from mobilenet_tvm.search.measure import FleetMeasurer, Request
from mobilenet_tvm.search.remote import RemoteMeasurer

CPU, OTHER = "Cortex-A72 (cortex_a72)", "Cortex-A53 (cortex_a53)"
PLENTY_S = 60.0
TENSORS = (((4,), "float32"), ((4,), "float32"))


@dataclass
class Board:
    """One board; ``cpu`` is what it says."""

    name: str
    cpu: str = CPU
    busy: bool = False


@dataclass
class World:
    """The boards, and what becomes of each configuration on them."""

    boards: list[Board] = field(default_factory=list)
    # Called with the board and the configuration; what it returns or raises is the outcome.
    run: Callable[[Board, Any], Any] = lambda board, config: (1e-3 + 1e-6 * config,)
    build: Callable[[Any], None] = lambda config: None
    result: Callable[[Any], Any] = lambda config: np.ones(4)
    # What opening finds, before any board is looked at.
    openings: list[Any] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    ran: list[tuple[str, Any]] = field(default_factory=list)
    built: dict[Path, Any] = field(default_factory=dict)
    host: str = "tracker"
    port: int = 9190
    key: str = "rpi4"
    timing: Any = "measured"
    lock: Any = field(default_factory=threading.Lock)

    def count(self) -> int:
        return len(self.boards)


class Worker:
    """A child that does everything in this process."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.built = world.built
        self.board: Board | None = None
        self.aborted = threading.Event()

    def call(self, function: Callable[..., Any], *arguments: Any, timeout_s: float) -> Any:
        return getattr(self, function.__name__.lstrip("_"))(*arguments)

    def build(self, candidate: Any, preset: Any, path: Path, *_rest: Any) -> Sent:
        self.world.build(candidate.config)
        path.touch()
        self.built[path] = candidate.config
        return Sent(path, TENSORS)

    def reference_result(self, candidate: Any, weight_bytes: int) -> Any:
        return np.ones(4)

    def open_board(self, device: Any, session_s: float, wait_s: float) -> Any:
        self.close_board()
        world = self.world
        with world.lock:
            if world.openings:
                return world.openings.pop(0)
            for board in world.boards:
                if not board.busy:
                    board.busy = True
                    self.board = board
                    return Opened(board.name, board.cpu, world.timing)
        time.sleep(0.01)
        return NoBoard("all are busy")

    def close_board(self) -> None:
        if self.board is not None:
            with self.world.lock:
                self.board.busy = False
                self.board = None

    def nothing(self) -> None: ...

    def time_on_board(self, sent: Sent, threads: int, best_s: float, model_bytes: int) -> Any:
        assert sent.path.exists()
        assert self.board is not None
        self.world.ran.append((self.board.name, self.built[sent.path]))
        return self.world.run(self.board, self.built[sent.path])

    def result_on_board(self, sent: Sent, threads: int) -> Any:
        return self.world.result(self.built[sent.path])

    def abort(self) -> None:
        self.aborted.set()

    def close(self) -> None: ...


Make = Callable[..., RemoteMeasurer]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "_FRESH_S", 0.0)
    monkeypatch.setattr(fleet, "_ODD_PAUSE_S", 0.01)


@pytest.fixture
def world() -> World:
    return World([Board("a"), Board("b")])


@pytest.fixture
def make(world: World) -> Iterator[Make]:
    """``make(**options)``: a measurer on the world's boards."""
    made: list[RemoteMeasurer] = []

    def make(**options: Any) -> RemoteMeasurer:
        device = SimpleNamespace(
            host=world.host,
            port=world.port,
            key=world.key,
            timing=world.timing,
            boards=world.count,
        )
        measurer = RemoteMeasurer(
            device,  # type: ignore[arg-type]
            targets.resolve("x86-avx2"),
            notice=world.notices.append,
            make_worker=lambda: Worker(world),
            **options,
        )
        made.append(measurer)
        return measurer

    yield make
    for measurer in made:
        measurer.close()


@pytest.fixture
def task(tiny_tasks: tuple[Task, ...]) -> Task:
    return next(task for task in tiny_tasks if len(task.candidates) > 8)


def requests(task: Task, count: int) -> list[Request]:
    return [Request(task, config) for config in range(count)]


def test_it_is_one_that_measures_several_at_once(make: Make) -> None:
    assert isinstance(make(), FleetMeasurer)


def test_a_trial_is_what_the_board_measured(make: Make, task: Task, world: World) -> None:
    trial = make().measure(task, 3, PLENTY_S)
    assert (trial.config, trial.costs_s, trial.failure) == (3, (1e-3 + 3e-6,), None)
    assert world.ran == [("a", 3)]


def test_all_boards_work_at_once(make: Make, task: Task, world: World) -> None:
    both = threading.Barrier(2, timeout=20)

    def run(board: Board, config: int) -> tuple[float, ...]:
        both.wait()  # broken unless the other board runs something meanwhile
        return (1e-3,)

    world.run = run
    trials = list(make().measure_all(requests(task, 4), PLENTY_S))
    assert [trial.failure for _, trial in trials] == [None] * 4
    assert sorted(name for name, _ in world.ran) == ["a", "a", "b", "b"]


def test_trials_come_in_the_order_asked_for(make: Make, task: Task, world: World) -> None:
    second_done = threading.Event()

    def run(board: Board, config: int) -> tuple[float, ...]:
        if config == 0:
            assert second_done.wait(20)
        else:
            second_done.set()
        return (1e-3,)

    world.run = run
    assert [i for i, _ in make().measure_all(requests(task, 2), PLENTY_S)] == [0, 1]


def test_a_trial_is_there_before_the_later_ones_are(make: Make, task: Task, world: World) -> None:
    goes_on = threading.Event()

    def run(board: Board, config: int) -> tuple[float, ...]:
        assert config == 0 or goes_on.wait(20)
        return (1e-3,)

    world.run = run
    trials = make().measure_all(requests(task, 2), PLENTY_S)
    assert next(trials)[0] == 0
    goes_on.set()
    assert next(trials)[1].failure is None


def failing(*outcomes: Any) -> Callable[[Board, Any], Any]:
    """What the first runs come to; all after them work."""
    left = list(outcomes)

    def run(board: Board, config: Any) -> Any:
        outcome = left.pop(0) if left else (1e-3,)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    return run


GONE = Lost("gone", "the session is gone")


@pytest.mark.parametrize("outcome", [GONE, TimeoutError(), ChildProcessError()], ids=repr)
def test_a_board_that_vanishes_is_not_the_candidates_fault(
    make: Make, task: Task, world: World, outcome: Any
) -> None:
    world.run = failing(outcome)
    trial = make().measure(task, 3, PLENTY_S)
    assert (trial.failure, trial.costs_s) == (None, (1e-3,))
    assert [config for _, config in world.ran] == [3, 3]


@pytest.mark.parametrize(
    ("outcomes", "failure", "runs"),
    [
        ((GONE, GONE), Failure.RUN_ERROR, 2),
        ((TimeoutError(), TimeoutError()), Failure.RUN_TIMEOUT, 2),
        ((Lost("crashed", "SIGSEGV"),), Failure.RUN_ERROR, 1),
        ((Lost("too long", "ended after 20 s"),), Failure.RUN_TIMEOUT, 1),
        ((RuntimeError("TVMError: no such symbol"),), Failure.RUN_ERROR, 1),
    ],
    ids=["gone twice", "silent twice", "crashed", "too long", "refused"],
)
def test_the_candidates_own_failures(
    make: Make, task: Task, world: World, outcomes: Any, failure: Failure, runs: int
) -> None:
    world.run = failing(*outcomes)
    measurer = make()
    trial = measurer.measure(task, 3, PLENTY_S)
    assert (trial.failure, len(world.ran)) == (failure, runs)
    assert trial.message
    assert measurer.measure(task, 4, PLENTY_S).failure is None


def test_what_is_lost_before_anything_ran_says_nothing(
    make: Make, task: Task, world: World
) -> None:
    world.openings = [GONE] * (remote.IDLE_LOSSES - 1)
    assert make().measure(task, 3, PLENTY_S).failure is None
    assert len(world.ran) == 1


def test_boards_on_which_nothing_ever_runs_end_the_run(
    make: Make, task: Task, world: World
) -> None:
    world.openings = [GONE] * remote.IDLE_LOSSES
    with pytest.raises(DeviceError, match=r"5 sessions in a row were lost.*the session is gone"):
        make().measure(task, 3, PLENTY_S)


def test_no_board_is_waited_for_and_then_said(make: Make, task: Task, world: World) -> None:
    world.boards.clear()
    with pytest.raises(
        DeviceError, match=r"no board with key rpi4 .* tracker:9190 within 0 s: start"
    ):
        make(wait_s=0.2).measure(task, 3, PLENTY_S)
    assert world.notices == [
        "waiting for a board with key rpi4 at tracker:9190, at most 0 s",
    ]


def test_a_board_that_comes_in_time_is_used(make: Make, task: Task, world: World) -> None:
    board = world.boards.pop()
    world.boards.clear()
    timer = threading.Timer(0.2, world.boards.append, [board])
    timer.start()
    assert make(wait_s=30.0).measure(task, 3, PLENTY_S).failure is None
    assert [note.split(" ")[0] for note in world.notices] == ["waiting", "board"]


def test_what_is_finished_is_kept_when_the_last_board_goes(
    make: Make, task: Task, world: World
) -> None:
    second_done = threading.Event()

    def run(board: Board, config: int) -> Any:
        if config == 0:
            assert second_done.wait(20)
            world.boards.clear()
            return GONE
        return (1e-3,)

    def result(config: int) -> Any:
        second_done.set()  # the last that a trial needs a board for
        return np.ones(4)

    world.run, world.result = run, result
    seen: list[int] = []
    trials = make(wait_s=0.2).measure_all(requests(task, 2), PLENTY_S)
    with pytest.raises(DeviceError, match="no board with key rpi4"):
        seen.extend(index for index, _ in trials)
    assert seen == [1]


def test_an_odd_board_is_not_used(make: Make, task: Task, world: World) -> None:
    world.boards[0].cpu = OTHER
    measurer = make(cpu=CPU)
    trials = list(measurer.measure_all(requests(task, 4), PLENTY_S))
    assert [trial.failure for _, trial in trials] == [None] * 4
    assert {name for name, _ in world.ran} == {"b"}
    (notice,) = world.notices
    assert notice.startswith(f"board a is {OTHER}, this run measures on {CPU}: it is not used")
    assert measurer.width() == remote.PER_BOARD


def test_only_odd_boards_are_none(make: Make, task: Task, world: World) -> None:
    for board in world.boards:
        board.cpu = OTHER
    with pytest.raises(DeviceError, match="no board with key rpi4"):
        make(cpu=CPU, wait_s=0.2).measure(task, 3, PLENTY_S)


def test_the_first_board_says_what_the_others_must_be(make: Make, world: World) -> None:
    assert make().find_board() == Opened("a", CPU)
    assert world.ran == []


def test_the_width_follows_the_boards(make: Make, world: World) -> None:
    measurer = make()
    assert measurer.width() == 2 * remote.PER_BOARD
    world.boards.append(Board("c"))
    assert measurer.width() == 3 * remote.PER_BOARD
    world.boards.clear()
    assert measurer.width() == remote.PER_BOARD
    world.boards.extend(Board(str(number)) for number in range(99))
    assert measurer.width() == remote.MOST_AT_ONCE


@pytest.mark.parametrize("emulated", [False, True])
def test_a_wrong_winner_fails(make: Make, task: Task, world: World, emulated: bool) -> None:
    world.timing = "emulated" if emulated else "measured"
    world.result = lambda config: np.array([1, 1, 1, 1.1 if config else np.nan])
    measurer = make()
    trial = measurer.measure(task, 3, PLENTY_S)
    assert (trial.failure, trial.costs_s) == (Failure.WRONG_OUTPUT, ())
    assert "by 1.0e-01 of its largest value" in trial.message
    assert "NaN" in measurer.measure(task, 0, PLENTY_S).message
    # What wins nothing is not compared; an emulator cannot tell who wins.
    slow = measurer.measure(task, 3, PLENTY_S, best_s=1e-9)
    assert (slow.failure is None) is not emulated


@pytest.mark.parametrize(
    ("error", "failure", "message"),
    [
        (ValueError("13 does not divide 224"), Failure.BUILD_ERROR, "13 does not divide 224"),
        (ChildProcessError(), Failure.BUILD_ERROR, "the compiler crashed"),
        (TimeoutError(), Failure.BUILD_TIMEOUT, "building took more than"),
    ],
)
def test_builds_that_fail(
    make: Make, task: Task, world: World, error: Exception, failure: Failure, message: str
) -> None:
    def build(config: int) -> None:
        if config == 3:
            raise error

    world.build = build
    trials = [trial for _, trial in make().measure_all(requests(task, 4), PLENTY_S)]
    assert [trial.failure for trial in trials] == [None, None, None, failure]
    assert message in trials[3].message
    assert len(world.ran) == 3


def test_no_builder_is_not_the_candidates_failure(make: Make, task: Task, world: World) -> None:
    def build(config: int) -> None:
        raise DeviceError("cannot start a worker process")

    world.build = build
    with pytest.raises(DeviceError, match="cannot start a worker"):
        make().measure(task, 3, PLENTY_S)


def test_the_budget_ends_the_wait_for_a_board(make: Make, task: Task, world: World) -> None:
    world.boards.clear()
    trial = make().measure(task, 3, 0.2)
    assert trial.failure is Failure.RUN_TIMEOUT  # of which the tuning run writes nothing


def test_closing_ends_what_waits(make: Make, task: Task, world: World) -> None:
    world.boards.clear()
    measurer = make()
    trials = measurer.measure_all(requests(task, 3), PLENTY_S)
    closing = threading.Timer(0.1, measurer.close)
    closing.start()
    start_s = time.monotonic()
    with pytest.raises(DeviceError, match="was ended"):
        next(trials)
    closing.join()
    assert time.monotonic() - start_s < 5


def test_nothing_is_left_in_the_folder(make: Make, task: Task) -> None:
    measurer = make()
    list(measurer.measure_all(requests(task, 4), PLENTY_S))
    folder = measurer._folder
    assert list(folder.iterdir()) == []
    measurer.close()
    assert not folder.exists()
