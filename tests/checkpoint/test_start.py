import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from fill import fill_input, fill_model
from torch import nn

from slowfast.checkpoint import (
    CheckpointError,
    StartPlan,
    carry_out,
    checkpoint_path,
    load_checkpoint,
    load_initial_weights,
    load_test_weights,
    plan_test,
    plan_training,
    save_checkpoint,
    start_training,
    step_checkpoint_path,
)
from slowfast.checkpoint.convert import fold_sub_bn
from slowfast.config import load_cfg
from slowfast.models import build_model
from slowfast.solver import build_optimizer, set_lr

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/checkpoint/checkpoint.json").read_text())


# ---------------------------------------------------------------- plans


def touch(output_dir, epoch, task=""):
    path = Path(checkpoint_path(output_dir, epoch, task))
    path.parent.mkdir(exist_ok=True)
    torch.save({"model_state": {}}, path)
    return str(path)


def test_own_checkpoint_comes_first(tmp_path):
    own = touch(tmp_path, 3)
    assert plan_training(tmp_path, initial_path="w.pyth") == StartPlan(own, "resume")
    assert plan_training(tmp_path, initial_path="w.pyth", auto_resume=False) == StartPlan("w.pyth", "continue")


def test_the_newest_good_checkpoint_is_taken_be_it_within_an_epoch(tmp_path):
    whole = touch(tmp_path, 3)
    within = step_checkpoint_path(tmp_path, 4, 17)
    assert Path(within).name == "checkpoint_epoch_00004_step_0000017.pyth"
    shutil.copy(whole, within)
    assert plan_training(tmp_path) == StartPlan(within, "resume")
    assert plan_test(tmp_path).path == whole
    Path(within).write_bytes(Path(within).read_bytes()[:100])
    assert plan_training(tmp_path) == StartPlan(whole, "resume")
    Path(whole).unlink()
    Path(within).write_text("")
    assert plan_training(tmp_path).path is None


def test_checkpoint_of_another_task_in_the_folder_does_not_hide_the_initial_weights(tmp_path):
    touch(tmp_path, 3, "ssl")
    (tmp_path / "checkpoints/checkpoint_best.pyth").write_text("foreign")
    assert plan_training(tmp_path, initial_path="w.pyth") == StartPlan("w.pyth", "continue")


def test_linear_evaluation_takes_the_pretraining_in_the_folder(tmp_path):
    pretrained = touch(tmp_path, 3, "ssl")
    plan = plan_training(tmp_path, task="ssl_eval", initial_path="w.pyth", clear_patterns=["backbone."])
    assert plan == StartPlan(pretrained, "weights", clear_patterns=("backbone.",))
    own = touch(tmp_path, 0, "ssl_eval")
    assert plan_training(tmp_path, task="ssl_eval") == StartPlan(own, "resume")


def test_initial_weights_keep_their_options(tmp_path):
    assert plan_training(tmp_path).path is None
    options = {"inflate": True, "clear_patterns": ["a"], "image_init": True}
    assert plan_training(tmp_path, initial_path="w", **options) == StartPlan("w", "weights", True, ("a",), True)
    assert plan_training(tmp_path, initial_path="w", epoch_reset=True) == StartPlan("w", "weights")


def test_order_of_weights_to_test(tmp_path):
    with pytest.raises(CheckpointError, match=r"TEST.CHECKPOINT_FILE_PATH .* OUTPUT_DIR=.* TASK=ssl"):
        plan_test(tmp_path, task="ssl")
    assert plan_test(tmp_path, train_path="train").path == "train"
    own = touch(tmp_path, 0)
    assert plan_test(tmp_path, train_path="train").path == own
    assert plan_test(tmp_path, train_path="train", test_path="test").path == "test"


def test_unknown_type_names_its_key(tmp_path):
    with pytest.raises(CheckpointError, match=r"TRAIN.CHECKPOINT_TYPE='onnx'.*pytorch or caffe2"):
        plan_training(tmp_path, initial_type="onnx")
    with pytest.raises(CheckpointError, match=r"TEST.CHECKPOINT_TYPE='onnx'"):
        plan_test(tmp_path, test_path="x", test_type="onnx")


# ---------------------------------------------------------------- small model


def small(classes=3):
    model = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, classes))
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def saved(path, classes=3, changes=None):
    model, optimizer = small(classes)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    save_checkpoint(path, model=model, optimizer=optimizer, epoch=4, cfg_text="")
    if changes:
        content = {**torch.load(path, weights_only=True), **changes}
        torch.save({key: value for key, value in content.items() if value is not None}, path)
    return model, optimizer


def test_same_model_continues_with_optimizer_and_epoch(tmp_path):
    source, _ = saved(tmp_path / "a.pyth")
    model, optimizer = small()
    start = carry_out(StartPlan(str(tmp_path / "a.pyth"), "continue"), model, optimizer)
    assert start.epoch == 5
    assert "epoch 6" in start.note
    assert len(optimizer.state) == 4
    assert torch.equal(model[1].weight, source[1].weight)


