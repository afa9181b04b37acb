"""Masked pre-training: the original's names, targets, losses and trajectories; masks; what fine-tuning takes over."""

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from fill import fill_input, fill_model
from torch import nn

from slowfast.config import get_cfg, load_cfg
from slowfast.models import build_model
from slowfast.models.attention import BlockOptions
from slowfast.models.hog import HOG
from slowfast.models.masked import (
    DecoderSpec,
    MaskMViT,
    MaskSpec,
    clips_of_pixels,
    draw_order,
    fit_mask,
    hog_targets,
    normalize_tokens,
    pixel_targets,
)
from slowfast.models.mvit import PatchSpec, plan_blocks
from slowfast.models.parts import sincos_table
from slowfast.solver import build_optimizer
from slowfast.tasks.losses import multi_mse

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "models_masked"
_STORED = json.loads(gzip.decompress((GOLDEN / "state_dicts.json.gz").read_bytes()))
CONFIGS, STATE_DICTS = _STORED["configs"], _STORED["state_dicts"]
FORWARD = json.loads((GOLDEN / "forward.json").read_text())
OUTPUTS = np.load(GOLDEN / "forward.npz")
OPTIMIZERS = json.loads(gzip.decompress((GOLDEN / "optim.json.gz").read_bytes()))

MAE = "configs/masked_ssl/k400_VIT_B_16x4_MAE_PT.yaml"
MASKFEAT = "configs/masked_ssl/k400_MVITv2_S_16x4_MaskFeat_PT.yaml"
IMAGE = "configs/masked_ssl/in1k_VIT_B_MaskFeat_PT.yaml"


def make_cfg(opts):
    cfg = get_cfg()
    cfg.merge_from_list(list(opts))
    return cfg


def refill(model, gain=0.7):
    """Filled weights, but the filters of HOG as they were made."""
    kept = {name: buffer.clone() for name, buffer in model.named_buffers() if name.startswith("hogs.")}
    fill_model(model, gain)
    for name, buffer in kept.items():
        model.get_buffer(name).copy_(buffer)
    return model


def small(name, *opts):
    """The network of a golden variant, with ``opts``."""
    return refill(build_model(make_cfg([*FORWARD[f"variant:{name}"]["opts"], *opts])))


@pytest.mark.parametrize("config", CONFIGS)
def test_state_dict_has_the_original_names_shapes_and_order(config):
    with torch.device("meta"):
        model = build_model(load_cfg(ROOT / config))
    found = [[name, list(t.shape), str(t.dtype).removeprefix("torch.")] for name, t in model.state_dict().items()]
    assert found == STATE_DICTS[CONFIGS[config]["state_dict"]]
    assert sum(p.numel() for p in model.parameters()) == CONFIGS[config]["params"]


