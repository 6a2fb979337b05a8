"""How kernels read and write memory: figures done by hand, and the counting against sets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mobilenet_tvm.cuda import access, transactions


@pytest.fixture
def analyse(compile_kernel):
    """``analyse(schedule, arguments)``: the memory use of a schedule's kernel."""

    def run(schedule, arguments):
        compiled, _ = compile_kernel(schedule, arguments)
        (function,) = compiled.functions
        return access.analyse(function)

    return run


def rows(count, length, dtype="float32"):
    """``y[i, j] = x[i, j]``, and its schedule."""
    from tvm import te

    x = te.placeholder((count, length), dtype, name="x")
    y = te.compute((count, length), lambda i, j: x[i, j] + x[i, j], name="y")
    return te.create_schedule(y.op), x, y


def threads(axis="x", extent=None):
    from tvm import te

    return (
        te.thread_axis(f"threadIdx.{axis}")
        if extent is None
        else te.thread_axis((0, extent), f"threadIdx.{axis}")
    )


def blocks(axis="x"):
    from tvm import te

    return te.thread_axis(f"blockIdx.{axis}")


def test_neighbours_read_neighbours(analyse):
    schedule, x, y = rows(4, 64)
    row, column = y.op.axis
    schedule[y].bind(row, blocks())
    schedule[y].bind(column, threads())
    use = analyse(schedule, [x, y])
    assert (use.grid, use.block, use.unknown) == ((4, 1, 1), (64, 1, 1), 0)
    assert use.global_efficiency == 1.0
    assert use.bank_conflicts == 1.0
    # Two warps a block, each of 32 x 4 bytes in 4 sectors.
    for one in use.accesses:
        assert (one.space, one.thread_bytes) == ("global", 4)
        assert (one.requests, one.transactions, one.ideal) == (8, 32, 32)
    assert [one.store for one in use.accesses].count(True) == 1


def test_neighbours_read_rows_of_their_own(analyse):
    schedule, x, y = rows(64, 256)
    row, column = y.op.axis
    outer, inner = schedule[y].split(column, 64)
    schedule[y].reorder(outer, row, inner)
    schedule[y].bind(outer, blocks())
    schedule[y].bind(row, threads())
    use = analyse(schedule, [x, y])
    # Each of 32 threads a sector, for 4 bytes of its 32.
    assert use.global_efficiency == 1 / 8
    assert {one.requests for one in use.accesses} == {4 * 2 * 64}
    assert {one.transactions for one in use.accesses} == {4 * 2 * 64 * 32}


@pytest.mark.parametrize(
    ("stride", "efficiency"), [(2, 1 / 2), (3, 1 / 3), (8, 1 / 8), (16, 1 / 8)]
)
def test_a_stride_wastes_what_it_skips(analyse, stride, efficiency):
    from tvm import te

    x = te.placeholder((64 * stride,), name="x")
    y = te.compute((64,), lambda i: x[i * stride], name="y")
    schedule = te.create_schedule(y.op)
    schedule[y].bind(y.op.axis[0], threads())
    load, store = analyse(schedule, [x, y]).accesses
    assert load.ideal / load.transactions == pytest.approx(efficiency)
    assert store.ideal == store.transactions


@pytest.mark.parametrize(("lanes", "dtype"), [(2, "float32"), (4, "float32"), (4, "float16")])
def test_vectors_are_one_access(analyse, lanes, dtype):
    schedule, x, y = rows(2, 128 * lanes, dtype)
    row, column = y.op.axis
    schedule[y].bind(row, blocks())
    outer, inner = schedule[y].split(column, lanes)
    schedule[y].bind(outer, threads())
    schedule[y].vectorize(inner)
    use = analyse(schedule, [x, y])
    size = int(dtype[-2:]) // 8
    assert {one.thread_bytes for one in use.accesses} == {lanes * size}
    assert {one.requests for one in use.accesses} == {2 * 4}
    assert {one.transactions for one in use.accesses} == {2 * 4 * 32 * lanes * size / 32}
    assert use.global_efficiency == 1.0


def test_a_vector_that_is_none_in_memory_is_several(analyse):
    from tvm import te

    x = te.placeholder((4, 64), name="x")
    y = te.compute((64, 4), lambda i, j: x[j, i], name="y")
    schedule = te.create_schedule(y.op)
    schedule[y].bind(y.op.axis[0], threads())
    schedule[y].vectorize(y.op.axis[1])
    load, store = analyse(schedule, [x, y]).accesses
    assert (load.thread_bytes, load.requests, load.transactions) == (4, 8, 32)
    assert (store.thread_bytes, store.requests, store.transactions) == (16, 2, 32)


