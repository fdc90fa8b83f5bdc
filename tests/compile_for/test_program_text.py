"""Work read from short texts of compiled programs, written as XLA's TPU compiler writes them."""

from __future__ import annotations

import pytest

from drifa_jax.compile_for.estimate import bounds, collective_sums
from drifa_jax.compile_for.program_text import arrays_of, parse
from drifa_jax.compile_for.slices import slices_named
from drifa_jax.compile_for.work import work_of

MAP = "bf16[64,32,128]{2,1,0:T(8,128)(2,1)}"
HALF_A_MIB = 64 * 32 * 128 * 2
ON_CHIP = MAP.replace("(2,1)}", "(2,1)S(1)}")


def work(entry, *others, num_devices=1):
    text = "\n".join([*others, "ENTRY %main (x: f32[]) -> f32[] {", *entry, "}"])
    return work_of(parse(f"HloModule jit_f, is_scheduled=true\n\n{text}\n"), num_devices)


def computation(name, *lines):
    return "\n".join([f"%{name} (p: f32[]) -> f32[] {{", *(f"  {line}" for line in lines), "}"])


@pytest.mark.parametrize(
    ("kind", "num_bytes", "space"),
    [
        ("f32[8,128]{1,0:T(8,128)}", 4096, 0),
        ("bf16[4,64,64]{2,1,0:T(8,128)(2,1)S(1)}", 4 * 64 * 128 * 2, 1),
        ("bf16[64,30]{0,1:T(8,128)(2,1)}", 32 * 128 * 2, 0),
        ("pred[3,128]{1,0:T(8,128)(4,1)}", 8 * 128, 0),
        ("f32[100]{0:T(256)}", 1024, 0),
        ("u32[]{:S(2)}", 4, 2),
        ("token[]", 0, 0),
    ],
)
def test_bytes_of_an_array_are_those_of_its_padded_tiles(kind, num_bytes, space):
    (array,) = arrays_of(kind)
    assert (array.num_bytes, array.space) == (num_bytes, space)


def test_traffic_is_that_of_the_top_level_by_memory():
    """Reads and writes of HBM count; what stays on the chip counts apart, and names count not."""
    found = work(
        [
            f"  %x = {MAP} parameter(0), sharding={{replicated}}",
            f"  %y = {MAP} fusion(%x), kind=kLoop, calls=%fused",
            f"  %z = {ON_CHIP} add(%y, %y)",
            f"  ROOT %t = ({MAP}, {ON_CHIP}) tuple(%y, %z)",
        ],
        computation("fused", f"%p = {MAP} parameter(0)", f"ROOT %r = {MAP} negate(%p)"),
    )
    assert found.hbm_bytes == 4 * HALF_A_MIB
    assert found.vmem_bytes == HALF_A_MIB
    assert found.num_fusions == 1


def test_copy_between_the_memories_is_read_from_one_and_written_to_the_other():
    found = work(
        [
            f"  %x = {MAP} parameter(0)",
            f"  %s = ({ON_CHIP}, {MAP}, u32[]{{:S(2)}}) copy-start(%x)",
            f"  ROOT %y = {ON_CHIP} copy-done(%s)",
        ]
    )
    assert (found.hbm_bytes, found.vmem_bytes) == (HALF_A_MIB, HALF_A_MIB)


@pytest.mark.parametrize(
    ("noted", "condition"),
    [
        (
            ', backend_config={"known_trip_count":{"n":"20"}}',
            ["ROOT %k = pred[] parameter(0)"],
        ),
        (
            "",
            [
                "%i = s32[] parameter(0)",
                "%n = s32[] constant(20)",
                "ROOT %k = pred[] compare(%i, %n), direction=LT",
            ],
        ),
    ],
)
def test_loop_counts_as_often_as_it_runs(noted, condition):
    """By the compiler's note, or by its condition."""
    found = work(
        [
            f"  %x = {MAP} parameter(0)",
            f"  ROOT %y = {MAP} while(%x), condition=%c, body=%b{noted}",
        ],
        computation("b", f"%p = {MAP} parameter(0)", f"ROOT %n = {MAP} negate(%p)"),
        computation("c", *condition),
    )
    assert found.hbm_bytes == pytest.approx(20 * 2 * HALF_A_MIB, abs=200)


def test_slice_of_an_array_counts_for_its_own_bytes():
    """Within a fusion too: a loop that reads a row at a time does not read all rows each time."""
    row = "bf16[1,32,128]{2,1,0:T(8,128)(2,1)}"
    found = work(
        [
            f"  %x = {MAP} parameter(0)",
            "  %i = s32[] constant(3)",
            f"  %y = {row} fusion(%x, %i), kind=kLoop, calls=%read",
            f"  ROOT %z = {MAP} fusion(%x, %y, %i), kind=kLoop, calls=%write",
        ],
        computation(
            "read",
            f"%p = {MAP} parameter(0)",
            "%i = s32[] parameter(1)",
            f"ROOT %r = {row} dynamic-slice(%p, %i, %i, %i)",
        ),
        computation(
            "write",
            f"%p = {MAP} parameter(0)",
            f"%q = {row} parameter(1)",
            "%i = s32[] parameter(2)",
            f"ROOT %r = {MAP} dynamic-update-slice(%p, %q, %i, %i, %i)",
        ),
    )
    row_bytes = HALF_A_MIB // 64
    assert found.hbm_bytes == pytest.approx(4 * row_bytes, abs=16)