def sample(tensor):
    flat = tensor.flatten()
    return flat[torch.from_numpy(np.linspace(0, len(flat) - 1, min(512, len(flat))).astype(int))]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n.startswith("config:") else []) for n in FORWARD]
)
def test_predictions_and_targets_equal_the_original(name):
    entry = FORWARD[name]
    model = refill(build_model(make_cfg(entry["opts"])), entry["gain"]).eval()
    clips = fill_input(entry["input_tag"], tuple(entry["input_shape"]))
    inputs = [clips]
    if entry.get("mask"):
        mask = torch.tensor([[int(cell) for cell in row] for row in entry["mask"]])
        inputs = [clips, torch.empty(0), mask.view(entry["mask_from_loader_shape"])]
    torch.manual_seed(entry["torch_manual_seed_before_forward"])
    with torch.no_grad():
        preds, labels = model(inputs)
        total, parts = multi_mse(preds, labels)
    assert [list(pred.shape) for pred in preds] == entry["pred_shapes"]
    assert [list(target.shape) for target, _ in labels] == entry["label_shapes"]
    assert [weight for _, weight in labels] == [extra[0] if extra else 1.0 for extra in entry["label_extra"]]
    assert total.item() == pytest.approx(entry["loss"], rel=1e-4)
    assert [part.item() for part in parts] == pytest.approx(entry["part_losses"], rel=1e-4)
    key = name.replace("/", "|")
    for i, (pred, (target, _)) in enumerate(zip(preds, labels, strict=True)):
        torch.testing.assert_close(sample(pred), torch.from_numpy(OUTPUTS[f"{key}|pred{i}"]), rtol=1e-3, atol=2e-4)
        torch.testing.assert_close(sample(target), torch.from_numpy(OUTPUTS[f"{key}|label{i}"]), rtol=1e-3, atol=1e-4)
        assert pred.abs().sum().item() == pytest.approx(entry["pred_sums"][i][1], rel=1e-4)
        assert target.abs().sum().item() == pytest.approx(entry["label_sums"][i][1], rel=1e-4)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_parameter_groups_equal_the_original(name):
    golden, cfg = OPTIMIZERS[name], load_cfg(ROOT / name)
    with torch.device("meta"):
        model = build_model(cfg)
        optimizer = build_optimizer(model, cfg)
    names = {param: name for name, param in model.named_parameters()}
    for group, expected in zip(optimizer.param_groups, golden["groups"], strict=True):
        assert [names[param] for param in group["params"]] == expected["params"]
        assert group["weight_decay"] == expected["weight_decay"]


# ------------------------------ targets ------------------------------


def test_histograms_equal_the_original():
    found = HOG()(fill_input("hog", (2, 3, 32, 32)))
    torch.testing.assert_close(found, torch.from_numpy(OUTPUTS["hog|out"]), rtol=1e-4, atol=1e-5)


def test_histogram_of_a_ramp_has_one_direction():
    """Brightness that grows to the right has gradients of one direction; turned by 90 degrees, of another one."""
    image = torch.arange(16.0).expand(1, 3, 16, 16)
    right, down = HOG()(image)[0, 0, :, 1, 0], HOG()(image.transpose(2, 3))[0, 0, :, 0, 1]
    assert (right > 0.99).sum() == (down > 0.99).sum() == 1
    assert right.argmax() != down.argmax()
    assert torch.equal(HOG()(-image)[0, 0, :, 1, 0].argmax(), right.argmax())  # unsigned


def test_histograms_keep_full_precision_under_autocast():
    image = fill_input("hog", (1, 3, 16, 16))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(HOG()(image), HOG()(image.clone()))
        found = HOG()(image)
    assert torch.equal(found, HOG()(image))
    with pytest.raises(ValueError, match="12 x 16 pixels has no whole cells of 8"):
        HOG()(torch.rand(1, 3, 12, 16))


def test_pixels_of_a_token_in_order():
    """Pixel values tell frame, row, column and colour: 1000 u + 100 p + 10 q + c for the token at the origin."""
    axes = [torch.arange(n) for n in (3, 4, 4, 6)]
    c, t, h, w = torch.meshgrid(*axes, indexing="ij")
    clips = (1000 * t + 100 * h + 10 * w + c)[None].float()
    x = pixel_targets(clips, (2, 2, 3), every_frame=True)
    assert x.shape == (1, 2 * 2 * 2, 2 * 2 * 3 * 3)
    assert x[0, 0, :10].tolist() == [0, 1, 2, 10, 11, 12, 20, 21, 22, 100]
    assert x[0, 0, 18] == 1000
    assert x[0, 5, 0] == 2000 + 30  # second time step, first row, second column of tokens
    assert pixel_targets(clips, (2, 2, 3)).shape == (1, 8, 18)
    colours = pixel_targets(clips, (4, 2, 3), colours_first=True)
    assert colours[0, 3, :7].tolist() == [230, 240, 250, 330, 340, 350, 231]


@pytest.mark.parametrize("every_frame", [False, True])
@pytest.mark.parametrize("colours_first", [False, True])
def test_pixels_of_tokens_make_the_clip_again(every_frame, colours_first):
    clips = fill_input("masked:clips", (2, 3, 4, 6, 8))
    options = {"every_frame": every_frame, "colours_first": colours_first}
    found = clips_of_pixels(pixel_targets(clips, (2, 3, 2), **options), (2, 2, 4), (2, 3, 2), **options)
    assert torch.equal(found, clips if every_frame else clips[:, :, ::2])