def test_changed_head_takes_the_weights_but_neither_optimizer_nor_epoch(tmp_path):
    source, _ = saved(tmp_path / "a.pyth", classes=3)
    model, optimizer = small(classes=5)
    start = carry_out(StartPlan(str(tmp_path / "a.pyth"), "continue"), model, optimizer)
    assert (start.epoch, len(optimizer.state)) == (0, 0)
    assert "differs in 2 weights" in start.note
    assert torch.equal(model[0].weight, source[0].weight)
    with pytest.raises(CheckpointError, match=r"a\.pyth: the weights do not fit"):
        carry_out(StartPlan(str(tmp_path / "a.pyth"), "resume"), model, optimizer)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"optimizer_state": None}, "no optimizer_state"),
        ({"epoch": None}, "no epoch"),
        ({"optimizer_state": {}}, "not that of an optimiser"),
        ({"optimizer_state": [1]}, "not that of an optimiser"),
        ({"optimizer_state": {"state": {}, "param_groups": [{"params": [0]}]}}, "other parameter groups"),
        ({"optimizer_state": {"state": {}, "param_groups": [{"params": [0, 1, 2, 3], "betas": 0}]}}, "another kind"),
    ],
)
def test_state_that_does_not_fit_is_no_start_for_others_and_an_error_for_resume(tmp_path, changes, reason):
    path = str(tmp_path / "a.pyth")
    saved(path, changes=changes)
    model, optimizer = small()
    start = carry_out(StartPlan(path, "continue"), model, optimizer)
    assert (start.epoch, len(optimizer.state)) == (0, 0)
    assert reason in start.note
    with pytest.raises(CheckpointError, match=f"cannot resume from .*a.pyth.*{reason}.*TRAIN.AUTO_RESUME"):
        carry_out(StartPlan(path, "resume"), model, optimizer)


def test_gradient_scaler_is_restored(tmp_path):
    model, optimizer = small()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    path = checkpoint_path(tmp_path, 0)
    save_checkpoint(path, model=model, optimizer=optimizer, epoch=0, cfg_text="", scaler=scaler)
    fresh = torch.amp.GradScaler("cpu", init_scale=2.0)
    assert start_training(model, optimizer, fresh, output_dir=tmp_path).epoch == 1
    assert fresh.state_dict()["scale"] == 8.0
    disabled = torch.amp.GradScaler("cpu", enabled=False)
    assert start_training(model, optimizer, disabled, output_dir=tmp_path).epoch == 1


def test_start_from_nothing(tmp_path):
    start = start_training(*small(), output_dir=tmp_path)
    assert (start.epoch, start.path, start.report) == (0, None, None)


def test_test_weights_must_fit(tmp_path):
    saved(tmp_path / "a.pyth")
    model, _ = small()
    assert load_test_weights(model, output_dir=tmp_path, test_path=str(tmp_path / "a.pyth")).report.complete
    with pytest.raises(CheckpointError, match=r"a\.pyth: the weights do not fit the model"):
        load_test_weights(small(5)[0], output_dir=tmp_path, test_path=str(tmp_path / "a.pyth"))


# ---------------------------------------------------------------- real networks, against the reference


def network(*opts, base="slow_opts", gain=0.3):
    cfg = load_cfg(None, [*GOLDEN[base], *opts])
    model = fill_model(build_model(cfg), gain)
    return model, build_optimizer(model, cfg)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The reference's case: one step of SGD, saved with epoch 4."""
    model, optimizer = network(gain=0.7)
    model.train()(fill_input("step", (2, 3, 8, 64, 64))).square().mean().backward()
    optimizer.step()
    set_lr(optimizer, 0.1)
    path = checkpoint_path(tmp_path_factory.mktemp("out"), 4)
    save_checkpoint(path, model=model, optimizer=optimizer, epoch=4, cfg_text="AUG: x\n")
    return path, model, optimizer


def equal(one, two):
    return one.keys() == two.keys() and all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def test_saved_network_equals_reference(trained):
    path, _, _ = trained
    golden, content = GOLDEN["saved"], load_checkpoint(path)
    assert path.endswith(golden["file_name"])
    assert list(content) == golden["keys"]
    assert len(content["model_state"]) == golden["model_state_len"]
    assert list(content["model_state"])[:8] == golden["model_state_first_keys"]
    state = content["optimizer_state"]
    assert sorted(state) == sorted(golden["optimizer_state_keys"])
    assert len(state["state"]) == golden["num_optimizer_state"]
    assert list(state["state"][0]) == golden["optimizer_state_entry_keys"]
    assert sorted(state["param_groups"][0]) == golden["param_group_keys"]


