"""Head size: features of an attention head, as a share of those of the full size, which are
`d_model / heads`. A smaller share is the published way to compress attention (arXiv 2105.01029)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.errors import RunError


def with_head_size(model: Mapping[str, Any], head_scale: float) -> dict[str, Any]:
    """The fields of a config's `model` group with `head_size` in the place of its `head_scale`.

    Args:
      model: has `d_model`, `heads` and `head_scale`.
      head_scale: the share, which need not be the group's.

    Raises:
      RunError: the heads do not divide `d_model`, or would have no features.

    >>> with_head_size({"d_model": 128, "heads": 4, "head_scale": 0.5}, 0.5)
    {'d_model': 128, 'heads': 4, 'head_size': 16}
    """
    fields = {key: value for key, value in model.items() if key != "head_scale"}
    full = fields["d_model"] / fields["heads"]
    fields["head_size"] = int(head_scale * full)
    if full != int(full) or not fields["head_size"]:
        raise RunError(
            f"d_model={fields['d_model']} with heads={fields['heads']} and head_scale="
            f"{head_scale:g}: expected heads that divide d_model, and a head size of at least 1"
        )
    return fields
