import numpy as np
import pytest
import torch
from fill import fill_input

from slowfast.datasets.transforms import geometry


def rng(seed=0):
    return np.random.default_rng(seed)


def test_short_side_equals_the_golden_table(golden_sampling):
    for height, width, size, new, box in golden_sampling("short_side_scale"):
        clip, boxes = geometry.short_side_scale(
            torch.zeros(1, 1, height, width), size, torch.tensor([[10.0, 20, 100, 200]])
        )
        assert list(clip.shape[-2:]) == new
        assert boxes[0].tolist() == pytest.approx(box, abs=1e-4)


def test_crop_offsets_equal_the_golden_table(golden_sampling):
    for height, width, size, position, top, left, shape in golden_sampling("uniform_crop"):
        assert geometry.uniform_offsets(height, width, size, position) == (top, left)
        assert list(geometry.uniform_crop(torch.zeros(1, height, width), size, position)[0].shape[-2:]) == shape


def test_scaled_centre_crops_equal_the_golden_table(golden_sampling):
    for height, width, size, scale, shape, total, absolute, first, middle, last in golden_sampling(
        "uniform_crop_with_scale_size"
    ):
        image = fill_input("imagenet_crop", (3, height, width))
        image = geometry.uniform_crop(geometry.short_side_scale(image, scale)[0], size, 1)[0]
        assert list(image.shape) == shape
        assert image.double().sum().item() == pytest.approx(total, abs=1e-3)
        assert image.double().abs().sum().item() == pytest.approx(absolute, rel=1e-6)
        for pixel, expected in ((image[:, 0, 0], first), (image[:, 112, 112], middle), (image[:, -1, -1], last)):
            assert pixel.tolist() == pytest.approx(expected, abs=1e-5)


def test_scaled_crops_of_clips_equal_the_golden_table(golden_sampling):
    for height, width, scale, size, position, shape, total, absolute, inner, corner in golden_sampling(
        "spatial_sampling_test"
    ):
        clip = fill_input("spatial_sampling", (3, 2, height, width))
        clip = geometry.uniform_crop(geometry.short_side_scale(clip, scale)[0], size, position)[0]
        assert list(clip.shape) == shape
        assert clip.double().sum().item() == pytest.approx(total, abs=1e-4)
        assert clip.double().abs().sum().item() == pytest.approx(absolute, rel=1e-6)
        assert clip[:, 1, 3, 5].tolist() == pytest.approx(inner, abs=1e-5)
        assert clip[:, 0, -1, -1].tolist() == pytest.approx(corner, abs=1e-5)


def test_box_operations_equal_the_golden_values(golden_sampling):
    golden = golden_sampling("boxes")
    boxes, clip = torch.tensor(golden["in"]), torch.zeros(1, 100, 200)
    assert geometry.clip_boxes(boxes, 100, 200).tolist() == golden["clip_to_image_h100_w200"]
    assert geometry.crop(clip, 9, 7, 50, 50, boxes)[1].tolist() == golden["crop_x7_y9"]
    assert geometry.flip(clip, boxes)[1].tolist() == golden["hflip_width_200"]


def test_flip_twice_is_identity():
    clip, boxes = fill_input("flip", (3, 2, 5, 7)), torch.tensor([[1.0, 2, 3, 4]])
    once = geometry.flip(clip, boxes)
    twice = geometry.flip(*once)
    assert not torch.equal(once[0], clip)
    assert torch.equal(twice[0], clip)
    assert torch.equal(twice[1], boxes)


def test_random_crops_reach_every_offset_and_take_boxes_along():
    clip = torch.arange(8 * 8).reshape(1, 8, 8)
    offsets = set()
    for seed in range(200):
        part, boxes = geometry.random_crop(clip, 6, rng(seed), torch.tensor([[3.0, 3, 4, 4]]))
        top, left = divmod(part[0, 0, 0].item(), 8)
        assert boxes[0, :2].tolist() == [3 - left, 3 - top]
        offsets.add((top, left))
    assert offsets == {(y, x) for y in range(3) for x in range(3)}  # the last offset included


