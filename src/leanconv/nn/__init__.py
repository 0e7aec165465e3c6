"""Binary layers and binarisers in ordinary PyTorch."""

from leanconv.nn.binarize import (
    ActivationBinarizer,
    ApproxSign,
    MagnitudeWeight,
    RealWeightsError,
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
from leanconv.nn.convert import ConvertError, convert, convertible
from leanconv.nn.latent import real_weights

__all__ = [
    "ActivationBinarizer",
    "ApproxSign",
    "BinaryConv1d",
    "BinaryConv2d",
    "BinaryConvTranspose2d",
    "BinaryLinear",
    "ConvertError",
    "MagnitudeWeight",
    "RPReLU",
    "RSign",
    "RealWeightsError",
    "STESign",
    "SignWeight",
    "SwishSign",
    "WeightBinarizer",
    "convert",
    "convertible",
    "create_activation_binarizer",
    "create_weight_binarizer",
    "real_weights",
    "sign",
    "weight_scale",
]
