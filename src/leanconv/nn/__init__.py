"""Binary layers, binarisers, and drop-in convolutions for float networks, in ordinary PyTorch."""

from leanconv.nn.augmented_attention import AAConv2d
from leanconv.nn.aw_conv import AWConv2d
from leanconv.nn.bam import BAM
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
from leanconv.nn.reaf_conv import ReafConv2d

__all__ = [
    "BAM",
    "AAConv2d",
    "AWConv2d",
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
    "ReafConv2d",
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