def test_resumed_network_equals_reference(trained):
    path, source, source_optimizer = trained
    model, optimizer = network()
    set_lr(optimizer, 123.0)
    start = start_training(model, optimizer, output_dir=Path(path).parents[1])
    assert start.epoch == GOLDEN["resume"]["start_epoch_is"]
    assert equal(model.state_dict(), source.state_dict())
    assert [group["lr"] for group in optimizer.param_groups] == GOLDEN["resume"]["lr_after_load"]
    pairs = zip(optimizer.param_groups, source_optimizer.param_groups, strict=True)
    for param, other in ((a, b) for one, two in pairs for a, b in zip(one["params"], two["params"], strict=True)):
        assert torch.equal(optimizer.state[param]["momentum_buffer"], source_optimizer.state[other]["momentum_buffer"])


def test_other_class_count_equals_reference(trained, tmp_path):
    model, optimizer = network("MODEL.NUM_CLASSES", 9)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    start = start_training(model, optimizer, output_dir=tmp_path, initial_path=trained[0], epoch_reset=True)
    golden = GOLDEN["finetune_other_class_count"]
    floating = [name for name, tensor in before.items() if tensor.is_floating_point()]
    unchanged = [name for name in floating if torch.equal(before[name], model.state_dict()[name])]
    assert unchanged == golden["unchanged"]
    assert len(floating) - len(unchanged) == golden["changed"]
    assert (start.epoch, len(optimizer.state)) == (0, 0)


def test_names_are_cleared_on_request(trained, tmp_path):
    state = load_checkpoint(trained[0])["model_state"]
    prefixed = tmp_path / "backbone.pyth"
    torch.save({"model_state": {f"backbone.{name}": tensor for name, tensor in state.items()}, "epoch": 50}, prefixed)
    model, optimizer = network()
    options = {"output_dir": tmp_path, "initial_path": str(prefixed)}
    with pytest.raises(CheckpointError, match=r"(?s)0 weights loaded.* backbone: 320 not in the model"):
        start_training(model, optimizer, **options)
    start = start_training(model, optimizer, **options, clear_patterns=GOLDEN["clear_name_pattern"]["pattern"])
    assert start.report.complete
    assert equal(model.state_dict(), trained[1].state_dict())


def test_image_network_is_inflated(trained):
    state = load_checkpoint(trained[0])["model_state"]
    images = {name: tensor[:, :, 0] if tensor.ndim == 5 else tensor for name, tensor in state.items()}
    model, _ = network(base="i3d_opts")
    report = load_initial_weights(model, images, inflate=True, allow_partial=False)
    assert report.complete
    name = "s1.pathway0_stem.conv.weight"
    golden = GOLDEN["inflate"]["model"]
    assert list(images[name].shape) == golden["stem_shape_2d"]
    assert list(model.state_dict()[name].shape) == golden["stem_shape_3d"]
    assert torch.allclose(model.state_dict()[name].sum(2), images[name], atol=1e-6)


def test_sub_batch_norm_network_takes_and_gives_plain_files(trained, tmp_path):
    model, optimizer = network("BN.NORM_TYPE", "sub_batchnorm", "BN.NUM_SPLITS", 2)
    assert start_training(model, optimizer, output_dir=tmp_path, initial_path=trained[0]).epoch == 0
    state, plain = model.state_dict(), trained[1].state_dict()
    bn = "s1.pathway0_stem.bn"
    assert torch.equal(state[f"{bn}.split_bn.running_mean"], plain[f"{bn}.running_mean"].repeat(2))
    assert torch.equal(state[f"{bn}.bn.running_mean"], plain[f"{bn}.running_mean"])
    assert torch.equal(state[f"{bn}.weight"], plain[f"{bn}.weight"])
    path = checkpoint_path(tmp_path, 0)
    save_checkpoint(path, model=model, optimizer=optimizer, epoch=0, cfg_text="")
    assert load_checkpoint(path)["model_state"].keys() == plain.keys()
    assert equal(fold_sub_bn(state), load_checkpoint(path)["model_state"])


def test_caffe2_file_fills_a_whole_network(tmp_path):
    cfg = load_cfg(None, [*GOLDEN["slowfast_nln_opts"], "NUM_GPUS", 0, "RESNET.WIDTH_PER_GROUP", 8])
    state = fill_model(build_model(cfg)).state_dict()
    names = {name: blob for blob, name in GOLDEN["caffe2_pairs"]}
    blobs = {names[name]: tensor.numpy() for name, tensor in state.items() if name in names}
    blobs |= {"nonlocal_conv3_1_theta_w": blobs["nonlocal_conv3_1_theta_w"][..., 0, 0, 0], "model_iter": 3.0}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"blobs": blobs}, protocol=2))

    fresh = build_model(cfg)
    start = load_test_weights(fresh, output_dir=tmp_path, test_path=str(tmp_path / "a.pkl"), test_type="caffe2")
    assert start.report.complete
    assert equal(fresh.state_dict(), state)
