"""The import of torchvision beside a CPU-only torch, in fresh processes; and the `nms` that stands in for its own."""

import subprocess
import sys
import textwrap

import torch

from leanconv._torchvision import nms


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120, check=False
    )


def test_timm_and_nms_work_after_importing_our_models():
    done = run(
        """
        import warnings
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            import leanconv.models
            from leanconv import _torchvision
            _torchvision.ensure_importable()
        ours = [w for w in seen if "torchvision's compiled operators" in str(w.message)]
        assert len(ours) == (_torchvision._library is not None), ours
        import timm, torch, torchvision
        from torchvision.transforms import v2
        boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 1.9], [5, 5, 6, 6]])
        print(torchvision.ops.nms(boxes, torch.tensor([0.5, 0.9, 0.1]), 0.5).tolist())
        """
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[1, 2]"


def test_acts_only_where_loading_fails():
    """With loadable operators, or with torchvision already imported, nothing is declared."""
    done = run(
        """
        import sys, types
        from leanconv import _torchvision
        _torchvision._operators_load = lambda package: True
        _torchvision.ensure_importable()
        assert _torchvision._library is None
        _torchvision._operators_load = lambda package: False
        sys.modules["torchvision"] = types.ModuleType("torchvision")
        _torchvision.ensure_importable()
        assert _torchvision._library is None
        """
    )
    assert done.returncode == 0, done.stderr


def test_nms_against_a_loop():
    torch.manual_seed(0)
    for count in (0, 1, 40):
        corner = torch.rand(count, 2) * 4
        boxes = torch.cat([corner, corner + 0.5 + torch.rand(count, 2) * 3], 1)
        scores = torch.rand(count)
        kept: list[int] = []
        for i in sorted(range(count), key=lambda i: -float(scores[i])):
            a = boxes[i].tolist()
            for j in kept:
                b = boxes[j].tolist()
                w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
                shared = max(w, 0) * max(h, 0)
                both = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
                if shared / both > 0.4:
                    break
            else:
                kept.append(i)
        assert nms(boxes, scores, 0.4).tolist() == kept
