"""Guidance: denoisers made of denoisers that say more clearly what they were told."""

from suffuse.guidance.cfg import guide

__all__ = ["guide"]
