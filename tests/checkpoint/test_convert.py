import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from fill import fill_tensor

from slowfast.checkpoint.caffe2_names import model_name
from slowfast.checkpoint.convert import (
    append_axes,
    clear_names,
    convert_transformer,
    expand_sub_bn,
    fit_state,
    fold_sub_bn,
    from_caffe2,
    inflate_convolutions,
    interpolate_positions,
    match_projections,
)
from slowfast.models.mvit import joint_table

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/checkpoint/checkpoint.json").read_text())


def empty(**shapes):
    return {name.replace("__", "."): torch.empty(shape) for name, shape in shapes.items()}


def test_clearing_removes_the_first_occurrence_of_each_pattern_in_turn():
    for name, wanted in GOLDEN["clear_name_pattern"]["examples_patterns_backbone._then_module."]:
        assert list(clear_names({name: torch.zeros(1)}, ["backbone.", "module."])) == [wanted]


def test_names_of_a_wrapped_network_lose_the_wrapper():
    state, target = empty(module__a=(2,), module__b=(1,)), empty(a=(2,), b=(1,))
    assert fit_state(state, target).keys() == {"a", "b"}
    assert fit_state(state, state).keys() == state.keys()
    assert fit_state(state | empty(c=(1,)), target).keys() == {*state, "c"}


def test_inflation_equals_reference():
    golden = GOLDEN["inflate"]
    state = {name: torch.tensor(values).reshape(shape) for name, (shape, values) in golden["in_2d"].items()}
    target = {name: torch.empty(shape) for name, shape in golden["in_3d_shapes"].items()}
    inflated = inflate_convolutions(state, target)
    for name, (shape, values) in golden["out"].items():
        if name == "c":  # another shape: passed on, so that loading reports it
            assert torch.equal(inflated[name], state[name])
        else:
            assert list(inflated[name].shape) == shape
            assert inflated[name].flatten().tolist() == pytest.approx(values)


def test_kernel_of_other_width_is_not_inflated():
    state = {"w": torch.zeros(2, 3, 7, 7)}
    assert inflate_convolutions(state, {"w": torch.empty(2, 3, 5, 3, 3)})["w"] is state["w"]


ADAPTED = [
    pytest.param(case, name, entry, id=f"{case}-{name}")
    for case, entries in GOLDEN["adapted"].items()
    for name, entry in entries.items()
]


@pytest.mark.parametrize(("case", "name", "entry"), ADAPTED)
def test_transformer_entries_of_other_shape_equal_reference(case, name, entry):
    state = {name: fill_tensor(name, torch.empty(entry["shape_from"]), 0.7)}
    target = {name: torch.empty(entry["shape_to"])}
    adapted = fit_state(state, target, image_init=case.startswith("image_init"))[name]
    assert list(adapted.shape) == entry["shape_to"]
    assert adapted.flatten()[:8].tolist() == pytest.approx(entry["first8"], rel=1e-5, abs=1e-7)
    assert adapted.double().sum().item() == pytest.approx(entry["sum"], rel=1e-5)
    assert adapted.double().abs().sum().item() == pytest.approx(entry["abs_sum"], rel=1e-6)


def test_patch_and_pooling_kernels_change_only_where_asked():
    state = {"patch_embed.proj.weight": torch.ones(4, 3, 7, 7)}
    target = {"patch_embed.proj.weight": torch.empty(4, 3, 3, 7, 7)}
    assert fit_state(state, target)["patch_embed.proj.weight"].ndim == 4
    assert fit_state(state, target, image_init=True)["patch_embed.proj.weight"].shape == (4, 3, 3, 7, 7)


def test_video_transformer_to_images_sums_time_and_joins_positions():
    state = {
        "patch_embed.proj.weight": torch.ones(4, 3, 3, 7, 7),
        "pos_embed_spatial": torch.full((1, 9, 4), 2.0),
        "pos_embed_temporal": torch.zeros(1, 8, 4),
        "pos_embed_class": torch.full((1, 1, 4), 5.0),
    }
    converted = convert_transformer(state, empty(patch_embed__proj__weight=(4, 3, 7, 7), pos_embed=(1, 10, 4)))
    assert converted.keys() == {"patch_embed.proj.weight", "pos_embed"}
    assert converted["patch_embed.proj.weight"].unique().tolist() == [3.0]
    assert converted["pos_embed"][0, :, 0].tolist() == [5.0] + [2.0] * 9


@pytest.mark.parametrize("old", [(2, 4, 4), (3, 2, 2)])
@pytest.mark.parametrize("has_cls", [False, True])
def test_joint_positions_are_resized_as_the_forward_pass_does(old, has_cls):
    new, cls = (3, 4, 4), {"cls_token": torch.zeros(1, 1, 8)} if has_cls else {}
    table = torch.randn(1, has_cls + math.prod(old), 8)
    target = {name: torch.empty(1, has_cls + math.prod(new), 8) for name in ("pos_embed", "decoder_pos_embed")}
    state = {**cls, "pos_embed": table, "decoder_pos_embed": table}
    resized = interpolate_positions(state, {**cls, **target}, new)
    for name in target:
        torch.testing.assert_close(resized[name], joint_table(table, old, new))


