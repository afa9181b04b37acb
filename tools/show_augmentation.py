#!/usr/bin/env python3
"""Draw what training sees: frames of clips of a config's training set, as decoded and after augmentation.

    python tools/show_augmentation.py --cfg A.yaml DATA.PATH_TO_DATA_DIR lists --out sheet.png

Each video gives a row of its centre as decoded and a row for every augmented clip: several epochs, and all clips and
copies of a sample. Hidden cells of masks are dimmed. With MIXUP.ENABLE the clips of the sheet are mixed as one batch.
The boxes of detection are drawn into the key frame, which is the middle one.
"""

import argparse
import copy
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from slowfast.config import ConfigError, load_cfg


@dataclass
class Row:
    """One line of the sheet: a text and frames, uint8 [T, H, W, 3]; boxes [R, 4] in pixels of frame ``key``."""

    text: str
    frames: object
    boxes: Sequence[Sequence[float]] = ()
    key: int = 0


def parse_args(args: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", required=True, metavar="FILE", help="the configuration")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="changes to it")
    parser.add_argument("--out", default="augmentation.png", metavar="FILE", help="the picture; default %(default)s")
    parser.add_argument("--videos", type=int, default=4, metavar="N", help="videos to show; default %(default)s")
    parser.add_argument("--first", type=int, default=0, metavar="ROW", help="the first of them; default %(default)s")
    parser.add_argument("--epochs", type=int, default=3, metavar="N", help="samples of each; default %(default)s")
    parser.add_argument("--frames", type=int, default=8, metavar="N", help="frames of each clip; default %(default)s")
    parser.add_argument("--width", type=int, default=128, metavar="PIXELS", help="of a frame; default %(default)s")
    options = parser.parse_intermixed_args(args)
    for name in ("videos", "epochs", "frames", "width"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} {getattr(options, name)} is not 1 or more")
    return options


def build_rows(cfg, videos: Sequence[int], epochs: int, num_frames: int) -> list[Row]:
    """The lines of the sheet for these rows of the training list."""
    import torch

    from slowfast.datasets import Request, build_dataset, collate
    from slowfast.tasks.mixup import Mixup

    dataset = build_dataset(cfg.TRAIN.DATASET, cfg, "train")
    videos = [video for video in videos if 0 <= video < len(dataset)]
    if not videos:
        raise ValueError(f"the training list has {len(dataset)} rows, the first of them is 0")
    # The same draws of time without any other change.
    plain, train = as_decoded(dataset, cfg), dataset.transform
    samples = [[dataset[Request(video, epoch)] for epoch in range(epochs)] for video in videos]
    batch = collate([sample for video in samples for sample in video])
    clips, targets = batch.clips, None
    if cfg.MIXUP.ENABLE:
        torch.manual_seed(cfg.RNG_SEED)
        clips, targets = Mixup.from_cfg(cfg)(clips, batch.labels)
    each, views = len(batch) // (len(videos) * epochs), len(clips) if isinstance(clips, list) else 1
    rows = []
    for number in range(len(batch)):
        place, within = divmod(number, each * epochs)
        video, epoch = videos[place], within // each
        if within == 0:
            record, decoded = dataset.records[video], plain[Request(video, 0)]
            text = f"{record.path}, " + (f"second {record.second:g}, " if hasattr(record, "second") else "") + "decoded"
            rows.append(Row(text, *shown(decoded.clip, decoded.boxes, train.normalize, num_frames)))
        for view in range(views):
            text = f"row {video}, epoch {epoch}, clip {within % each * views + view + 1} of {each * views}"
            if batch.times is not None:
                start, end, gap = batch.times[number, view].tolist()
                text += f", source frames {start:.0f} to {end:.0f}" + (f" (gap {gap:.0f})" if gap else "")
            if targets is not None:
                shares, classes = targets[number].topk(min(2, targets.shape[1]))
                named = zip(shares.tolist(), classes.tolist(), strict=True)
                text += ", target " + " + ".join(f"{share:.2f} of {label}" for share, label in named)
            clip = clips[view][number] if isinstance(clips, list) else clips[number]
            mask = None if batch.mask is None else batch.mask[number]
            boxes = None if batch.boxes is None else batch.boxes[batch.boxes[:, 0] == number, 1:]
            rows.append(Row(text, *shown(clip, boxes, train.normalize, num_frames, mask)))
    return rows


def as_decoded(dataset, cfg):
    """The same data set with the same draws of time and, of every video, the centre (with boxes, all of the frame)."""
    from slowfast.datasets.transforms.presets import ONE_CLIP, EvalTransform

    plain, train = copy.copy(dataset), dataset.transform
    if hasattr(dataset, "key_frames"):
        plain.transform = replace(train, crop=None, random=False, flip=False, color=None)
        return plain
    # With relative scales, any size of frame may be cut from.
    side = train.crop if cfg.DATA.TRAIN_JITTER_SCALES_RELATIVE else train.short_side()
    plain.transform, plain.plan = EvalTransform(train.normalize, side, train.crop), ONE_CLIP
    return plain


def shown(clip, boxes, normalize, num_frames: int, mask=None) -> tuple:
    """Frames of a normalised clip [C, T, H, W] as uint8 [T, H, W, 3], boxes, and the frame that these lie in.

    ``num_frames`` of them, where there are boxes the middle one among them; cells of ``mask`` are dimmed.
    """
    import torch

    if normalize.reverse_channels:
        clip = clip.flip(0)
    mean, std = (torch.tensor(values)[:, None, None, None] for values in (normalize.mean, normalize.std))
    colors = clip * std + mean
    if mask is not None:
        hidden = torch.nn.functional.interpolate(mask[None, None].float(), size=clip.shape[1:])[0]
        colors = torch.where(hidden > 0, colors * 0.2, colors)
    chosen, key = torch.linspace(0, clip.shape[1] - 1, min(num_frames, clip.shape[1])).long(), 0
    if boxes is not None:
        key = int((chosen - clip.shape[1] // 2).abs().argmin())
        chosen[key] = clip.shape[1] // 2
    frames = (colors[:, chosen].clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 3, 0)
    return frames, () if boxes is None else boxes.tolist(), key


def draw_sheet(rows: Sequence[Row], width: int):
    """The sheet as a PIL image, every frame ``width`` pixels wide."""
    from PIL import Image, ImageDraw

    gap, line = 3, 14
    heights = [line + round(row.frames.shape[1] / row.frames.shape[2] * width) + gap for row in rows]
    columns = max(len(row.frames) for row in rows)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, sum(heights) + gap), "white")
    pen, top = ImageDraw.Draw(sheet), gap
    for row, height in zip(rows, heights, strict=True):
        pen.text((gap, top), row.text, fill="black")
        for column, frame in enumerate(row.frames.numpy()):
            picture = Image.fromarray(frame).resize((width, height - line - gap))
            left, factor = gap + column * (width + gap), width / frame.shape[1]
            sheet.paste(picture, (left, top + line))
            for x1, y1, x2, y2 in row.boxes if column == row.key else ():
                corners = (left + x1 * factor, top + line + y1 * factor, left + x2 * factor, top + line + y2 * factor)
                pen.rectangle(corners, outline="yellow", width=2)
        top += height
    return sheet


def main(args: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 1 with a message where the configuration or its data are wrong."""
    options = parse_args(args)
    try:
        cfg = load_cfg(options.cfg, options.opts)
        videos = range(options.first, options.first + options.videos)
        rows = build_rows(cfg, videos, options.epochs, options.frames)
        draw_sheet(rows, options.width).save(options.out)
    except (ConfigError, ValueError, OSError, NotImplementedError) as error:
        print(error, file=sys.stderr)
        return 1
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
