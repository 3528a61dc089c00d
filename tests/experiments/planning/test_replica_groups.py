"""Groups of devices, in every way in which compilers write them."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.planning.replica_groups import axes_of, parse


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("{{0,1},{2,3}}, use_global_device_ids=true", ((0, 1), (2, 3))),
        ("{{0,2}, {1,3}}", ((0, 2), (1, 3))),
        ("{}, to_apply=%add", ((0, 1, 2, 3, 4, 5, 6, 7),)),
        ("[1,8]<=[8], dimensions={0}", ((0, 1, 2, 3, 4, 5, 6, 7),)),
        ("[4,2]<=[8]", ((0, 1), (2, 3), (4, 5), (6, 7))),
        ("[4,2]<=[2,4]T(1,0)", ((0, 4), (1, 5), (2, 6), (3, 7))),
        ("mesh['axis_0'=8,'axis_1'=1] {'axis_0'}", ((0, 1, 2, 3, 4, 5, 6, 7),)),
        ("mesh['a'=2,'b'=4] {'a'}, channel_id=1", ((0, 4), (1, 5), (2, 6), (3, 7))),
        ("mesh['a'=2,'b'=4] {'b'}", ((0, 1, 2, 3), (4, 5, 6, 7))),
        ("mesh['a'=2,'b'=2,'c'=2] {'a','c'}", ((0, 1, 4, 5), (2, 3, 6, 7))),
        ("mesh['a'=8] {'a':(2)2}", ((0, 2), (1, 3), (4, 6), (5, 7))),
        ("mesh['a'=8] {'a':(1)2}", ((0, 4), (1, 5), (2, 6), (3, 7))),
        (
            "mesh['axis_0'=4,'axis_1'=1,'axis_2'=2], device_ids=([2,4]T(1,0)) {'axis_0'}, use",
            ((0, 1, 2, 3), (4, 5, 6, 7)),
        ),
        (
            "mesh['axis_0'=4,'axis_1'=1,'axis_2'=2], device_ids=([2,4]T(1,0)) {'axis_2'}",
            ((0, 4), (1, 5), (2, 6), (3, 7)),
        ),
        ("mesh['a'=2,'b'=2], device_ids=(0,3,1,2) {'b'}", ((0, 3), (1, 2))),
    ],
)
def test_groups(text: str, groups: tuple[tuple[int, ...], ...]) -> None:
    assert parse(text, 8) == groups


@pytest.mark.parametrize("text", ["", "none", "mesh['a'=8], use", "<=[8]"])
def test_what_is_not_known(text: str) -> None:
    with pytest.raises(ValueError, match="replica groups"):
        parse(text, 8)


def test_the_axes_of_groups() -> None:
    sizes = {"data": 2, "fsdp": 2, "tensor": 2}
    numbers = np.arange(8).reshape(2, 2, 2)
    for axes, order in (
        (("data",), (1, 2, 0)),
        (("fsdp",), (0, 2, 1)),
        (("tensor",), (0, 1, 2)),
        (("data", "tensor"), (1, 0, 2)),
        (("data", "fsdp", "tensor"), (0, 1, 2)),
    ):
        rows = numbers.transpose(order).reshape(-1, 2 ** len(axes))
        assert axes_of(tuple(map(tuple, rows.tolist())), sizes) == axes
    # Not every pair has to differ along the same axis.
    assert axes_of(((0, 1), (2, 6)), sizes) == ("data", "tensor")
