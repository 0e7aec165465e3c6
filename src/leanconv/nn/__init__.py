"""Binary layers and binarisers in ordinary PyTorch."""

from leanconv.nn.binarize import (
    ActivationBinarizer,
    ApproxSign,
    MagnitudeWeight,
    RPReLU,
    RSign,
    SignWeight,
    STESign,
    SwishSign,
    WeightBinarizer,
    create_activation_binarizer,
    create_weight_binarizer,
    sign,
    weight_scale,
)
from leanconv.nn.binary_conv import BinaryConv1d, BinaryConv2d, BinaryConvTranspose2d, BinaryLinear

__all__ = [
    "ActivationBinarizer",
    "ApproxSign",
    "BinaryConv1d",
    "BinaryConv2d",
    "BinaryConvTranspose2d",
    "BinaryLinear",
    "MagnitudeWeight",
    "RPReLU",
    "RSign",
    "STESign",
    "SignWeight",
    "SwishSign",
    "WeightBinarizer",
    "create_activation_binarizer",
    "create_weight_binarizer",
    "sign",
    "weight_scale",
]
