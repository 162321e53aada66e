"""Things to paint and to distil into: pixels, implicit images, meshes with a texture, and what cameras see of them."""

from suffuse.fields.base import Field, Pixels, Siren

__all__ = ["Field", "Pixels", "Siren"]
