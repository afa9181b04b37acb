import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from slowfast.datasets import clips
from slowfast.datasets.batch import Request, collate
from slowfast.datasets.build import build_dataset, build_loader
from slowfast.datasets.sources import DecodeError, VideoFile, VideoInfo


@pytest.fixture
def count_reads(monkeypatch):
    """Paths of the videos read so far, one entry per call."""
    paths = []
    read = VideoFile.read
    monkeypatch.setattr(VideoFile, "read", lambda self, wanted: (paths.append(self.path), read(self, wanted))[1])
    return paths


@pytest.fixture
def mixed_folder(tmp_path, make_video):
    """Two good videos between two broken ones."""
    for name, offset in (("good0.mp4", 0), ("good1.mp4", 40)):
        make_video(tmp_path / name, 40, offset=offset)
    (tmp_path / "broken0.mp4").write_bytes(b"")
    (tmp_path / "broken1.mp4").write_text("no video")
    for split in ("train", "val", "test"):
        (tmp_path / f"{split}.csv").write_text("broken0.mp4 0\ngood0.mp4 1\nbroken1.mp4 0\ngood1.mp4 2\n")
    return tmp_path


def test_a_sample_is_a_function_of_its_request(video_folder, small_cfg):
    dataset = build_dataset("kinetics", small_cfg(video_folder), "train")
    assert (len(dataset), dataset.num_views, dataset.records[1].label) == (6, 1, 1)
    first = dataset[Request(1, epoch=0)]
    again = build_dataset("Kinetics", small_cfg(video_folder), "train")[1]
    assert torch.equal(first.clip, again.clip)
    assert torch.equal(first.time, again.time)
    assert (first.index, first.label, first.bad) == (1, 1, ())
    assert first.clip.shape == (3, 4, 24, 24)
    assert first.time.shape == (1, 3)
    other = [dataset[Request(1, epoch)].time[0, 0].item() for epoch in range(1, 6)]
    assert len({first.time[0, 0].item(), *other}) == 6
    seeded = build_dataset("kinetics", small_cfg(video_folder, "RNG_SEED", 5), "train")[1]
    assert seeded.time[0, 0] != first.time[0, 0]


def test_a_request_may_ask_for_a_smaller_crop(video_folder, small_cfg):
    dataset = build_dataset("kinetics", small_cfg(video_folder), "train")
    assert dataset[Request(0, 0, crop_size=12)].clip.shape == (3, 4, 12, 12)


def test_training_clips_hold_the_frames_of_their_time(video_folder, small_cfg, clip_numbers):
    dataset = build_dataset("kinetics", small_cfg(video_folder), "train")
    for epoch in range(5):
        sample = dataset[Request(2, epoch)]
        numbers = [number - 10 for number in clip_numbers(sample.clip)]  # video c starts at 10
        assert numbers == sorted(numbers)
        start, end, gap = sample.time[0].tolist()
        assert end - start == pytest.approx(4 * 3 / 30 * 25 - 1)
        assert all(start - 1 <= number <= end + 1 for number in numbers)
        assert gap == 0


def test_validation_is_the_centre_clip_in_every_epoch(video_folder, small_cfg, clip_numbers):
    dataset = build_dataset("kinetics", small_cfg(video_folder), "val")
    first, later = dataset[Request(0, 0)], dataset[Request(0, 7)]
    assert torch.equal(first.clip, later.clip)
    assert first.time[0, 0] == 15  # (40 - 10) // 2
    assert clip_numbers(first.clip) == [15, 18, 21, 24]
    jumping = build_dataset("kinetics", small_cfg(video_folder, "DATA.VAL_RANDOM_VIEW", True), "val")
    assert not torch.equal(jumping[Request(0, 0)].clip, jumping[Request(0, 7)].clip)