@pytest.mark.parametrize("name", ["mae_small", "mae_small_no_norm_pixel", "mae_small_no_time_stride"])
def test_a_reconstruction_shows_what_is_seen_and_predicts_the_rest(name):
    model = small(name).eval()
    clips = fill_input("masked:clips", (2, 3, 8, 64, 64)) + 1.0
    torch.manual_seed(1)
    (pred,), _ = model(clips)
    torch.manual_seed(1)
    true, seen, whole = model.reconstruct(clips)
    every_frame = name.endswith("time_stride")
    assert torch.equal(true, clips if every_frame else clips[:, :, ::2])
    hidden = seen == 0
    assert hidden.float().mean().item() == pytest.approx(58 / 64)
    assert torch.equal(whole[~hidden], true[~hidden])
    stride = (2 if every_frame else 1, 16, 16)
    tokens = pixel_targets(whole, stride, every_frame=every_frame)
    covered = pixel_targets(hidden.float(), stride, every_frame=every_frame)[:, :, 0] > 0
    if name.endswith("norm_pixel"):
        torch.testing.assert_close(tokens[covered], pred)
    else:
        target = pixel_targets(true, stride, every_frame=every_frame)[covered]
        expected = pred * target.std(-1, keepdim=True) + target.mean(-1, keepdim=True)
        torch.testing.assert_close(tokens[covered], expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"VIS_MASK\.ENABLE needs MASK\.PRED_HOG False"):
        small("maskfeat_small").reconstruct(clips, torch.ones(2, 4, 4, 4))


def test_normalized_tokens_have_zero_mean_and_unit_deviation():
    x = normalize_tokens(torch.rand(5, 12) * 3 + 7)
    torch.testing.assert_close(x.mean(1), torch.zeros(5), rtol=0, atol=1e-5)
    torch.testing.assert_close(x.std(1), torch.ones(5), rtol=1e-4, atol=0)


def test_histograms_of_a_token_are_those_of_its_cells():
    clips = fill_input("masked:hog", (1, 3, 4, 32, 32))
    hog = HOG()
    x = hog_targets(clips, (2, 16, 16), hog)
    assert x.shape == (1, 2 * 2 * 2, 3 * 9 * 2 * 2)
    cells = hog(clips[:, :, 2])  # of the second token in time
    expected = cells[0, :, :, 2:4, 0:2]
    torch.testing.assert_close(x[0, 6].view(3, 9, 2, 2), expected)
    with pytest.raises(ValueError, match=r"tokens of 4 x 4 pixels hold no whole cells .* MASK\.PRED_HOG"):
        hog_targets(clips, (2, 4, 4), hog)


# ------------------------------ masks ------------------------------


def test_drawn_masks_hide_their_share():
    torch.manual_seed(0)
    order = draw_order(3, (4, 5, 5), 0.75, "token", torch.device("cpu"))
    assert order.visible.shape == (3, 25)
    together = torch.cat([order.visible, order.hidden], dim=1).sort(1).values
    assert torch.equal(together, torch.arange(100).expand(3, -1))
    assert torch.equal(order.hidden, order.hidden.sort(1).values)
    mask = order.mask((4, 5, 5))
    assert mask.shape == (3, 4, 5, 5)
    assert not mask.flatten(1).gather(1, order.visible).any()
    assert (mask.flatten(1).sum(1) == 75).all()
    assert not torch.equal(mask[0], mask[1])


def test_drawn_tubes_are_the_same_at_every_time():
    mask = draw_order(2, (4, 4, 4), 0.75, "tube", torch.device("cpu")).mask((4, 4, 4))
    assert torch.equal(mask, mask[:, :1].expand_as(mask))
    assert (mask[:, 0].flatten(1).sum(1) == 12).all()


