"""Warps along a flow or a disparity."""

from .functional import disparity_warp, flow_warp

__all__ = ["disparity_warp", "flow_warp"]
