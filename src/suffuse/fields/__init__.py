"""Things to paint and to distil into: pixels, implicit images, meshes with a texture, and what cameras see of them."""

from suffuse.fields.base import Field, Pixels, Siren
from suffuse.fields.mesh import Mesh, cube, read_mesh, write_mesh
from suffuse.fields.raster import Camera, Render, Seen, fill, orbit, rasterise, shade
from suffuse.fields.seams import seams

__all__ = [
    "Camera",
    "Field",
    "Mesh",
    "Pixels",
    "Render",
    "Seen",
    "Siren",
    "cube",
    "fill",
    "orbit",
    "rasterise",
    "read_mesh",
    "seams",
    "shade",
    "write_mesh",
]
