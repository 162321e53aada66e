"""Recipes: one readable file for each thing that suffuse trains."""

from suffuse.recipes import digits, judges

__all__ = ["digits", "judges"]