def test_what_all_threads_read_is_one_sector(analyse):
    from tvm import te

    x = te.placeholder((16,), name="x")
    y = te.compute((16, 64), lambda i, j: x[i], name="y")
    schedule = te.create_schedule(y.op)
    schedule[y].bind(y.op.axis[0], blocks())
    schedule[y].bind(y.op.axis[1], threads())
    load, _ = analyse(schedule, [x, y]).accesses
    assert (load.requests, load.transactions, load.ideal) == (32, 32, 32)


def test_half_a_warp_counts_half(analyse):
    schedule, x, y = rows(8, 48)
    row, column = y.op.axis
    schedule[y].bind(row, blocks())
    schedule[y].bind(column, threads())
    use = analyse(schedule, [x, y])
    # One warp of 32 threads and one of 16: 4 and 2 sectors. The rows of 192 bytes begin at one.
    assert {one.requests for one in use.accesses} == {16}
    assert {one.transactions for one in use.accesses} == {8 * 6}
    assert use.global_efficiency == 1.0


def test_only_threads_that_pass_a_condition_count(analyse):
    from tvm import te

    x = te.placeholder((64,), name="x")
    y = te.compute((64,), lambda i: te.if_then_else(i < 8, x[i], 0.0), name="y")
    schedule = te.create_schedule(y.op)
    schedule[y].bind(y.op.axis[0], threads())
    load, store = analyse(schedule, [x, y]).accesses
    # The second warp does not load at all.
    assert (load.requests, load.transactions) == (1, 1)
    assert (store.requests, store.transactions) == (2, 8)


def test_an_uneven_split_stops_at_the_end(analyse):
    schedule, x, y = rows(1, 100)
    row, column = y.op.axis
    _, inner = schedule[y].split(column, 32)
    schedule[y].bind(row, blocks())
    schedule[y].bind(inner, threads())
    use = analyse(schedule, [x, y])
    # Three whole warps and one of which 4 threads have something to do: 13 sectors.
    assert {one.transactions for one in use.accesses} == {13}
    assert {one.requests for one in use.accesses} == {4}


@pytest.mark.parametrize(
    ("pad", "conflicts"), [(0, 32), (1, 1), (2, 2), (4, 4), (8, 8)], ids=lambda value: str(value)
)
def test_columns_of_shared_memory(analyse, pad, conflicts):
    from tvm import te

    x = te.placeholder((32, 32), name="x")
    y = te.compute((32, 32), lambda i, j: x[j, i], name="y")
    schedule = te.create_schedule(y.op)
    cached = schedule.cache_read(x, "shared", [y])
    if pad:
        schedule[cached].storage_align(cached.op.axis[0], 32, pad)
    row, column = y.op.axis
    # One thread axis for both, or each would have its own.
    thread, other = threads("x", 32), threads("y", 4)
    whole, row = schedule[y].split(row, 32)
    schedule[y].bind(whole, blocks())
    outer, _ = schedule[y].split(row, nparts=4)
    schedule[y].bind(outer, other)
    schedule[y].bind(column, thread)
    schedule[cached].compute_at(schedule[y], whole)
    first, second = cached.op.axis
    outer, _ = schedule[cached].split(first, nparts=4)
    schedule[cached].bind(outer, other)
    schedule[cached].bind(second, thread)
    use = analyse(schedule, [x, y])
    store, load = (one for one in use.accesses if one.space == "shared")
    assert store.store
    assert store.transactions == store.ideal == 32
    assert (load.requests, load.transactions) == (32, 32 * conflicts)
    assert use.bank_conflicts == (1 + conflicts) / 2
    assert use.global_efficiency == 1.0


def test_registers_are_no_memory(analyse):
    schedule, x, y = rows(4, 64)
    cached = schedule.cache_write(y, "local")
    row, column = y.op.axis
    schedule[y].bind(row, blocks())
    outer, _ = schedule[y].split(column, 2)
    schedule[y].bind(outer, threads())
    schedule[cached].compute_at(schedule[y], outer)
    use = analyse(schedule, [x, y])
    assert {one.buffer for one in use.accesses} == {"x", "y"}


def test_what_depends_on_memory_is_unknown(analyse):
    from tvm import te

    x = te.placeholder((64,), name="x")
    where = te.placeholder((64,), "int32", name="where")
    y = te.compute((64,), lambda i: x[where[i]], name="y")
    schedule = te.create_schedule(y.op)
    schedule[y].bind(y.op.axis[0], threads())
    use = analyse(schedule, [x, where, y])
    assert use.unknown == 1
    assert {one.buffer for one in use.accesses} == {"where", "y"}


