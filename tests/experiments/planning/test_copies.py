"""What libraries on CPUs copy, in programs written by hand as the compiler writes them. The bytes
are those that were recorded when such operations ran, or follow from shapes where this is said."""

from __future__ import annotations

import pytest

from experiments.planning.copies import largest

_YNNPACK = 'kind=kCustom, calls=%inner, backend_config={"fusion_config":{"kind":"__ynn_fusion"}}'
_LOOP = "kind=kLoop, calls=%inner"
_IMAGES = "dim_labels=b01f_01io->b01f"


def program(first: str, second: str, operation: str, fusion: str) -> str:
    """One operation in a fusion."""
    return f"""HloModule jit_step, is_scheduled=true

%inner (a: f32[], b: f32[]) -> f32[] {{
  %a = {first} parameter(0)
  %b = {second} parameter(1)
  ROOT %found = {operation}
}}

ENTRY %main (x: f32[], y: f32[]) -> f32[] {{
  %x = {first} parameter(0)
  %y = {second} parameter(1)
  ROOT %outer = f32[8]{{0}} fusion(%x, %y), {fusion}
}}
"""


@pytest.mark.parametrize(
    ("first", "second", "operation", "recorded"),
    [
        (  # Forward: the images with their margins, and the kernel.
            "f32[128,32,32,32]{3,2,1,0}",
            "f32[3,3,32,32]{3,2,1,0}",
            "f32[128,32,32,32]{3,2,1,0} convolution(%a, %b), "
            f"window={{size=3x3 pad=1_1x1_1}}, {_IMAGES}",
            18_939_904 + 36_864,
        ),
        (  # For the kernel: the images with their margins, and the gradient of the outputs.
            "f32[41,32,16,16]{3,2,1,0}",
            "f32[16,16,16,64]{3,2,1,0}",
            "f32[41,3,1,64]{3,2,1,0} convolution(%a, %b), "
            f"window={{size=16x16 pad=1_0x0_0 rhs_dilate=2x1}}, {_IMAGES}",
            1_385_472 + 1_048_576,
        ),
        (  # By shapes: no margins, and a row that is cut away.
            "f32[64,16,16,32]{3,2,1,0}",
            "f32[1,1,32,48]{3,2,1,0}",
            "f32[64,15,16,48]{3,2,1,0} convolution(%a, %b), "
            f"window={{size=1x1 pad=0_-1x0_0}}, {_IMAGES}",
            64 * 15 * 16 * 32 * 4 + 32 * 48 * 4,
        ),
        (  # Few columns.
            "f32[60,131072]{1,0}",
            "f32[131072,32]{1,0}",
            "f32[60,32]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}",
            16_777_216,
        ),
        (  # Many columns.
            "f32[64,1152]{1,0}",
            "f32[8192,1152]{1,0}",
            "f32[64,8192]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={1}",
            294_912,
        ),
        (  # A batch of products.
            "f32[64,128,64]{2,1,0}",
            "f32[64,64,512]{2,1,0}",
            "f32[64,128,512]{2,1,0} dot(%a, %b), lhs_batch_dims={0}, lhs_contracting_dims={2}, "
            "rhs_batch_dims={0}, rhs_contracting_dims={1}",
            8_388_608,
        ),
    ],
)
def test_operations_of_ynnpack(first: str, second: str, operation: str, recorded: int) -> None:
    assert largest(program(first, second, operation, _YNNPACK)) == recorded
    assert largest(program(first, second, operation, _LOOP)) == 0


def test_the_gradient_for_the_input_of_a_convolution_with_strides() -> None:
    operation = (
        "f32[16,32,32,32]{3,2,1,0} convolution(%a, %b), "
        f"window={{size=1x3 pad=0_0x1_2 lhs_dilate=1x2}}, {_IMAGES}"
    )
    given = ("f32[16,32,16,41]{3,2,1,0}", "f32[1,3,41,32]{3,2,1,0}")
    columns, first = 3_145_728, 16 * 32 * 16 * 41 * 4  # The second by its shape.
    assert largest(program(*given, operation, _LOOP)) == columns + first
    assert largest(program(*given, f"{operation}, feature_group_count=4", _LOOP)) == 0


def test_of_several_operations_the_one_that_copies_most() -> None:
    small, large = (
        program(
            f"f32[8,{length}]{{1,0}}",
            f"f32[{length},4]{{1,0}}",
            "f32[8,4]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}",
            _YNNPACK,
        )
        for length in (16, 1024)
    )
    renamed = small.replace("%inner", "%other").replace("ENTRY %main", "%never")
    assert largest(renamed + large) == largest(large) == 1024 * 4 * 4
    assert largest(renamed) == 16 * 4 * 4


def test_a_program_without_such_operations() -> None:
    assert largest(program("f32[8]{0}", "f32[8]{0}", "f32[8]{0} add(%a, %b)", _LOOP)) == 0
