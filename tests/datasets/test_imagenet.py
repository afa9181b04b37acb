import json

import numpy as np
import pytest
import torch
from fill import fill_input
from PIL import Image

from slowfast.datasets import DecodeError, build_dataset, build_loader
from slowfast.datasets.batch import Request
from slowfast.datasets.imagenet import build_image_transform, inception_box, load_image_list
from slowfast.datasets.transforms.presets import EvalTransform, Normalize


@pytest.fixture
def images(tmp_path):
    """Two classes of 60x40 images, whose red rises to the right and whose green downwards."""
    ramp = np.zeros((40, 60, 3), dtype=np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(60) * 4, np.arange(40)[:, None] * 6
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        for name, blue in (("n01", 0), ("n02", 200)):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                ramp[..., 2] = blue
                Image.fromarray(ramp).save(tmp_path / split / name / f"{name}_{number}.JPEG", quality=100)
    return tmp_path


@pytest.fixture
def image_cfg(small_cfg):
    """``small_cfg`` for images: crop 24, scaled to 32."""
    options = ["DATA.NUM_FRAMES", 1, "MODEL.NUM_CLASSES", 2]
    return lambda folder, *opts: small_cfg(folder, *options, *opts)


def test_class_folders_become_clips_of_one_frame(images, image_cfg):
    train = build_dataset("imagenet", image_cfg(images), "train")
    assert [(record.path[-12:], record.label) for record in train.records[1:4]] == [
        ("1/n01_1.JPEG", 0),
        ("1/n01_2.JPEG", 0),
        ("2/n02_0.JPEG", 1),
    ]
    sample = train[4]
    assert (sample.clip.shape, sample.clip.dtype, sample.label) == ((3, 1, 24, 24), torch.float32, 1)
    assert torch.equal(sample.clip, train[4].clip)
    test = build_dataset("imagenet", image_cfg(images), "test")
    assert (len(test), test.num_views) == (2, 1)  # however many views are asked for


def test_testing_scales_to_one_size_and_crops_the_centre_to_the_other(images, image_cfg):
    plain = image_cfg(images, "DATA.MEAN", [0.0] * 3, "DATA.STD", [1 / 255] * 3)
    for split in ("val", "test"):
        clip = build_dataset("imagenet", plain, split)[0].clip
        assert clip.shape == (3, 1, 24, 24)
        # 60x40 -> 48x32: a step to the right is 5/4 of a pixel; the crop begins at pixel 12 and row 4.
        assert clip[0, 0, 12].diff().mean().item() == pytest.approx(4 * 5 / 4, abs=0.1)
        assert clip[0, 0, 0, 0].item() == pytest.approx(4 * (12.5 * 5 / 4 - 0.5), abs=2)
        assert clip[1, 0, 0, 0].item() == pytest.approx(6 * (4.5 * 5 / 4 - 0.5), abs=2)


def test_scale_and_crop_equal_the_golden_table(golden_sampling):
    for height, width, size, scale, shape, total, absolute, first, middle, last in golden_sampling(
        "uniform_crop_with_scale_size"
    ):
        image = fill_input("imagenet_crop", (3, height, width))
        transform = EvalTransform(Normalize((0.0,) * 3, (1 / 255,) * 3), scale, size)
        clip = transform(image.permute(1, 2, 0)[None])[:, 0]
        assert list(clip.shape) == shape
        assert clip.double().sum().item() == pytest.approx(total, abs=0.05)
        assert clip.double().abs().sum().item() == pytest.approx(absolute, rel=1e-5)
        for pixel, value in (((0, 0), first), ((112, 112), middle), ((-1, -1), last)):
            assert clip[(slice(None), *pixel)].tolist() == pytest.approx(value, abs=1e-4)


def test_random_parts_keep_to_their_ranges():
    rng = np.random.default_rng(0)
    boxes = np.array([inception_box(240, 320, (0.2, 0.5), (0.75, 4 / 3), rng) for _ in range(400)])
    top, left, height, width = boxes.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 240).all()
    assert (left + width <= 320).all()
    assert 0.19 < (height * width / 240 / 320).min() < (height * width / 240 / 320).max() < 0.51
    aspect = width / height
    assert 0.73 < aspect.min() < 0.8
    assert 1.25 < aspect.max() < 1.36
    assert 0.35 < (aspect > 1).mean() < 0.65
    assert inception_box(10, 1000, (0.9, 1.0), (1.0, 1.0), rng) == (0, 495, 10, 10)