def test_drawn_frame_masks_hide_equally_many_in_each():
    mask = draw_order(2, (3, 4, 4), 0.75, "frame", torch.device("cpu")).mask((3, 4, 4))
    assert (mask.flatten(2).sum(2) == 12).all()
    assert not torch.equal(mask[0, 0], mask[0, 1])


def test_a_mask_that_leaves_too_little_is_refused():
    with pytest.raises(ValueError, match=r"AUG\.MASK_RATIO=0.99 leaves 0 of 16 tokens; at least 2"):
        draw_order(1, (1, 4, 4), 0.99, "token", torch.device("cpu"))


def test_masks_fit_another_grid():
    mask = torch.zeros(1, 2, 2, 2, dtype=torch.bool)
    mask[0, 0, 0, 1] = mask[0, 1, 1, 0] = True
    large = fit_mask(mask, (2, 4, 4)).view(2, 4, 4)
    assert large[0].int().tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert torch.equal(fit_mask(mask, (2, 2, 2)), mask.flatten(1))
    assert torch.equal(fit_mask(mask[:, 0], (1, 2, 2)), mask[:, 0].flatten(1))  # of an image, without time


# ------------------------------ the networks ------------------------------


def test_hidden_tokens_do_not_reach_the_encoder_of_an_autoencoder():
    model = small("mae_small_loader_mask").eval()
    clips = fill_input("masked:hidden", (1, 3, 8, 64, 64))
    mask = torch.zeros(1, 4, 4, 4, dtype=torch.bool)
    mask[:, :, :2] = True
    changed = clips.clone()
    changed[..., :32, :] += 1.0  # the pixels of what is hidden
    with torch.no_grad():
        (pred,), ((target, _),) = model(clips, mask)
        (other,), ((other_target, _),) = model(changed, mask)
        assert torch.equal(pred, other)
        assert pred.shape == target.shape == other_target.shape == (32, 768)
        changed[..., 32:, :] += 1.0
        assert not torch.equal(model(changed, mask)[0][0], pred)


def test_hidden_tokens_are_replaced_for_maskfeat():
    model = small("maskfeat_image_small").eval()
    clips = fill_input("masked:hidden", (1, 3, 1, 64, 64))
    mask = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    mask[:, :, :2] = True
    changed = clips.clone()
    changed[..., :32, :] = 0.0
    with torch.no_grad():
        assert torch.equal(model(clips, mask)[0][0], model(changed, mask)[0][0])


@pytest.mark.parametrize("name", ["mae_small", "mae_small_sincos", "mae_small_dec_sep_pos"])
def test_masks_of_frames_can_be_drawn(name):
    """The original fails for every kind of positions."""
    model = small(name, "MASK.PER_FRAME_MASKING", True, "AUG.MASK_RATIO", 0.75).train()
    (pred,), ((target, weight),) = model(fill_input("masked:frames", (2, 3, 8, 64, 64)))
    assert pred.shape == target.shape == (2 * 4 * 12, 768)
    assert weight == 1.0
    pred.square().mean().backward()


def test_maskfeat_with_pooling_can_draw_masks():
    """The original fails: its mask has the grid of the patches."""
    model = small("maskfeat_small", "MASK.MAE_RND_MASK", True, "AUG.MASK_RATIO", 0.5).train()
    (pred,), ((target, _),) = model(fill_input("masked:drawn", (2, 3, 8, 64, 64)))
    assert pred.shape == target.shape == (2 * 128, 27)


