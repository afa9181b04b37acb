import pytest

from slowfast.datasets import Charades, Kinetics, Ssv2, build_dataset
from slowfast.datasets.build import DATASET_REGISTRY


def test_the_name_answers_with_our_own_data_set(video_folder, small_cfg, caplog):
    caplog.set_level("INFO")
    theirs, ours = (build_dataset(name, small_cfg(video_folder), "train") for name in ("ptvkinetics", "kinetics"))
    assert "Ptvkinetics: read by Kinetics" in caplog.text
    assert list(theirs.records) == list(ours.records)
    assert theirs[2].clip.equal(ours[2].clip)


@pytest.mark.parametrize(("name", "native"), [("Ptvkinetics", Kinetics), ("Ptvssv2", Ssv2), ("Ptvcharades", Charades)])
def test_every_name_has_its_data_set(name, native):
    assert issubclass(DATASET_REGISTRY.get(name), native)