@pytest.mark.parametrize("backend", ["torchvision", "pyav"])
def test_test_rows_are_views_in_order(video_folder, small_cfg, clip_numbers, backend):
    dataset = build_dataset("kinetics", small_cfg(video_folder, "DATA.DECODING_BACKEND", backend), "test")
    assert (len(dataset), dataset.num_views, dataset.num_videos) == (36, 6, 36)
    samples = [dataset[row] for row in range(6, 12)]  # video b starts at 5
    assert [sample.index for sample in samples] == list(range(6, 12))
    assert {sample.label for sample in samples} == {1}
    assert {sample.clip.shape for sample in samples} == {(3, 4, 32, 32)}
    starts = [clip_numbers(sample.clip)[0] - 5 for sample in samples]
    assert starts[:3] == [0, 0, 0]
    assert starts[3] == starts[4] == starts[5] == 15 + (backend == "pyav")


def test_one_decode_serves_all_views_and_any_order_gives_the_same(video_folder, small_cfg, count_reads):
    dataset = build_dataset("kinetics", small_cfg(video_folder), "test")
    in_order = [dataset[row].clip for row in range(12)]
    assert len(count_reads) == 2
    shuffled = torch.randperm(12, generator=torch.Generator().manual_seed(0)).tolist()
    assert all(torch.equal(dataset[row].clip, in_order[row]) for row in shuffled)


def test_a_video_too_large_to_hold_is_read_in_parts(video_folder, small_cfg, count_reads, monkeypatch):
    cfg = small_cfg(video_folder, "TEST.NUM_ENSEMBLE_VIEWS", 5)
    whole = [build_dataset("kinetics", cfg, "test")[row].clip for row in range(15)]
    count_reads.clear()
    monkeypatch.setattr(clips, "FRAMES_IN_MEMORY", 8 * 32 * 43 * 3)
    dataset = build_dataset("kinetics", cfg, "test")
    assert all(torch.equal(dataset[row].clip, whole[row]) for row in range(15))
    assert 1 < len(count_reads) < 5


def test_what_is_held_stays_in_its_process(video_folder, small_cfg):
    dataset = build_dataset("kinetics", small_cfg(video_folder), "test")
    clip = dataset[3].clip
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[3].clip, clip)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_bad_video_is_replaced_by_rule_and_named(mixed_folder, small_cfg, split):
    dataset = build_dataset("kinetics", small_cfg(mixed_folder), split)
    sample = dataset[Request(0, 3)]
    again = dataset[Request(0, 3)]
    assert sample.index in (1, 3)
    assert sample.label == sample.index // 2 + 1  # of the video that is seen
    assert sample.bad[0] == (0, str(mixed_folder / "broken0.mp4"), "the file is empty")
    assert (sample.index, sample.bad) == (again.index, again.bad)
    assert torch.equal(sample.clip, again.clip)
    assert dataset[Request(1, 3)].bad == ()


def test_replacements_differ_between_epochs(mixed_folder, small_cfg):
    dataset = build_dataset("kinetics", small_cfg(mixed_folder), "train")
    assert {dataset[Request(0, epoch)].index for epoch in range(12)} == {1, 3}


def test_too_many_bad_videos_stop_training_with_their_names(mixed_folder, small_cfg):
    (mixed_folder / "train.csv").write_text("broken0.mp4 0\nbroken1.mp4 1\n")
    dataset = build_dataset("kinetics", small_cfg(mixed_folder), "train")
    with pytest.raises(RuntimeError, match=r"10 videos in a row.*broken0.mp4: the file is empty"):
        dataset[0]


def test_a_bad_test_video_stops_the_test_with_path_and_view(mixed_folder, small_cfg):
    dataset = build_dataset("kinetics", small_cfg(mixed_folder), "test")
    with pytest.raises(DecodeError, match=r"broken0.mp4: the file is empty \(clip 1 of 2, crop 0 of 3\).*SKIP_BAD"):
        dataset[3]
    assert dataset[6].label == 1


def test_a_bad_test_video_is_skipped_where_asked(mixed_folder, small_cfg):
    dataset = build_dataset("kinetics", small_cfg(mixed_folder, "TEST.SKIP_BAD_VIDEOS", True), "test")
    samples = [dataset[row] for row in range(len(dataset))]
    assert [sample.clip is None for sample in samples] == ([True] * 6 + [False] * 6) * 2
    assert samples[4].bad == ((4, str(mixed_folder / "broken0.mp4"), "the file is empty"),)


