import pickle

import torch

from slowfast.datasets.batch import BadVideo, Batch, Patch, Request, Sample, as_views, collate
from slowfast.datasets.transforms.presets import Normalize


def sample(index, value, **more):
    return Sample(torch.full((3, 2, 4, 4), float(value)), label=index % 3, index=index, **more)


def test_samples_are_stacked_in_order():
    times = torch.tensor([[1.0, 9.0, 0.0]])
    batch = collate([sample(7, 1, time=times), sample(4, 2, time=times + 1)])
    assert batch.clips.shape == (2, 3, 2, 4, 4)
    assert batch.clips[:, 0, 0, 0, 0].tolist() == [1.0, 2.0]
    assert batch.labels.tolist() == [1, 1]
    assert batch.labels.dtype == torch.int64
    assert batch.index.tolist() == [7, 4]
    assert batch.times.shape == (2, 1, 3)
    assert len(batch) == 2
    assert batch.boxes is None


def test_multi_hot_labels_are_stacked():
    samples = [Sample(torch.zeros(1), label=torch.tensor([0.0, 1.0]), index=0) for _ in range(3)]
    assert collate(samples).labels.shape == (3, 2)


def test_boxes_get_their_batch_row_in_front():
    first = Sample(torch.zeros(1), torch.zeros(2, 5), 0, boxes=torch.ones(2, 4), keyframes=torch.zeros(2, 2))
    second = Sample(torch.zeros(1), torch.zeros(1, 5), 1, boxes=torch.ones(1, 4), keyframes=torch.zeros(1, 2))
    batch = collate([first, second])
    assert batch.boxes[:, 0].tolist() == [0, 0, 1]
    assert batch.labels.shape == (3, 5)
    assert batch.keyframes.shape == (3, 2)


def test_a_sample_without_clip_is_left_out_but_named():
    bad = BadVideo(5, "x.mp4", "no video stream")
    batch = collate([sample(4, 1), Sample(None, 0, 5, bad=(bad,)), sample(6, 3)])
    assert batch.index.tolist() == [4, 6]
    assert batch.bad == [bad]


def test_a_batch_of_skipped_samples_is_empty():
    batch = collate([Sample(None, 0, 5, bad=(BadVideo(5, "x.mp4", "broken"),))])
    assert len(batch) == 0
    assert len(batch.bad) == 1


def test_to_moves_every_tensor_and_keeps_the_rest():
    batch = collate([sample(1, 1, bad=(BadVideo(0, "a", "b"),))])
    moved = batch.to("meta")
    assert moved.clips.device.type == moved.labels.device.type == moved.index.device.type == "meta"
    assert moved.bad == batch.bad
    assert moved.times is None
    views = Batch([torch.zeros(1), torch.zeros(1)], torch.zeros(1), torch.zeros(1)).to("meta")
    assert [clip.device.type for clip in views.clips] == ["meta", "meta"]


def test_a_request_compares_as_a_tuple_and_travels():
    assert pickle.loads(pickle.dumps(Request(3, 1))) == Request(3, 1, None)


def test_bytes_are_normalised_on_the_way_to_the_device():
    normalize = Normalize((0.1, 0.2, 0.3), (0.5, 1.0, 2.0), reverse_channels=True)
    frames = torch.randint(0, 256, (2, 4, 6, 5, 3), dtype=torch.uint8)  # [B, T, H, W, C]
    clips = frames.permute(0, 4, 1, 2, 3)
    noise = torch.randn(3, 4, 2, 3)
    patches = [(), (Patch(1, 0, 2, 3, noise), Patch(0, 0, 1, 1, torch.zeros(())))]
    samples = [Sample(clip, 0, row, normalize=normalize, patches=patches[row]) for row, clip in enumerate(clips)]
    batch = collate(samples)
    assert batch.clips.dtype == torch.uint8
    assert batch.clips.stride()[1] == 1  # as the frames lay
    assert torch.equal(batch.clips, clips)
    expected = torch.stack([normalize(clip) for clip in clips])
    expected[1, :, :, 1:3, 0:3] = noise
    expected[1, :, :, 0, 0] = 0
    moved = batch.to("cpu")
    assert moved.clips.is_contiguous()
    assert torch.equal(moved.clips, expected)
    assert torch.equal(moved.to("cpu").clips, expected)  # and only once


def test_bytes_beside_floats_do_not_cut_the_floats():
    """Videos of one batch may differ: one has the wanted size, another had to be resized."""
    normalize = Normalize((0.0,) * 3, (1.0,) * 3)
    clips = [torch.full((3, 2, 4, 4), 51, dtype=torch.uint8), torch.full((3, 2, 4, 4), 127.5)]
    for order in ([0, 1], [1, 0]):
        samples = [Sample(clips[row], 0, row, normalize=normalize) for row in order]
        moved = collate(samples).to("cpu").clips
        torch.testing.assert_close(moved[:, 0, 0, 0, 0], torch.tensor([0.2, 0.5])[order])


def test_patches_find_their_view():
    normalize = Normalize((0.0,) * 3, (1.0,) * 3)
    ones = torch.ones(())

    def sample(row):
        views = [Sample(torch.zeros(3, 2, 4, 4, dtype=torch.uint8), 0, row, normalize=normalize) for _ in range(2)]
        views[row].patches = (Patch(row, 0, 1, 4, ones),)
        return as_views(views)

    first, second = collate([sample(0), sample(1)]).to("cpu").clips
    assert first.sum() == second.sum() == 3 * 2 * 4
    assert first[0, :, :, 0].eq(1).all()
    assert second[1, :, :, 1].eq(1).all()
