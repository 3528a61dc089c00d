"""What devices send each other, in programs written by hand."""

from __future__ import annotations

import pytest

from experiments.planning.collectives import collectives

_PROGRAM = """HloModule jit_step, is_scheduled=true, num_partitions=8

FileNames
1 "step.py"

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%inner (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %p = (s32[], f32[4,8]{1,0}) parameter(0)
  %a = f32[4,8]{1,0} get-tuple-element(%p), index=1
  %scattered = f32[1,8]{1,0} reduce-scatter(%a), channel_id=7, replica_groups=[2,4]<=[8], \
use_global_device_ids=true, dimensions={0}, to_apply=%add
  ROOT %t = (s32[], f32[4,8]{1,0}) tuple(%i, %a)
}

%never (p.1: (s32[], f32[4,8])) -> pred[] {
  %p.1 = (s32[], f32[4,8]{1,0}) parameter(0)
  ROOT %less = pred[] compare(%p.1, %p.1), direction=LT
}

%outer (q: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %q = (s32[], f32[4,8]{1,0}) parameter(0)
  %turned = f32[4,8]{1,0} get-tuple-element(%q), index=1
  %all-to-all.1 = f32[4,8]{1,0} all-to-all(%turned), replica_groups={{0,1,2,3},{4,5,6,7}}, \
dimensions={0}
  ROOT %w = (s32[], f32[4,8]{1,0}) while(%q), condition=%never, body=%inner, \
backend_config={"known_trip_count":{"n":"5"},"known_init_step":{"init":"0","step":"1"}}
}

%little (r: f32[4,8]) -> f32[4,8] {
  ROOT %r = f32[4,8]{1,0} parameter(0)
}

%much (s: f32[4,8]) -> f32[4,8] {
  %s = f32[4,8]{1,0} parameter(0)
  ROOT %around = f32[4,8]{1,0} collective-permute(%s), channel_id=3, \
source_target_pairs={{0,1},{1,0}}
}

%wrapped (v: bf16[16]) -> bf16[16] {
  %v = bf16[16]{0} parameter(0)
  ROOT %everywhere = bf16[16]{0} all-reduce(%v), channel_id=4, replica_groups={}, to_apply=%add
}

ENTRY %main (param.0: f32[4,8], param.1: s8[3], param.2: bf16[16]) -> f32[4,8] {
  %param.0 = f32[4,8]{1,0:T(8,128)} parameter(0), sharding={devices=[8,1]<=[8]}
  %param.1 = s8[3]{0} parameter(1)
  %param.2 = bf16[16]{0} parameter(2)
  %both = (f32[4,8]{1,0}, /*index=1*/s8[3]{0}) all-reduce(%param.0, %param.1), channel_id=1, \
replica_groups=mesh['a'=8] {'a'}, use_global_device_ids=true, to_apply=%add, \
metadata={op_name="jit(step)/add(all-reduce(x))"}
  %gathering = (f32[4,8]{1,0}, f32[8,8]{1,0}) all-gather-start(%param.0), channel_id=2, \
replica_groups=[4,2]<=[8], dimensions={0}
  %gathered = f32[8,8]{1,0} all-gather-done(%gathering)
  %alone = f32[4,8]{1,0} all-reduce(%param.0), replica_groups=[8,1]<=[8], to_apply=%add
  %begun = ((bf16[16]), bf16[16], u32[]) async-start(%param.2), calls=%wrapped
  %ended = bf16[16]{0} async-done(%begun), calls=%wrapped
  %c = f32[4,8]{1,0} conditional(%p, %param.0, %param.0), branch_computations={%little, %much}
  %tuple = (s32[], f32[4,8]{1,0}) tuple(%i, %c)
  %loop = (s32[], f32[4,8]{1,0}) while(%tuple), condition=%never, body=%outer, \
backend_config={"known_trip_count":{"n":"3"}}
  ROOT %result = f32[4,8]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_a_program() -> None:
    found = {one.kind: one for one in collectives(_PROGRAM, 8) if one.operand_bytes != 131}
    matrix = 4 * 8 * 4
    assert {kind: (one.count, one.bytes, one.sent) for kind, one in found.items()} == {
        "all-gather": (1, 2 * matrix, matrix),
        "all-reduce": (1, 32, 2 * 32 * 7 / 8),
        "collective-permute": (1, matrix, matrix),
        "all-to-all": (3, 3 * matrix, 3 * matrix * 3 / 4),
        "reduce-scatter": (15, 15 * matrix, 15 * matrix * 3 / 4),
    }
    assert all(one.counted for one in found.values())
    (both,) = [one for one in collectives(_PROGRAM, 8) if one.operand_bytes == 131]
    assert (both.kind, both.bytes, both.groups) == ("all-reduce", matrix + 3, (tuple(range(8)),))


def test_every_collective_is_found_once() -> None:
    # `alone` exchanges nothing.
    assert len(collectives(_PROGRAM, 8)) == 6


def test_a_loop_of_unknown_length_is_told() -> None:
    unknown = _PROGRAM.replace('backend_config={"known_trip_count":{"n":"3"}}', "")
    found = {one.kind: one for one in collectives(unknown, 8)}
    assert (found["all-to-all"].count, found["all-to-all"].counted) == (1, False)
    assert (found["reduce-scatter"].count, found["reduce-scatter"].counted) == (5, False)
    assert found["all-gather"].counted


def test_operands_that_carry_their_types() -> None:
    """As older compilers write them."""
    typed = _PROGRAM.replace(
        "all-gather-start(%param.0)", "all-gather-start(f32[4,8]{1,0} %param.0)"
    )
    assert collectives(typed, 8) == collectives(_PROGRAM, 8)


@pytest.mark.parametrize(
    ("element", "size"),
    [("pred", 1), ("s4", 0.5), ("u8", 1), ("f8e4m3fn", 1), ("bf16", 2), ("f32", 4), ("c128", 16)],
)
def test_sizes_of_elements(element: str, size: float) -> None:
    program = (
        f"ENTRY %main (p: {element}[6]) -> {element}[6] {{\n"
        f"  %p = {element}[6]{{0}} parameter(0)\n"
        f"  ROOT %r = {element}[6]{{0}} all-to-all(%p), replica_groups={{{{0,1}}}}\n}}\n"
    )
    (found,) = collectives(program, 2)
    assert found.operand_bytes == 6 * size


def test_what_is_no_program() -> None:
    with pytest.raises(ValueError, match="ENTRY"):
        collectives("HloModule empty\n", 2)
