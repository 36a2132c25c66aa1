"""Synthetic landmarks: fixed structures rendered from varying views, for trying all commands without a dataset."""

from landmark.data.synthetic.plan import plan_images
from landmark.data.synthetic.scene import draw_image

__all__ = ["draw_image", "plan_images"]