def test_several_depths_predict_each_at_its_grid():
    opts = ["MASK.PRETRAIN_DEPTH", [0, 3], "MASK.PRED_HOG", False]
    model = small("maskfeat_small", *opts)
    mask = torch.zeros(1, 4, 4, 4, dtype=torch.bool)
    mask[0, 0, 0, 0] = True
    preds, labels = model(fill_input("masked:depths", (1, 3, 8, 64, 64)), mask)
    cells = [math.prod(size) // 64 for size in (model.feat_size[0], model.feat_size[3])]
    widths = [3 * stride[1] * stride[2] for stride in (model.feat_stride[0], model.feat_stride[3])]
    assert [list(pred.shape) for pred in preds] == [list(pair) for pair in zip(cells, widths, strict=True)]
    assert [weight for _, weight in labels] == [0.5, 0.5]


@pytest.mark.parametrize("pooled", [False, True])
def test_decoder_blocks_for_maskfeat_see_all_tokens(pooled):
    opts = ["MASK.HEAD_TYPE", "separate_xformer", "MASK.DECODER_DEPTH", 2, "MASK.DECODER_EMBED_DIM", 256]
    kv = ["MASK.DEC_KV_KERNEL", [1, 3, 3], "MASK.DEC_KV_STRIDE", [1, 2, 2]] if pooled else []
    model = small("maskfeat_small", *opts, *kv).train()
    names = [name for name, _ in model.pred_head.named_parameters()]
    assert "transforms.0.0.proj.weight" in names  # widens in the first block
    assert ("transforms.0.1.attn.pool_k.weight" in names) == pooled
    assert not any("rel_pos" in name or "pool_q" in name for name in names)
    mask = torch.zeros(1, 4, 4, 4, dtype=torch.bool)
    mask[..., 0] = True
    (pred,), _ = model(fill_input("masked:decoder", (1, 3, 8, 64, 64)), mask)
    pred.square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_activation_checkpoints_change_nothing():
    clips = fill_input("masked:checkpoint", (2, 3, 8, 64, 64)).double()
    grads = []
    for checkpoint in (False, True):
        model = small("mae_small", "MODEL.ACT_CHECKPOINT", checkpoint).double().train()
        torch.manual_seed(0)
        multi_mse(*model(clips))[0].backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad)


def test_half_precision_trains():
    model = small("mae_small").train()
    with torch.autocast("cpu", torch.bfloat16):
        preds, labels = model(fill_input("masked:half", (2, 3, 8, 64, 64)))
        total, _ = multi_mse(preds, labels)
    assert labels[0][0].dtype == torch.float32
    total.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_initialisation():
    opts = [*FORWARD["variant:mae_small_sincos"]["opts"], "MASK.SCALE_INIT_BY_DEPTH", True]
    torch.manual_seed(0)
    model = build_model(make_cfg(opts))
    assert not model.decoder_pos_embed.requires_grad
    torch.testing.assert_close(model.decoder_pos_embed[0, 1:], sincos_table(64, (4, 4, 4)))
    assert not model.pred_head.projections[0].bias.any()
    assert not model.pred_head.transforms[0][-1].bias.any()
    assert (model.norm.bias == 0.02).all()
    assert model.mask_token.std().item() == pytest.approx(0.02, rel=0.3)
    for layer, block in enumerate(model.blocks, start=1):
        assert block.attn.proj.weight.std().item() == pytest.approx(0.02 / math.sqrt(2 * layer), rel=0.1)
    last = model.pred_head.transforms[0][1]
    assert last.attn.proj.weight.std().item() == pytest.approx(0.02 / math.sqrt(2 * (2 + 3)), rel=0.1)
    assert last.mlp.fc2.weight.std().item() == pytest.approx(0.02 / math.sqrt(2 * 2), rel=0.1)


def test_what_does_not_decay():
    names = ["cls_token", "dec_pos_embed_class", "dec_pos_embed_spatial", "dec_pos_embed_temporal"]
    assert sorted(small("mae_small_dec_sep_pos", "MVIT.ZERO_DECAY_POS_CLS", True).no_weight_decay()) == names
    assert small("mae_small", "MVIT.ZERO_DECAY_POS_CLS", False).no_weight_decay() == set()