def test_a_frame_folder_stands_in_for_a_video(tmp_path, small_cfg, clip_numbers):
    (tmp_path / "frames").mkdir()
    for number in range(40):
        grey = round(2 * number * 255 / 219)
        Image.new("L", (40, 32), grey).save(tmp_path / f"frames/{number}.jpg", quality=100)
    (tmp_path / "test.csv").write_text("frames 2\n")
    dataset = build_dataset("kinetics", small_cfg(tmp_path), "test")
    assert clip_numbers(dataset[0].clip) == [0, 3, 7, 11]
    assert clip_numbers(dataset[5].clip) == [14, 17, 21, 25]


def test_jittered_rate_and_stride_stay_in_their_ranges():
    info = VideoInfo(1000, 10, 10)  # a frame folder: spans are counted
    spec = clips.ClipSpec(8, 4, 30)
    rng = np.random.default_rng(0)
    spans = [clips.RateRule(spec, max_stride=8)(info, None, rng) for _ in range(50)]
    assert {round(choice.end - choice.start + 1) for choice in spans} == {32, 40, 48, 56, 64}
    spans = [clips.RateRule(spec, fps_jitter=10)(info, None, rng) for _ in range(50)]
    assert {round(choice.end - choice.start + 1) for choice in spans} == {32}  # a folder has no rate to compare with


def test_the_first_sample_may_be_repeated(video_folder, small_cfg, count_reads):
    dataset = build_dataset("kinetics", small_cfg(video_folder, "DATA.DUMMY_LOAD", True), "train")
    first = dataset[4]
    assert torch.equal(dataset[2].clip, first.clip)
    assert dataset[2].index == 2
    assert len(count_reads) == 1


def test_a_row_that_is_not_there(video_folder, small_cfg):
    with pytest.raises(IndexError, match="row 6 of 6"):
        build_dataset("kinetics", small_cfg(video_folder), "train")[6]


def several_cfg(small_cfg, folder, *opts):
    """Two random clips of 4 frames, every second one, of videos of 40."""
    return small_cfg(folder, "DATA.TRAIN_CROP_NUM_TEMPORAL", 2, "DATA.SAMPLING_RATE", 2, *opts)


def test_copies_of_a_clip_differ_and_are_decoded_once(video_folder, small_cfg, count_reads, clip_numbers):
    dataset = build_dataset("kinetics", small_cfg(video_folder, "AUG.NUM_SAMPLE", 3), "train")
    samples = dataset[Request(2, 1)]
    assert len(count_reads) == 1
    assert [sample.index for sample in samples] == [2, 2, 2]
    assert len({tuple(clip_numbers(sample.clip)) for sample in samples}) == 1  # the same frames
    assert all(torch.equal(sample.time, samples[0].time) for sample in samples)
    again = dataset[Request(2, 1)]
    assert all(torch.equal(one.clip, two.clip) for one, two in zip(samples, again))
    # The first of them is what the data set would give without copies.
    assert torch.equal(samples[0].clip, build_dataset("kinetics", small_cfg(video_folder), "train")[Request(2, 1)].clip)


def test_copies_are_neighbours_in_the_batch(video_folder, small_cfg):
    cfg = small_cfg(video_folder, "AUG.NUM_SAMPLE", 2, "TRAIN.BATCH_SIZE", 3, "AUG.ENABLE", True)
    loader = build_loader(cfg, "train")
    assert len(loader) == 2
    batch = next(iter(loader))
    assert len(batch) == 6
    assert batch.clips.shape == (6, 3, 4, 24, 24)
    assert batch.times.shape == (6, 1, 3)
    assert batch.index[0::2].tolist() == batch.index[1::2].tolist()
    assert len(set(batch.index.tolist())) == 3


