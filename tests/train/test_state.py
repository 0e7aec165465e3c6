import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leanconv.train import state

plain = (
    st.sampled_from([torch.float32, torch.bfloat16, None, True])
    | st.integers(-(2**40), 2**40)
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
)
tensors = st.sampled_from([torch.float32, torch.int64, torch.bfloat16, torch.uint8, torch.bool]).flatmap(
    lambda dtype: st.lists(st.integers(0, 3), max_size=3).map(lambda shape: torch.ones(shape).to(dtype))
)
trees = st.recursive(
    plain | tensors,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.integers(0, 9) | st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=12,
)


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and a == b


@given(tree=st.dictionaries(st.text(max_size=4), trees, max_size=4))
def test_any_tree_comes_back(tree, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "tree.safetensors"
    state.save(path, tree)
    assert same(state.load(path), tree)


def test_an_optimizer_comes_back(tmp_path):
    weight = torch.nn.Parameter(torch.randn(3))
    optimizer = torch.optim.Adam([weight], lr=0.1)
    weight.grad = torch.randn(3)
    optimizer.step()
    state.save(tmp_path / "o", {"optimizer": optimizer.state_dict()})
    other = torch.optim.Adam([weight])
    other.load_state_dict(state.load(tmp_path / "o")["optimizer"])
    assert str(other.state_dict()) == str(optimizer.state_dict())


def test_tensors_that_share_memory(tmp_path):
    base = torch.arange(4.0)
    state.save(tmp_path / "s", {"a": base, "b": base, "c": base[1:3]})
    back = state.load(tmp_path / "s")
    assert torch.equal(back["a"], base) and torch.equal(back["b"], base) and torch.equal(back["c"], base[1:3])


def test_what_cannot_be_saved_is_named(tmp_path):
    with pytest.raises(TypeError, match="a/0: a set cannot be saved"):
        state.save(tmp_path / "s", {"a": [{1}]})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\x08\0\0\0\0\0\0\0{}      "])
def test_damaged_files(tmp_path, content):
    (tmp_path / "s").write_bytes(content)
    with pytest.raises(state.StateError, match="not the state of a run"):
        state.load(tmp_path / "s")
    with pytest.raises(state.StateError, match="no run to resume"):
        state.load(tmp_path / "missing")