@pytest.mark.parametrize(("pretrained", "missing"), [("mae_small", []), ("maskfeat_image_small", ["norm"])])
def test_fine_tuning_takes_over_the_encoder(pretrained, missing):
    """All names of the encoder are those of the classifier; what is left of a pre-training is its head."""
    model = small(pretrained)
    opts = [*FORWARD[f"variant:{pretrained}"]["opts"], "MASK.ENABLE", False, "MODEL.MODEL_NAME", "MViT"]
    classifier = build_model(make_cfg([*opts, "MVIT.USE_MEAN_POOLING", True]))
    found = classifier.load_state_dict(model.state_dict(), strict=False)
    assert {name.split(".")[0] for name in found.missing_keys} == {"head", *missing}
    left = {name.split(".")[0] for name in found.unexpected_keys}
    assert left <= {"mask_token", "pred_head", "decoder_pos_embed", "decoder_embed", "hogs"}


def test_from_plain_values():
    plan = plan_blocks(2, dim=32, heads=2, grid=(1, 4, 4))
    patch = PatchSpec(dim=32, kernel=(1, 8, 8), stride=(1, 8, 8), padding=(0, 0, 0), flat=True)
    masking = MaskSpec(depths=(1,), autoencoder=True, draws=True, ratio=0.75, decoder=DecoderSpec(depth=1, dim=64))
    model = MaskMViT(plan, masking=masking, patch=patch, options=BlockOptions(), positions="joint")
    (pred,), ((target, weight),) = model(torch.rand(2, 3, 32, 32))
    assert pred.shape == target.shape == (2 * 12, 192)
    assert weight == 1.0


@pytest.mark.parametrize(
    ("name", "opts", "message"),
    [
        ("mae_small", ["MASK.PRETRAIN_DEPTH", [5]], r"MASK\.PRETRAIN_DEPTH=\[5\]: blocks are numbered 0 to 2"),
        ("mae_small", ["MASK.PRETRAIN_DEPTH", [1, 2]], r"an autoencoder predicts from one depth"),
        ("mae_small", ["MASK.PRETRAIN_DEPTH", []], r"MASK\.PRETRAIN_DEPTH=\[\]: needed are numbers"),
        ("mae_small", ["AUG.MASK_RATIO", 1.0], r"AUG\.MASK_RATIO=1\.0 with MASK\.MAE_RND_MASK"),
        ("mae_small", ["MASK.HEAD_TYPE", "both"], r"MASK\.HEAD_TYPE='both': allowed are separate, separate_xformer"),
        ("mae_small", ["MASK.ENABLE", False], r"set MASK\.ENABLE True"),
        ("mae_small", ["MVIT.REL_POS_SPATIAL", True], r"MASK\.MAE_ON=True: the encoder sees some tokens only"),
        ("mae_small", ["AUG.MASK_TUBE", True, "MASK.PER_FRAME_MASKING", True], r"are both True: choose one"),
        ("maskfeat_small", ["MASK.MAE_ON", True], r"no pooling"),
        ("maskfeat_small", ["MVIT.REV.ENABLE", True], r"MVIT\.REV\.ENABLE or DETECTION\.ENABLE: set both False"),
    ],
)
def test_what_masked_networks_cannot_do_is_said(name, opts, message):
    with pytest.raises(ValueError, match=message):
        small(name, *opts)


def test_a_missing_mask_is_said():
    with pytest.raises(ValueError, match=r"set AUG\.GEN_MASK_LOADER True, or MASK\.MAE_RND_MASK True"):
        small("maskfeat_small")(torch.rand(1, 3, 8, 64, 64))


def test_clips_of_another_size_are_divided_or_refused():
    model = small("mae_small").eval()
    with torch.no_grad():
        (pred,), _ = model(torch.rand(1, 3, 8, 96, 96))
    assert pred.shape == (4 * 36 - int(4 * 36 * 0.1), 768)
    with pytest.raises(ValueError, match=r"do not divide into tokens of \(2, 16, 16\)"):
        model(torch.rand(1, 3, 8, 72, 72))


def test_dropout_of_positions_is_not_for_autoencoders():
    model = small("mae_small", "MVIT.DROPOUT_RATE", 0.5)
    assert isinstance(model.pos_drop, nn.Dropout)
    seen = []
    model.pos_drop.register_forward_hook(lambda *args: seen.append(args))
    model.train()(torch.rand(1, 3, 8, 64, 64))
    assert not seen