def test_several_clips_come_in_any_order_with_their_gaps(video_folder, small_cfg, count_reads, clip_numbers):
    dataset = build_dataset("kinetics", several_cfg(small_cfg, video_folder, "DATA.TRAIN_CROP_NUM_SPATIAL", 2), "train")
    orders = set()
    for epoch in range(12):
        samples = dataset[Request(0, epoch)]
        assert len(samples) == 4
        times = [sample.time[0].tolist() for sample in samples]
        assert times[0] == times[1]  # clip by clip
        assert times[2] == times[3]
        first, second = sorted([times[0], times[2]])
        assert first[2] == 0
        assert second[2] == pytest.approx(second[0] - first[1])
        orders.add(times[0] == first)
        for sample, (start, end, _) in zip(samples, times):
            assert all(start - 1 <= number <= end + 1 for number in clip_numbers(sample.clip))
    assert orders == {True, False}
    assert len(count_reads) == 12


def test_gaps_between_clips_stay_within_their_bounds(video_folder, small_cfg):
    bounds = ["CONTRASTIVE.DELTA_CLIPS_MIN", 3.0, "CONTRASTIVE.DELTA_CLIPS_MAX", 6.0]
    for backend in ("torchvision", "pyav"):
        cfg = several_cfg(small_cfg, video_folder, *bounds, "DATA.DECODING_BACKEND", backend)
        dataset = build_dataset("kinetics", cfg, "train")
        gaps = [max(sample.time[0, 2].item() for sample in dataset[Request(0, epoch)]) for epoch in range(20)]
        assert min(gaps) >= 3
        assert max(gaps) <= 6


def test_views_of_a_video_are_one_sample(video_folder, small_cfg, clip_numbers):
    opts = ["DATA.TRAIN_CROP_NUM_TEMPORAL", 2, "DATA.TRAIN_CROP_NUM_SPATIAL", 2, "DATA.RANDOM_FLIP", True]
    plain = build_dataset("kinetics", small_cfg(video_folder, *opts), "train")
    opts += ["MODEL.MODEL_NAME", "ContrastiveModel"]
    dataset = build_dataset("kinetics", small_cfg(video_folder, *opts), "train")
    sample = dataset[Request(4, 1)]
    for view, time, other in zip(sample.clip, sample.time, plain[Request(4, 1)], strict=True):
        assert torch.equal(view, other.clip)  # the same clips as samples of their own
        assert torch.equal(time, other.time[0])
    batch = collate([sample, dataset[Request(5, 1)]])
    assert [view.shape for view in batch.clips] == [(2, 3, 4, 24, 24)] * 4
    assert batch.times.shape == (2, 4, 3)
    assert (batch.index.tolist(), len(batch)) == ([4, 5], 2)
    for row in range(2):
        for view, (start, end, _) in zip(batch.clips, batch.times[row]):
            numbers = [number - 5 * (4 + row) for number in clip_numbers(view[row])]  # see video_folder
            assert all(start - 1 <= number <= end + 1 for number in numbers)
    one = build_dataset("kinetics", small_cfg(video_folder, "MODEL.MODEL_NAME", "ContrastiveModel"), "train")[0]
    assert [view.shape for view in one.clip] == [(3, 4, 24, 24)]


def test_a_rule_of_one_clip_refuses_several(video_folder, small_cfg):
    dataset = build_dataset("kinetics", several_cfg(small_cfg, video_folder), "train")
    with pytest.raises(ValueError, match=r"DATA.TRAIN_CROP_NUM_TEMPORAL=2"):
        clips.ClipDataset(dataset.records, lambda info, view, rng: None, dataset.transform)


def test_a_replaced_video_is_reported_once(mixed_folder, small_cfg):
    samples = build_dataset("kinetics", small_cfg(mixed_folder, "AUG.NUM_SAMPLE", 2), "train")[Request(0, 3)]
    assert [len(sample.bad) > 0 for sample in samples] == [True, False]
    assert collate([samples]).bad == list(samples[0].bad)


def test_validation_has_no_copies(video_folder, small_cfg):
    opts = ["AUG.NUM_SAMPLE", 2, "DATA.TRAIN_CROP_NUM_TEMPORAL", 2, "DATA.TIME_DIFF_PROB", 1.0]
    plain = build_dataset("kinetics", small_cfg(video_folder), "val")[0]
    assert torch.equal(build_dataset("kinetics", small_cfg(video_folder, *opts), "val")[0].clip, plain.clip)