def test_joint_positions_of_an_unknown_grid_are_left():
    table = torch.zeros(1, 2 * 4 * 4, 8)  # or 8 * 2 * 2
    target = {"pos_embed": torch.empty(1, 8 * 4 * 4, 8)}
    assert interpolate_positions({"pos_embed": table}, target, (8, 4, 4))["pos_embed"] is table


def test_fixed_positions_stay_the_targets_own():
    state, own = {"pos_embed": torch.zeros(1, 4, 8)}, {"pos_embed": torch.ones(1, 8, 8)}
    assert fit_state(state, own, grid=(8, 1, 1), fixed=["pos_embed"])["pos_embed"] is own["pos_embed"]
    same = {"pos_embed": torch.ones(1, 4, 8)}
    assert fit_state(state, same, fixed=["pos_embed"])["pos_embed"] is state["pos_embed"]


def test_joint_positions_without_a_grid_and_tables_that_are_not_square_are_left():
    for name, old, new in (("pos_embed", (1, 17, 4), (1, 37, 4)), ("pos_embed_spatial", (1, 8, 4), (1, 16, 4))):
        state = {name: torch.zeros(old)}
        assert interpolate_positions(state, {name: torch.empty(new)})[name] is state[name]


def test_projections_are_joined_and_cut():
    joined = {"attn.qkv.weight": torch.randn(6, 2), "attn.qkv.bias": torch.randn(6), "q": torch.ones(1)}
    parts = {f"attn.{x}.{leaf}": torch.empty(0) for x in "qkv" for leaf in ("weight", "bias")}
    cut = match_projections(joined, parts)
    assert cut.keys() == parts.keys() | {"q"}
    assert torch.equal(cut["attn.k.weight"], joined["attn.qkv.weight"][2:4])
    again = match_projections(cut, joined)
    assert again.keys() == joined.keys()
    assert all(torch.equal(again[name], joined[name]) for name in joined)


def test_projections_that_are_not_whole_are_left():
    state = {"attn.q.weight": torch.empty(2, 2), "attn.k.weight": torch.empty(2, 2)}
    assert match_projections(state, {"attn.qkv.weight": torch.empty(6, 2)}) == state


def test_missing_last_axes_are_appended():
    state = {"w": torch.ones(2, 3), "v": torch.ones(2)}
    appended = append_axes(state, {"w": torch.empty(2, 3, 1, 1, 1), "v": torch.empty(2, 3)})
    assert appended["w"].shape == (2, 3, 1, 1, 1)
    assert appended["v"].shape == (2,)


def test_sub_batch_norm_is_saved_as_batch_norm_and_back():
    model = {name: torch.empty(shape) for name, shape in GOLDEN["sub_bn"]["model_keys"]}
    folded = fold_sub_bn(model)
    assert [[name, list(tensor.shape)] for name, tensor in folded.items()] == GOLDEN["sub_bn"]["saved_keys"]

    bn = "s1.pathway0_stem.bn"
    plain = {name: torch.arange(tensor.numel()).float() for name, tensor in folded.items() if name.startswith(bn)}
    expanded = expand_sub_bn(plain, model)
    assert expanded.keys() == {name for name in model if name.startswith(bn)}
    assert torch.equal(expanded[f"{bn}.bn.running_mean"], plain[f"{bn}.running_mean"])
    assert torch.equal(expanded[f"{bn}.split_bn.running_mean"], plain[f"{bn}.running_mean"].repeat(2))
    assert fold_sub_bn(expanded).keys() == plain.keys()


def test_sub_batch_norm_under_any_layer_name_is_folded():
    state = empty(norm_a__weight=(2,), norm_a__bn__running_mean=(2,), norm_a__split_bn__running_mean=(4,))
    assert list(fold_sub_bn(state)) == ["norm_a.weight", "norm_a.running_mean"]
    # The original's files keep the inner name there and lose the splits.
    kept = empty(norm_a__weight=(2,), norm_a__bn__running_mean=(2,))
    assert expand_sub_bn(kept, state)["norm_a.split_bn.running_mean"].shape == (4,)


def test_layers_that_only_look_like_sub_batch_norm_are_kept():
    state = empty(s1__bn__running_mean=(2,), s1__bn__weight=(2,))
    assert list(fold_sub_bn(state)) == list(state)
    assert list(expand_sub_bn(state, state)) == list(state)


def test_statistics_that_the_file_lacks_stay_missing_and_longer_vectors_are_not_filled():
    target = empty(bn__bn__running_mean=(2,), bn__split_bn__running_mean=(4,), head__bias=(800,))
    assert list(expand_sub_bn(empty(head__bias=(400,)), target)) == ["head.bias"]
    assert expand_sub_bn(empty(head__bias=(400,)), target)["head.bias"].shape == (400,)


def test_caffe2_names_equal_reference():
    ignored = ("momentum", "lr", "model_iter")
    for blob, wanted in GOLDEN["caffe2_pairs"]:
        assert model_name(blob) == (None if blob.endswith(ignored) else wanted), blob


@pytest.mark.parametrize("blob", ["", "w", "fc1000_w", "res2_w", "conv1_w_momentum", "conv1_", "t_"])
def test_unknown_blobs_have_no_name(blob):
    assert model_name(blob) is None


def test_caffe2_blobs_become_tensors():
    state = from_caffe2({"pred_w": np.ones((2, 3), np.float32), "lr": np.float32(0.1), "pred_w_momentum": np.ones(2)})
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {"head.projection.weight": (2, 3)}
