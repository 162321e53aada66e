"""Conditions read from pictures whose edges, joints and masks are known, and the measures of obedience."""

import pytest
import torch

from suffuse import control
from suffuse.data.shapes import Scenes


def square():
    image = torch.full((1, 3, 32, 32), -0.6)
    image[:, :, 8:24, 8:24] = 0.7
    return image


def test_canny_finds_the_outline_of_a_square_and_nothing_else():
    found = control.canny(square())
    assert found.shape == (1, 1, 32, 32) and set(found.unique().tolist()) == {0.0, 1.0}
    wanted = torch.zeros(1, 1, 32, 32)
    wanted[:, :, 8:24, 8:24] = 1
    wanted[:, :, 9:23, 9:23] = 0
    assert control.edge_f1(found, wanted).item() > 0.99
    assert control.canny(torch.zeros(1, 1, 16, 16)).sum() == 0
    only_blue = square()
    only_blue[:, :2] = 0.0
    assert control.edge_f1(control.canny(only_blue), wanted).item() > 0.99


def test_the_worlds_own_edges_are_found_in_its_pictures():
    drawn = Scenes(3)(0, 40)
    plain = drawn.attributes.style == 0
    found, exact = control.canny(drawn.images)[plain], drawn.edges[plain]
    assert control.edge_f1(found, exact, tolerance=2).mean() > 0.9
    assert control.edge_f1(found, exact.roll(1, 0), tolerance=2).mean() < 0.6


def test_soft_edges_grow_with_the_step_and_do_not_know_its_sign():
    image = square()
    strong, weak, turned = (control.soft_edges(v) for v in (image, 0.3 * image, -image))
    assert torch.allclose(strong, turned, atol=1e-6)
    on = strong > 0.5
    assert on.sum() > 50 and (weak[on] < strong[on]).all()
    assert strong[0, 0, 16, 16].item() == pytest.approx(0, abs=1e-6)


def test_a_scribble_holds_the_edges_it_is_made_of():
    edges = control.canny(square())
    drawn = control.scribble(edges)
    assert (drawn[edges > 0.5] > 0.5).all() and (drawn > 0.5).sum() > 1.5 * edges.sum() and drawn[0, 0, 16, 16] == 0


def test_a_skeleton_lies_on_the_figures_and_tells_left_from_right():
    scenes = Scenes(0)(0, 120)
    has = (scenes.attributes.shape == 7).any(1)
    drawn = control.skeleton(scenes.keypoints, (32, 32))
    assert drawn[~has].max() == 0 and (drawn[has].flatten(1).amax(1) > 0.9).all()
    figures = torch.where(scenes.attributes.shape == 7, 1.0, 0.0)
    mask = (scenes.masks * figures[:, :, None, None]).amax(1)
    alone = has & (scenes.attributes.count == 1)
    line = drawn[alone].amax(1) > 0.9
    assert (mask[alone][line] > 0.3).float().mean() > 0.85
    swapped = scenes.keypoints.clone()
    swapped[:, :, 1::2], swapped[:, :, 2::2] = scenes.keypoints[:, :, 2::2], scenes.keypoints[:, :, 1::2]
    other = control.skeleton(swapped, (32, 32))
    assert torch.equal(other[:, 0], drawn[:, 1]) and not torch.equal(other[has], drawn[has])


def test_depth_is_from_zero_to_one_and_masks_fill_their_slots():
    values = torch.tensor([[3.0, 5.0], [4.0, 3.0]]).view(1, 1, 2, 2)
    assert torch.equal(control.depth(values).flatten(), torch.tensor([0.0, 1.0, 0.5, 0.0]))
    assert control.depth(torch.ones(1, 1, 2, 2)).abs().max() == 0
    assert control.masks(torch.ones(1, 1, 4, 4), 3).sum((0, 2, 3)).tolist() == [16, 0, 0]
    over = control.masks(torch.tensor([0.2, 1.0, 0.5, 0.0, 0.9, 1.0, 0.3, 0.0]).view(1, 2, 2, 2), 3)
    assert torch.equal(over.flatten(2)[0], torch.tensor([[0, 1, 0.5, 0], [0.9, 0, 0, 0], [0, 0, 0, 0]]))
    assert control.masks(torch.ones(1, 0, 4, 4)).shape == (1, 2, 4, 4)
    with pytest.raises(ValueError, match="K at most 2"):
        control.masks(torch.ones(1, 3, 4, 4))


def test_f1_of_lines_whose_distance_is_known():
    line = torch.zeros(1, 1, 16, 16)
    line[..., 8] = 1
    assert control.edge_f1(line, line).item() == 1
    assert control.edge_f1(line, line.roll(1, 3)).item() == 1
    assert control.edge_f1(line, line.roll(2, 3)).item() == 0
    half = line.clone()
    half[:, :, 8:] = 0
    assert control.edge_f1(half, line, tolerance=0).item() == pytest.approx(2 / 3)
    assert control.edge_f1(0 * line, line).item() == 0 and control.edge_f1(0 * line, 0 * line).item() == 1
    with pytest.raises(ValueError, match="edge maps must both be"):
        control.edge_f1(line, line[:, :, :4])
    far = torch.zeros(2, 13, 2)
    assert torch.equal(control.joint_error(far + torch.tensor([3.0, 4.0]), far), torch.tensor([5.0, 5.0]))


def test_what_is_no_picture_is_said():
    with pytest.raises(ValueError, match=r"images must be \(B, C, H, W\)"):
        control.canny(torch.zeros(3, 8, 8))
    with pytest.raises(ValueError, match="thresholds must be"):
        control.canny(torch.zeros(1, 3, 8, 8), low=0.5, high=0.1)
    with pytest.raises(ValueError, match="width must be odd"):
        control.scribble(torch.zeros(1, 1, 8, 8), width=2)
    with pytest.raises(ValueError, match=r"keypoints must be \(B, K, J, 2\)"):
        control.skeleton(torch.zeros(2, 13, 2), (8, 8))