@pytest.mark.parametrize(
    ("line", "flops"),
    [
        # A 1x1 convolution, and one of 3x3 whose padding meets no element.
        (
            "bf16[64,32,16]{2,1,0} convolution(%x, %w), window={size=1}, dim_labels=b0f_0io->b0f",
            2 * 64 * 32 * 16 * 128,
        ),
        (
            "bf16[64,32,16]{2,1,0} convolution(%x, %v), window={size=3 pad=1_1}, "
            "dim_labels=b0f_0io->b0f",
            2 * 64 * 16 * 128 * (3 * 32 - 2),
        ),
        # The gradient of a stride: of a dilated map, half of the places hold nothing.
        (
            "bf16[64,63,16]{2,1,0} convolution(%x, %w), window={size=1 lhs_dilate=2}, "
            "dim_labels=b0f_0io->b0f",
            2 * 64 * 32 * 16 * 128,
        ),
    ],
)
def test_flops_are_pairs_of_a_weight_and_an_element(line, flops):
    found = work(
        [
            f"  %x = {MAP} parameter(0)",
            "  %w = bf16[1,128,16]{2,1,0} parameter(1)",
            "  %v = bf16[3,128,16]{2,1,0} parameter(2)",
            f"  ROOT %y = {line}",
        ]
    )
    assert found.flops == flops


def test_collectives_are_told_by_kind_and_those_between_slices_apart():
    found = work(
        [
            "  %x = f32[1024,128]{1,0} parameter(0)",
            "  %a = f32[1024,128]{1,0} all-reduce(%x), replica_groups={{0,1,2,3}}, to_apply=%add",
            "  %g = f32[1024,128]{1,0} all-gather(%x), replica_groups=[2,4]<=[8], dimensions={0}",
            "  %k = token[] after-all()",
            "  ROOT %s = (f32[1024,128]{1,0}, u32[], token[]) send(%x, %k), channel_id=2, "
            "is_host_transfer=true",
        ],
        num_devices=8,
    )
    size = 1024 * 128 * 4
    assert collective_sums(found) == {
        "all-reduce": {"count": 1, "bytes": size},
        "all-gather": {"count": 1, "bytes": size},
        "dcn": {"count": 1, "bytes": size},
    }
    assert [c.group_size for c in found.collectives] == [4, 4, 2]
    seconds = bounds(found, slices_named("v5e-4", 2))
    # A ring of four over two links of 50 GB/s, there and back; two hops each way.
    reduced = 2 * 3 / 4 * size / 100e9 + 4e-6
    gathered = 3 / 4 * size / 100e9 + 2e-6
    assert seconds["ICI"] == pytest.approx(reduced + gathered)
    assert seconds["DCN"] == pytest.approx(size / 3.1e9)


def test_a_sum_of_which_each_chip_keeps_a_part_is_a_reduce_scatter():
    """TPUs fuse both; it goes round the ring once."""
    found = work(
        [
            "  %x = f32[1024,128]{1,0} parameter(0)",
            "  ROOT %f = f32[256,128]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter",
        ],
        computation(
            "all-reduce-scatter",
            "%p = f32[1024,128]{1,0} parameter(0)",
            "%a = f32[1024,128]{1,0} all-reduce(%p), replica_groups={{0,1,2,3}}, to_apply=%add",
            "%i = u32[] partition-id()",
            "ROOT %d = f32[256,128]{1,0} dynamic-slice(%a, %i), dynamic_slice_sizes={256,128}",
        ),
        num_devices=4,
    )
    size = 1024 * 128 * 4
    assert collective_sums(found) == {"reduce-scatter": {"count": 1, "bytes": size}}
    seconds = bounds(found, slices_named("v5e-4"))
    assert seconds["ICI"] == pytest.approx(3 / 4 * size / 100e9 + 2e-6)


def test_a_gather_beside_other_work_counts_where_it_begins():
    gather = "%g = f32[1024,128]{1,0} all-gather(%p), replica_groups={{0,1,2,3}}, dimensions={0}"
    found = work(
        [
            "  %x = f32[256,128]{1,0} parameter(0)",
            "  %async-collective-start = (f32[256,128]{1,0}, f32[1024,128]{1,0}, u32[]) "
            "fusion(%x), kind=kCustom, calls=%fused_computation",
            "  ROOT %f = f32[1024,128]{1,0} fusion(%x), kind=kCustom, "
            "calls=%async_collective_fusion",
        ],
        computation("fused_computation", "%p = f32[256,128]{1,0} parameter(0)", f"ROOT {gather}"),
        computation(
            "async_collective_fusion", "%p = f32[256,128]{1,0} parameter(0)", f"ROOT {gather}"
        ),
        num_devices=4,
    )
    assert collective_sums(found) == {"all-gather": {"count": 1, "bytes": 1024 * 128 * 4}}


def test_of_two_branches_the_longer_one_counts():
    found = work(
        [
            f"  %x = {MAP} parameter(0)",
            f"  ROOT %y = {MAP} conditional(%x, %x, %x), branch_computations={{%long, %short}}",
        ],
        computation(
            "long",
            f"%p = {MAP} parameter(0)",
            f"%n = {MAP} negate(%p)",
            f"ROOT %m = {MAP} negate(%n)",
        ),
        computation("short", f"ROOT %p = {MAP} parameter(0)"),
    )
    assert found.hbm_bytes == 4 * HALF_A_MIB


def test_text_without_an_entry_is_none():
    with pytest.raises(ValueError, match="no ENTRY"):
        parse("HloModule jit_f\n")
