"""Networks, registered with timm: after ``import leanconv.models``, ``timm.create_model("bireal_resnet18")`` works."""

from leanconv import _torchvision

_torchvision.ensure_importable()  # before timm

from leanconv.models import (  # noqa: E402, F401  (importing registers)
    aw_cifar,
    aw_mobilenet,
    aw_resnet,
    binary_densenet,
    bireal,
    cifar_resnet,
    fractalnet,
    meliusnet,
    quicknet,
    reactnet,
    reaf,
    reaf_mobilenet,
    resnete,
    sofar,
    traceable,
    wide_resnet,
)
from leanconv.models._registry import float_twin, list_models  # noqa: E402
from leanconv.models.bireal import BiRealBlock  # noqa: E402
from leanconv.models.pretrained import WeightsError, weights_path  # noqa: E402
from leanconv.models.residual import ResidualNet  # noqa: E402

__all__ = ["BiRealBlock", "ResidualNet", "WeightsError", "float_twin", "list_models", "weights_path"]