def test_differences_over_time_see_the_next_frame(video_folder, small_cfg):
    dataset = build_dataset("kinetics", small_cfg(video_folder, "DATA.TIME_DIFF_PROB", 1.0), "train")
    grey = (dataset[0].clip * 0.225 + 0.45) * 255
    # Each frame is 2 luma brighter than the one before: 2 * 255 / 219 in RGB, give or take the codec.
    assert grey.mean().item() == pytest.approx((255 - 2 * 255 / 219) / 2, abs=0.3)
    half = build_dataset("kinetics", small_cfg(video_folder, "DATA.TIME_DIFF_PROB", 0.5), "train")
    plain = [half[Request(0, epoch)].clip.std() > 0.01 for epoch in range(40)]
    assert 8 < sum(plain) < 32


def test_a_video_of_one_frame_has_no_difference(tmp_path, make_video, small_cfg):
    make_video(tmp_path / "one.mp4", 1)
    (tmp_path / "train.csv").write_text("one.mp4 0\n")
    sample = build_dataset("kinetics", small_cfg(tmp_path, "DATA.TIME_DIFF_PROB", 1.0), "train")[0]
    assert ((sample.clip * 0.225 + 0.45) * 255).unique().numpy() == pytest.approx(127.5)


def test_masks_travel_with_their_clips(video_folder, small_cfg):
    opts = ["AUG.GEN_MASK_LOADER", True, "AUG.MASK_RATIO", 0.4, "AUG.MASK_WINDOW_SIZE", [2, 6, 6]]
    cfg = small_cfg(video_folder, *opts, "AUG.NUM_SAMPLE", 2)
    train, val, test = (build_dataset("kinetics", cfg, split) for split in ("train", "val", "test"))
    batch = collate([train[0], train[1]])
    assert batch.mask.shape == (4, 2, 6, 6)
    assert batch.mask.flatten(1).sum(1).tolist() == [round(72 * 0.4)] * 4
    assert not torch.equal(batch.mask[0], batch.mask[1])
    assert torch.equal(val[Request(3, 0)].mask, val[Request(3, 5)].mask)
    assert torch.equal(test[Request(3, 0)].mask, test[Request(3, 5)].mask)
    assert not torch.equal(test[3].mask, test[4].mask)


def test_the_first_samples_may_be_repeated(video_folder, small_cfg):
    dataset = build_dataset("kinetics", small_cfg(video_folder, "DATA.DUMMY_LOAD", True, "AUG.NUM_SAMPLE", 2), "train")
    first = dataset[4]
    assert [torch.equal(one.clip, two.clip) for one, two in zip(first, dataset[2])] == [True, True]
    assert [sample.index for sample in dataset[2]] == [2, 2]


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_loader_sends_bytes_and_a_network_gets_floats(video_folder, small_cfg, split):
    plain = build_dataset("kinetics", small_cfg(video_folder), split)
    for batch in build_loader(small_cfg(video_folder), split):
        assert batch.clips.dtype == torch.uint8
        moved = batch.to("cpu")
        assert (moved.clips.dtype, moved.clips.is_contiguous()) == (torch.float32, True)
        for row, clip in zip(moved.index.tolist(), moved.clips):
            expected = plain[row].clip
            most = 1.6 / 255 / 0.225 if split == "train" else 0  # training is resized in 8 bits
            torch.testing.assert_close(clip, expected, rtol=0, atol=most)


@pytest.mark.parametrize("rows", [[0], [2, 3, 4], [1, 4, 7], [0, 0, 1], [3, 3, 3], [0, 1, 3]])
def test_rows_are_taken_without_a_copy_where_that_can_be(rows):
    frames = torch.arange(80).reshape(10, 8)
    taken = clips._rows_of(frames, torch.tensor(rows))
    assert torch.equal(taken, frames[rows])
    shared = taken.untyped_storage().data_ptr() == frames.untyped_storage().data_ptr()
    assert shared == (rows in ([2, 3, 4], [1, 4, 7]))
