"""Networks, registered with timm: after ``import leanconv.models``, ``timm.create_model("bireal_resnet18")`` works."""

from leanconv import _torchvision

_torchvision.ensure_importable()  # before timm

from leanconv.models import bireal, cifar_resnet, sofar  # noqa: E402, F401  (importing registers)
from leanconv.models._registry import float_twin, list_models  # noqa: E402
from leanconv.models.bireal import BiRealBlock  # noqa: E402
from leanconv.models.residual import ResidualNet  # noqa: E402

__all__ = ["BiRealBlock", "ResidualNet", "float_twin", "list_models"]