def test_a_crop_that_does_not_fit_says_so():
    with pytest.raises(ValueError, match=r"crop of 9 .* 8x7"):
        geometry.random_crop(torch.zeros(1, 7, 8), 9, rng())
    with pytest.raises(ValueError, match="position 3"):
        geometry.uniform_crop(torch.zeros(1, 7, 8), 5, 3)


def test_jittered_sizes_fill_their_range():
    for inverse in (False, True):
        sizes = [geometry.jittered_size(256, 320, rng(seed), inverse=inverse) for seed in range(500)]
        assert min(sizes) >= 256
        assert max(sizes) <= 320
        assert max(sizes) - min(sizes) > 55
    # Uniform in the inverse prefers small sizes: the median is the harmonic mean of the ends.
    assert np.median(sizes) == pytest.approx(2 / (1 / 256 + 1 / 320), abs=4)


def test_area_and_aspect_are_drawn_from_their_ranges():
    for seed in range(200):
        top, left, height, width = geometry.area_aspect_box(240, 320, (0.08, 1.0), (0.75, 1.3333), rng(seed))
        assert 0 <= top <= 240 - height
        assert 0 <= left <= 320 - width
        assert 0.07 * 240 * 320 < height * width <= 240 * 320
        assert 0.73 < width / height < 1.36


def test_area_and_aspect_that_never_fit_give_the_largest_centred_box():
    assert geometry.area_aspect_box(100, 400, (1.0, 1.0), (1.0, 2.0), rng()) == (0, 100, 100, 200)
    assert geometry.area_aspect_box(400, 100, (1.0, 1.0), (1.0, 2.0), rng()) == (150, 0, 100, 100)


@pytest.mark.parametrize(("height", "width"), [(30, 44), (17, 23), (61, 90), (24, 36)])
def test_a_window_of_a_resized_clip_is_the_same_as_resizing_and_cropping(height, width):
    clip = (fill_input("window", (3, 2, 24, 36)) * 50 + 128).clamp(0, 255).to(torch.uint8)
    whole = geometry.resize(clip.float(), height, width)
    for top, left, size in ((0, 0, 17), (height - 17, width - 17, 17), (height // 3, width // 5, 9)):
        if min(height - top, width - left) < size:
            continue
        window = geometry.resized_window(clip, height, width, top, left, size)
        torch.testing.assert_close(window, whole[..., top : top + size, left : left + size], rtol=0, atol=1e-3)


def test_a_resized_part_takes_its_boxes_along():
    clip = torch.zeros(1, 1, 40, 60)
    clip[..., 10:20, 30:50] = 1
    part, boxes = geometry.resized_crop(clip, (5, 20, 20, 40), 80, torch.tensor([[30.0, 10, 50, 20]]))
    assert boxes.tolist() == [[20, 20, 60, 60]]  # twice as wide, four times as high
    assert part.shape[-2:] == (80, 80)
    assert part[0, 0, 22:58, 22:58].min() == 1
    assert part[0, 0, :18].max() == 0
    assert part[0, 0, :, 62:].max() == 0


def test_a_moving_part_goes_evenly_from_one_place_to_the_other():
    rows, columns = torch.meshgrid(torch.arange(41.0), torch.arange(61.0), indexing="ij")
    clip = torch.stack([rows, columns])[:, None].repeat(1, 5, 1, 1)  # the value tells the place
    first, last = (0, 0, 8, 8), (33, 17, 8, 8)
    moved = geometry.shifted_resized_crop(clip, first, last, 8)
    assert moved.shape == (2, 5, 8, 8)
    assert moved[:, :, 0, 0].T.tolist() == [[0, 0], [8, 4], [16, 8], [24, 12], [33, 17]]  # rounded down
    still = geometry.shifted_resized_crop(clip, first, first, 16)
    torch.testing.assert_close(still, geometry.resized_crop(clip, first, 16)[0])
    assert torch.equal(geometry.shifted_resized_crop(clip[:, :1], first, last, 8)[:, 0], clip[:, 0, :8, :8])
