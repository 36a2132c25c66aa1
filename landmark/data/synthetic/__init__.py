"""Synthetic landmarks: fixed structures rendered from varying views, for trying all commands without a dataset."""

from landmark.data.synthetic.plan import plan_images
from landmark.data.synthetic.scene import render_image

__all__ = ["plan_images", "render_image"]
