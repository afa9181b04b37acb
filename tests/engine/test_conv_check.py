import logging

import pytest
import torch
from torch.nn import functional as F

from slowfast.engine.conv_check import check_convolutions, judge, remedy, seconds, warn_of_convolutions

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_right_convolutions_pass(dtype):
    assert check_convolutions(CPU, dtype, measure=False) == []


def test_float32_is_not_looked_at():
    assert check_convolutions(CPU, None) == []


def test_wrong_convolutions_are_found():
    def wrong(x, weight, **options):
        out = F.conv3d(x, weight, **options)
        if x.dtype is torch.float32 or options["groups"] == 1:
            return out
        return out * torch.cat([torch.ones(31), torch.full((1,), 1.2)]).to(x.dtype).view(-1, 1, 1, 1)  # one channel

    (problem,) = check_convolutions(CPU, torch.bfloat16, convolve=wrong, measure=False)
    assert problem.startswith("bfloat16 convolutions are wrong here (32 to 32 channels, kernel (3, 3, 3), 32 group(s)")


@pytest.mark.parametrize(
    ("error", "slowdown", "found"),
    [
        (0.01, 0.5, []),
        (0.2, 0.5, ["wrong"]),
        (float("nan"), 0.5, ["wrong"]),
        (0.01, 20.0, ["take 20.0 times"]),
        (1.0, 9.0, ["wrong", "take 9.0 times"]),
    ],
)
def test_errors_and_times_are_judged(error, slowdown, found):
    problems = judge(error, slowdown, torch.bfloat16, "a layer")
    assert len(problems) == len(found)
    assert all(part in problem for part, problem in zip(found, problems, strict=True))


def test_the_remedy_names_keys():
    assert "TRAIN.MIXED_PRECISION_TYPE fp16 or TRAIN.MIXED_PRECISION False" in remedy(torch.bfloat16)


def test_the_cpu_is_left_alone(caplog):
    with caplog.at_level(logging.WARNING):
        warn_of_convolutions(CPU, torch.bfloat16)
    assert not caplog.records


def test_a_time_is_that_of_one_call():
    calls = []
    assert seconds(lambda: calls.append(1), CPU, repeats=3) >= 0
    assert len(calls) == 5  # two to warm up
