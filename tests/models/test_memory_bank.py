import torch
from torch.nn import functional as F

from slowfast.models.memory_bank import MemoryBank


def test_features_start_with_a_length_of_about_one():
    torch.manual_seed(0)
    bank = MemoryBank(50, 128)
    assert bank.memory.shape == (50, 128)
    assert bank.memory.abs().max() <= (3 / 128) ** 0.5
    torch.testing.assert_close(bank.features.norm(dim=1), torch.ones(50), rtol=0.2, atol=0)


def test_rows_take_the_features_given_for_them():
    bank = MemoryBank(6, 3, time_axis=True)
    assert bank.memory.shape == (6, 1, 3)
    before = bank.features.clone()
    features = torch.tensor([[3.0, 0.0, 4.0], [0.0, 2.0, 0.0]])
    bank.update(torch.tensor([4, 1]), features)
    torch.testing.assert_close(bank.features[[4, 1]], F.normalize(features, dim=1))
    assert torch.equal(bank.features[[0, 2, 3, 5]], before[[0, 2, 3, 5]])


def test_a_row_named_twice_takes_the_last():
    bank = MemoryBank(3, 2)
    bank.update(torch.tensor([2, 0, 2]), torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    assert bank.memory[2].tolist() == [0.0, 1.0]
    assert bank.memory[0].tolist() == [1.0, 0.0]


def test_rows_may_move_a_part_of_the_way():
    bank = MemoryBank(2, 2)
    bank.memory.copy_(torch.eye(2))
    bank.update(torch.tensor([0]), torch.tensor([[0.0, 1.0]]), rate=0.25)
    torch.testing.assert_close(bank.memory[0], F.normalize(torch.tensor([0.75, 0.25]), dim=0))


def test_another_length_starts_anew_and_the_same_keeps_all():
    bank = MemoryBank(4, 2, time_axis=True)
    before = bank.memory.clone()
    bank.resize(4)
    assert torch.equal(bank.memory, before)
    bank.resize(7)
    assert bank.memory.shape == (7, 1, 2)
    assert len(bank) == 7
    assert list(bank.state_dict()) == ["memory"]