def test_lighting_moves_channels_by_reversed_components(images, image_cfg):
    vectors = [[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]  # only the first channel, which is applied last
    opts = ["DATA.TRAIN_PCA_EIGVEC", vectors, "DATA.TRAIN_PCA_EIGVAL", [1.0, 1.0, 1.0], "DATA.STD", [0.5, 0.5, 0.25]]
    (lighting,) = build_image_transform(image_cfg(images, *opts), "train").on_clip
    shifts = torch.stack(
        [lighting(torch.zeros(3, 1, 2, 2), np.random.default_rng(seed))[:, 0, 0, 0] for seed in range(300)]
    )
    assert shifts[:, :2].abs().max() == 0
    assert shifts[:, 2].std().item() == pytest.approx(0.1 / 0.25, rel=0.15)


def test_the_recipe_of_transformers(images, image_cfg):
    augmented = ["AUG.ENABLE", True, "AUG.AA_TYPE", "rand-m9-n2-mstd0.5-inc1", "AUG.INTERPOLATION", "random"]
    train = build_dataset("imagenet", image_cfg(images, *augmented, "DATA.MEAN", [0.5, 0.25, 0.1]), "train")
    assert train[0].clip.shape == (3, 1, 24, 24)
    (policy,) = train.transform.on_frames
    assert len(train.transform.on_clip) == 1  # erasing
    assert tuple(policy.fill) == (128, 64, 26)
    clips = [train[row].clip for row in range(6)]
    assert not any(torch.equal(clips[0], clip) for clip in clips[1:3])
    jitter = image_cfg(images, "AUG.ENABLE", True, "AUG.AA_TYPE", "", "AUG.COLOR_JITTER", 0.4, "AUG.RE_PROB", 0.0)
    assert build_dataset("imagenet", jitter, "train")[0].clip.isfinite().all()


def test_the_test_of_transformers_resizes_as_pil_does(images, image_cfg):
    plain = ["AUG.ENABLE", True, "DATA.MEAN", [0.0] * 3, "DATA.STD", [1 / 255] * 3, "DATA.TEST_CROP_SIZE", 28]
    image = Image.open(images / "val" / "n02" / "n02_1.JPEG")
    for ratio, size in ((0.875, (48, 32)), (0.0, (28, 28))):
        clip = build_dataset("imagenet", image_cfg(images, *plain, "DATA.IN_VAL_CROP_RATIO", ratio), "val")[3].clip
        resized = np.array(image.resize(size, Image.Resampling.BICUBIC))
        top, left = (size[1] - 28) // 2, (size[0] - 28) // 2
        expected = torch.from_numpy(resized[top : top + 28, left : left + 28]).permute(2, 0, 1)
        assert (clip[:, 0] - expected).abs().max() <= 1


ERASED = ("AUG.AA_TYPE", "rand-m9-n2-mstd0.5-inc1", "AUG.RE_PROB", 1.0)


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize(
    ("options", "grey_levels"),
    [
        ((), 1),
        (("AUG.ENABLE", True, *ERASED), 0),
        (("AUG.ENABLE", True, "AUG.AA_TYPE", "", "AUG.COLOR_JITTER", 0.4), 0),
    ],
)
def test_images_travel_as_bytes_and_are_normalised_to_the_same(images, image_cfg, split, options, grey_levels):
    named = ["TRAIN.DATASET", "imagenet", "TEST.DATASET", "imagenet", "NUM_GPUS", 0, "TRAIN.BATCH_SIZE", 2]
    cfg = image_cfg(images, *named, "DATA.MEAN", [0.1, 0.2, 0.3], "DATA.STD", [0.2, 0.2, 0.4], *options)
    batch = next(iter(build_loader(cfg, split)))
    assert batch.clips.dtype == torch.uint8
    moved = batch.to("cpu").clips
    alone = build_dataset("imagenet", cfg, split)
    for row, index in enumerate(batch.index.tolist()):
        clip = alone[Request(index, 0)].clip
        assert (moved[row] - clip).abs().max() <= grey_levels / 255 / 0.2 + 1e-5


def test_masks_lie_on_the_grid_of_tokens(images, image_cfg):
    masked = ["AUG.ENABLE", True, "AUG.AA_TYPE", "", "AUG.GEN_MASK_LOADER", True, "AUG.MASK_RATIO", 0.4]
    patches = [
        "MVIT.PATCH_2D",
        True,
        "MVIT.PATCH_STRIDE",
        [4, 4],
        "MASK.PRETRAIN_DEPTH",
        [3],
        "DATA.TRAIN_CROP_SIZE",
        32,
    ]
    pooled = ["MVIT.POOL_Q_STRIDE", [[1, 1, 2, 2], [5, 1, 2, 2]]]
    train = build_dataset("imagenet", image_cfg(images, *masked, *patches), "train")
    assert train[0].mask.shape == (1, 8, 8)
    assert 0 < train[0].mask.sum() <= round(64 * 0.4)
    assert build_dataset("imagenet", image_cfg(images, *masked, *patches, *pooled), "val")[0].mask.shape == (1, 4, 4)
    assert not train.transform.on_clip


def test_lists_of_images(images, image_cfg, tmp_path):
    rows = [{"im_path": "train/n02/n02_0.JPEG", "class": 1}, {"im_path": "train/n01/n01_2.JPEG", "class": 0}]
    file = tmp_path / "lists" / "train.json"
    file.parent.mkdir()
    file.write_text(json.dumps(rows))
    cfg = image_cfg(images, "DATA.PATH_TO_PRELOAD_IMDB", str(file.parent))
    records = build_dataset("imagenet", cfg, "train").records
    assert [(record.path, record.label) for record in records] == [
        (str(images / "train/n02/n02_0.JPEG"), 1),
        (str(images / "train/n01/n01_2.JPEG"), 0),
    ]
    with pytest.raises(FileNotFoundError, match=r"there is no list .*val\.json \(DATA.PATH_TO_PRELOAD_IMDB"):
        build_dataset("imagenet", cfg, "val")
    with pytest.raises(ValueError, match=r"entry 1: class 1 is not 0 to 0 \(MODEL.NUM_CLASSES=1\)"):
        load_image_list(str(file), num_classes=1)
    for text, message in (
        ("{", "is not JSON"),
        ("{}", "is not a JSON array"),
        ('[{"im_path": "a.jpg"}]', "entry 1: .* is not"),
        ('[{"im_path": 3, "class": 1}]', "entry 1: .* is not"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_image_list(str(file))


def test_corrupt_images_are_replaced_in_training_and_named_in_testing(images, image_cfg):
    broken = images / "train" / "n01" / "n01_0.JPEG"
    broken.write_bytes(broken.read_bytes()[:300])
    sample = build_dataset("imagenet", image_cfg(images), "train")[0]
    assert sample.index != 0
    assert sample.bad[0].path == str(broken)
    (images / "test" / "n01" / "n01_0.JPEG").write_bytes(b"")
    with pytest.raises(DecodeError, match=r"test/n01/n01_0.JPEG: the file is empty .*SKIP_BAD_VIDEOS"):
        build_dataset("imagenet", image_cfg(images), "test")[0]
    skipped = build_dataset("imagenet", image_cfg(images, "TEST.SKIP_BAD_VIDEOS", True), "test")[0]
    assert skipped.clip is None


def test_wrong_keys_are_named(images, image_cfg):
    with pytest.raises(ValueError, match=r"DATA.NUM_FRAMES=8: an image is a clip of one frame"):
        build_dataset("imagenet", image_cfg(images, "DATA.NUM_FRAMES", 8), "train")
    with pytest.raises(ValueError, match=r"TEST_CROP_SIZE=16 is less than DATA.TRAIN_CROP_SIZE=24"):
        build_dataset("imagenet", image_cfg(images, "DATA.TEST_CROP_SIZE", 16), "val")
    with pytest.raises(ValueError, match=r"names 2 classes \(n01, n02\), but MODEL.NUM_CLASSES=1000: set it to 2"):
        build_dataset("imagenet", image_cfg(images, "MODEL.NUM_CLASSES", 1000), "train")
    with pytest.raises(FileNotFoundError, match=r"no class folders with images \(.jpg, .jpeg, .png\)"):
        build_dataset("imagenet", image_cfg(images / "train" / "n01"), "train")
