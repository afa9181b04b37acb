import io
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch

from slowfast.checkpoint import CheckpointError, load_checkpoint
from slowfast.checkpoint.plain_pickle import Refused, load_plain

ARRAYS = {
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
    "by column": np.asfortranarray(np.arange(6, dtype=np.int64).reshape(2, 3)),
    "strided": np.arange(12, dtype=np.uint8).reshape(3, 4)[:, ::2],
    "foreign order": np.arange(3, dtype=">f8"),
    "half": np.ones((2, 1, 2), np.float16),
    "truth": np.array([True, False]),
    "no axis": np.array(2.5),
    "empty": np.zeros((0, 4), np.int32),
    "number": np.float32(1.5),
    "fact": np.bool_(True),
    "type": np.dtype(">i2"),
}


class Call:
    """Pickled, it is a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def check_arrays(found):
    for name, wanted in ARRAYS.items():
        assert type(found[name]) is type(wanted) or name == "type"
        assert found[name] == wanted if name == "type" else np.array_equal(found[name], wanted)
        if isinstance(wanted, np.ndarray):
            assert found[name].dtype == wanted.dtype.newbyteorder("=")
            assert found[name].flags.writeable


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("package", [b"numpy.core", b"numpy._core"])
def test_arrays_of_numbers_are_read(protocol, package):
    content = pickle.dumps(ARRAYS, protocol=protocol)
    if protocol < 4:  # later ones count the bytes of a name
        content = content.replace(b"numpy._core", b"numpy.core").replace(b"numpy.core", package)
    check_arrays(load_plain(io.BytesIO(content)))


@pytest.mark.parametrize("zipped", [True, False])
def test_arrays_of_numbers_in_a_pytorch_file_are_read(tmp_path, zipped):
    content = {"model_state": {}, "arrays": ARRAYS, "pair": (1, [ARRAYS["matrix"]])}
    torch.save(content, tmp_path / "a.pyth", _use_new_zipfile_serialization=zipped)
    checkpoint = load_checkpoint(tmp_path / "a.pyth")
    check_arrays(checkpoint["arrays"])
    assert checkpoint["pair"][1][0] is checkpoint["arrays"]["matrix"]


@pytest.mark.parametrize(
    ("order", "axes", "wanted"),
    [("C", None, [[0, 1, 2], [3, 4, 5]]), ("F", None, [[0, 2, 4], [1, 3, 5]]), ("K", (1, 0), [[0, 3], [1, 4], [2, 5]])],
)
def test_arrays_of_protocol_5_have_their_order(order, axes, wanted):
    content = Call(np._core.numeric._frombuffer, bytes(range(6)), np.dtype("u1"), (2, 3), order, axes)
    assert load_plain(io.BytesIO(pickle.dumps(content))).tolist() == wanted


@pytest.mark.parametrize(
    "arguments", [(b"123", "C"), (b"123456", "Z"), (b"123456", "K", (0, 0)), (b"123456", "K", 5), ("x" * 6, "K", None)]
)
def test_arrays_of_protocol_5_that_do_not_fit_are_refused(arguments):
    data, *order = arguments
    content = Call(np._core.numeric._frombuffer, data, np.dtype("u1"), (2, 3), *order)
    with pytest.raises(Refused):
        load_plain(io.BytesIO(pickle.dumps(content)))


def test_containers_may_hold_each_other():
    array, ring = np.ones(2), []
    ring.append((ring, array, array))
    found = load_plain(io.BytesIO(pickle.dumps({"a": ring, "b": array})))
    assert found["a"][0][0] is found["a"]
    assert found["a"][0][1] is found["a"][0][2] is found["b"]


PYTHON_2 = {
    "text": b"""(dp1
S'blobs'
p2
(dp3
S'pred_b'
p4
cnumpy.core.multiarray
_reconstruct
p5
(cnumpy
ndarray
p6
(I0
tp7
S'b'
p8
tp9
Rp10
(I1
(L2L
tp11
cnumpy
dtype
p12
(S'f4'
p13
I0
I1
tp14
Rp15
(I3
S'<'
p16
NNNI-1
I-1
I0
tp17
bI00
S'\\x00\\x00\\xc0?\\x00\\x00 @'
p18
tp19
bss.""",
    "binary": b"\x80\x02}q\x01U\x05blobsq\x02}q\x03U\x06pred_bq\x04cnumpy.core.multiarray\n_reconstruct\nq\x05"
    b"cnumpy\nndarray\nq\x06K\x00\x85U\x01bq\x07\x87Rq\x08(K\x01K\x02\x85cnumpy\ndtype\nq\tU\x02f4K\x00K\x01\x87Rq\n"
    b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T\x08\x00\x00\x00\x00\x00\xc0?\x00\x00 @tbss.",
}


@pytest.mark.parametrize("form", PYTHON_2)
def test_files_written_by_python_2_are_read(tmp_path, form):
    (tmp_path / "a.pkl").write_bytes(PYTHON_2[form])
    assert load_checkpoint(tmp_path / "a.pkl")["model_state"]["head.projection.bias"].tolist() == [1.5, 2.5]


# ---------------------------------------------------------------- what is refused


def text(value):
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def dtype(kind, flags=0, order="<", structure=b"NNN"):
    """NumPy's type with attributes set as a file likes."""
    call = b"cnumpy\ndtype\n(" + text(kind) + b"\x89\x88tR"
    return call + b"(K\x03" + text(order) + structure + b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK" + bytes([flags]) + b"tb"


DATA = b"c_codecs\nencode\n" + text("A" * 8) + text("latin1") + b"\x86R"
BEGIN = b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85NtR"


def call(kind):
    return b"cnumpy\nndarray\n(K\x01\x85" + kind + DATA + b"tR"


def built(shape, kind, data=DATA):
    return BEGIN + b"(K\x01" + shape + kind + b"\x89" + data + b"tb"


EVIL = {
    "pointers from bytes": call(dtype("O8")),
    "pointers from bytes, built": built(b"K\x01\x85", dtype("O8")),
    "numbers said to be pointers": call(dtype("f8", flags=63)),
    "an array within each number": built(b"K\x01\x85", dtype("f8", structure=text("f8") + b"NN")),
    "text": built(b"K\x01\x85", dtype("U2")),
    "an unknown order": built(b"K\x01\x85", dtype("f8", order="?")),
    "more numbers than bytes": built(b"J\xff\xff\xff\x7f\x85", dtype("f8")),
    "fewer numbers than bytes": built(b"K\x01\x85", dtype("f4")),
    "a negative length": built(b"J\xff\xff\xff\xff\x85", dtype("f8")),
    "no shape": built(b"N", dtype("f8")),
    "no type": built(b"K\x01\x85", b"N"),
    "a number for bytes": built(b"K\x01\x85", dtype("f8"), b"K\x08"),
    "attributes of a number": b"cnumpy._core.multiarray\nscalar\n" + dtype("f8") + DATA + b"\x86R}b",
    "attributes of a function": b"cnumpy._core.multiarray\n_reconstruct\n}" + text("a") + b"K\x01sb",
    "attributes of a class": b"cnumpy\ndtype\n(" + b"K\x03" + text("<") + b"NNNtb",
    "an unfinished array": BEGIN,
    "an instance of a class": b"cnumpy\nndarray\n)\x81",
}
REFUSED = set(EVIL) - {"an unfinished array", "an instance of a class"}  # they end as broken files


def write_evil(folder):
    """Each as the weight of a Caffe2 pickle and of a PyTorch file."""
    torch.save({"model_state": {}}, folder / "good.pyth")
    good = zipfile.ZipFile(folder / "good.pyth")
    for number, value in enumerate(EVIL.values()):
        (folder / f"{number}.pkl").write_bytes(b"\x80\x02}" + text("blobs") + b"}" + text("pred_w") + value + b"ss.")
        content = b"\x80\x02}" + text("model_state") + b"}" + text("w") + value + b"ss."
        with zipfile.ZipFile(folder / f"{number}.pyth", "w") as archive:
            for name in good.namelist():
                archive.writestr(name, content if name.endswith("data.pkl") else good.read(name))


READ = """
import sys
import numpy as np
from slowfast.checkpoint import CheckpointError, load_checkpoint

for path in sys.argv[1:]:
    try:
        print("read", load_checkpoint(path))
    except CheckpointError as error:
        print(str(error).replace(chr(10), " "))
assert np.dtype("f8").flags == 0
"""


@pytest.fixture(scope="module")
def evil_messages(tmp_path_factory):
    """What reading each evil file says; a process of its own does it, because NumPy would crash on some."""
    folder = tmp_path_factory.mktemp("evil")
    write_evil(folder)
    paths = [str(folder / f"{number}.{form}") for form in ("pkl", "pyth") for number in range(len(EVIL))]
    run = subprocess.run([sys.executable, "-c", READ, *paths], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, f"{run.stdout}\n{run.stderr}"
    lines = run.stdout.splitlines()
    return dict(zip([(form, name) for form in ("pkl", "pyth") for name in EVIL], lines, strict=True))


@pytest.mark.parametrize("name", EVIL)
def test_crafted_arrays_are_refused(evil_messages, name):
    assert ("is refused" if name in REFUSED else "cut off") in evil_messages["pkl", name]


@pytest.mark.parametrize("name", EVIL)
def test_crafted_arrays_in_a_pytorch_file_are_refused(evil_messages, name):
    message = evil_messages["pyth", name]
    assert "is refused" in message or "is not a whole PyTorch file" in message


def test_marks_that_a_file_sets_on_a_type_are_not_taken_over():
    found = load_plain(io.BytesIO(b"\x80\x02" + built(b"K\x01\x85", dtype("f8", flags=63)) + b"."))
    assert (found.tobytes(), found.dtype.flags) == (b"A" * 8, 0)


@pytest.mark.parametrize("kind", ["O8", "U1", "S1", "c8", "M8", "V4", "f16"])
def test_only_numbers_are_read(kind):
    with pytest.raises(Refused, match=f"type '{kind}', but only b1, i1"):
        load_plain(io.BytesIO(b"\x80\x02" + dtype(kind) + b"."))


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02Kar\xff\xff\xff\x7f.",  # a value to keep at place 2**31
        b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7fabc",  # 2**63 bytes
        b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b"abc",
        b"\x80\x02" + b"(" * 10_000 + b"t" * 10_000 + b".",  # containers in containers
    ],
)
def test_sizes_that_a_file_claims_are_not_believed(tmp_path, content):
    (tmp_path / "a.pkl").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.pkl"):
        load_checkpoint(tmp_path / "a.pkl")
