"""Students that learn from exact derivatives in time have embeddings of times without ripples."""

import torch

from suffuse.recipes import distil
from tests.recipes.test_distil import tiny


def test_who_learns_from_derivatives_in_time_is_calmed_and_the_teacher_is_not():
    torch.manual_seed(0)
    teacher, t = tiny(), torch.linspace(0.05, 0.95, 64)

    def ripples(model):
        f = model.net.told.time
        exact = torch.func.jvp(f, (t,), (torch.ones_like(t),))[1]
        return ((exact - (f(t + 5e-3) - f(t - 5e-3)) / 1e-2).norm() / exact.norm()).item()

    calm = {name for name, how in distil.METHODS.items() if how.tangents}
    assert calm == {"scm", "meanflow"}
    assert ripples(distil.student(teacher, "to")) > 0.5
    assert ripples(distil.student(teacher, "to", calm=True)) < 0.1
    assert ripples(teacher) > 0.5
    student = distil.student(teacher, "to", calm=True)
    for _ in range(3):
        student.net.told.time(t).square().mean().backward()
        with torch.no_grad():
            for p in student.net.told.time.parameters():
                p -= p.grad.sign()
    assert ripples(student) < 0.1