def test_a_launch_known_at_run_time_only_is_refused(analyse):
    from tvm import te

    count = te.var("count")
    x = te.placeholder((count, 32), name="x")
    y = te.compute((count, 32), lambda i, j: x[i, j], name="y")
    schedule = te.create_schedule(y.op)
    schedule[y].bind(y.op.axis[0], blocks())
    schedule[y].bind(y.op.axis[1], threads())
    with pytest.raises(ValueError, match=r"blockIdx\.x has count at run time"):
        analyse(schedule, [x, y])


def test_a_padded_window_is_as_counted_one_by_one(analyse):
    from tvm import te

    height, width, taps = 30, 50, (-1, 0, 1)
    x = te.placeholder((height, width), name="x")
    di, dj = te.reduce_axis((0, 3), name="di"), te.reduce_axis((0, 3), name="dj")

    def tap(i, j):
        inside = te.all(i + di >= 1, i + di <= height, j + dj >= 1, j + dj <= width)
        return te.if_then_else(inside, x[i + di - 1, j + dj - 1], 0.0)

    y = te.compute((height, width), lambda i, j: te.sum(tap(i, j), axis=[di, dj]), name="y")
    schedule = te.create_schedule(y.op)
    schedule[y].bind(y.op.axis[0], blocks())
    schedule[y].bind(y.op.axis[1], threads())
    load = next(one for one in analyse(schedule, [x, y]).accesses if one.buffer == "x")

    requests = sectors = ideal = 0
    for row in range(height):
        for warp in (range(32), range(32, width)):
            for down in taps:
                for right in taps:
                    read = [
                        (row + down) * width + column + right
                        for column in warp
                        if 0 <= row + down < height and 0 <= column + right < width
                    ]
                    requests += bool(read)
                    sectors += len({4 * element // 32 for element in read})
                    ideal += -(-4 * len(read) // 32)
    # How often the edges come by is drawn; what the ratio is hardly depends on it.
    assert load.requests == pytest.approx(requests, rel=0.05)
    assert load.transactions == pytest.approx(sectors, rel=0.05)
    assert load.ideal / load.transactions == pytest.approx(ideal / sectors, rel=0.01)


def test_it_is_the_same_each_time(compile_kernel):
    schedule, x, y = rows(50, 77)
    row, column = y.op.axis
    schedule[y].bind(row, blocks())
    outer, _ = schedule[y].split(column, 5)
    schedule[y].bind(outer, threads())
    compiled, _ = compile_kernel(schedule, [x, y])
    assert access.analyse(compiled.functions[0]) == access.analyse(compiled.functions[0])


addresses = st.lists(st.integers(0, 400), min_size=32, max_size=32)
active = st.lists(st.booleans(), min_size=32, max_size=32)
sizes = st.sampled_from([(1, 1), (1, 2), (1, 4), (2, 4), (4, 4), (1, 8), (2, 2), (4, 2), (3, 4)])


def request(addresses, active, size):
    """Arrays as ``transactions`` takes them, and the bytes that each thread asks for."""
    width, element_bytes = size
    # A vector is aligned to the power of two that holds it.
    first = np.array(addresses) * (width if width != 3 else 4)
    elements = (first[:, None] + np.arange(width)).reshape(1, 32, width)
    asked = [
        {int(element) * element_bytes + byte for element in mine for byte in range(element_bytes)}
        if on
        else set()
        for mine, on in zip(elements[0], active, strict=True)
    ]
    return elements, np.array(active).reshape(1, 32, 1), element_bytes, asked


@settings(deadline=None, max_examples=150)
@given(addresses, active, sizes)
def test_sectors_are_counted_right(addresses, active, size):
    elements, on, element_bytes, asked = request(addresses, active, size)
    every = set().union(*asked)
    taken, ideal = transactions.sectors(elements, on, element_bytes)
    assert taken.tolist() == [len({byte // 32 for byte in every})]
    assert ideal.tolist() == [-(-len(every) // 32)]


@settings(deadline=None, max_examples=150)
@given(addresses, active, sizes)
def test_turns_are_counted_right(addresses, active, size):
    elements, on, element_bytes, asked = request(addresses, active, size)
    thread_bytes = size[0] * size[1]
    together = 32 if thread_bytes <= 4 else 16 if thread_bytes <= 8 else 8
    wanted = needed = 0
    for start in range(0, 32, together):
        words = {byte // 4 for mine in asked[start : start + together] for byte in mine}
        banks = [word % 32 for word in words]
        wanted += max(map(banks.count, banks), default=0)
        needed += bool(words)
    taken, ideal = transactions.turns(elements, on, element_bytes)
    assert (taken.tolist(), ideal.tolist()) == ([wanted], [needed])
