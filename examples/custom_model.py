"""A network of your own, from PyTorch to the engine: python examples/custom_model.py

Shows that a model need not come from the zoo. This one has what real networks have: a concatenation, a squeeze-excite
gate and two heads (which digit? is it even?). It trains for a few epochs on scikit-learn's 8x8 digits, is compiled into
one packed file, runs in the engine without PyTorch, and gives the same answers. Takes about 15 seconds on one core.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

import leanconv.nn as lnn
from leanconv import engine
from leanconv.compiler import compile_verified


class DenseLayer(nn.Module):
    """BinaryDenseNet's layer: batch norm, sign, binary convolution; its result is concatenated with its input."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.conv = lnn.BinaryConv2d(channels, growth, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(self.bn(x))], dim=1)


class Gate(nn.Module):
    """Squeeze-excite: every channel is scaled by a number in (0, 1) that depends on the whole picture."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Linear(channels, channels // 4), nn.Linear(channels // 4, channels)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3))))))
        return x * gate[:, :, None, None]


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32))
        self.dense = nn.Sequential(DenseLayer(32, 32), DenseLayer(64, 32))
        self.gate = Gate(96)
        self.block, self.block_bn = (
            lnn.BinaryConv2d(96, 96, 3, padding=1, binarize_weight="magnitude"),
            nn.BatchNorm2d(96),
        )
        self.digit, self.even = nn.Linear(96, 10), nn.Linear(96, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.gate(self.dense(self.stem(x)))  # [N, 96, 8, 8]
        x = self.block_bn(self.block(x)) + x
        x = F.max_pool2d(F.relu(x), 2).mean((2, 3))  # [N, 96]
        return {"digit": self.digit(x), "even": self.even(x)}


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pictures [N, 1, 8, 8] of mean 0 and labels, for training and for testing."""
    data = load_digits()
    pictures = torch.from_numpy(data.images).float().unsqueeze(1) / 8 - 1
    labels = torch.from_numpy(data.target)
    train, test = train_test_split(torch.arange(len(labels)), test_size=0.25, stratify=labels, random_state=0)
    return pictures[train], labels[train], pictures[test], labels[test]


def train(model: nn.Module, pictures: Tensor, labels: Tensor, epochs: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    batches = len(labels) // 64
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)
    model.train()
    for epoch in range(epochs):
        for batch in torch.randperm(len(labels)).chunk(batches):
            answer = model(pictures[batch])
            digit = F.cross_entropy(answer["digit"], labels[batch])
            even = F.cross_entropy(answer["even"], 1 - labels[batch] % 2)
            optimizer.zero_grad()
            (digit + even).backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}: loss {digit.item():.3f} (digit), {even.item():.3f} (even)")


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path("custom_model.lconv"), help="the packed file to write")
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    train_x, train_y, test_x, test_y = digits()
    model = TwoHeads()
    train(model, train_x, train_y, options.epochs)

    program, verification = compile_verified(model, test_x[:2])
    size = program.save(options.out)
    print(verification)

    answer = engine.load(options.out)(test_x.numpy())
    assert isinstance(answer, dict)
    digit, even = (torch.from_numpy(answer[name].argmax(1)) for name in ("digit", "even"))
    with torch.inference_mode():
        expected = model.eval()(test_x)
    result = {
        "digit_top1": (digit == test_y).float().mean().item(),
        "even_top1": (even == 1 - test_y % 2).float().mean().item(),
        "agreement": (digit == expected["digit"].argmax(1)).float().mean().item(),
        "bytes": float(size),
    }
    print(f"{options.out}: {size:,} bytes")
    print(f"engine top-1: {result['digit_top1']:.3f} (digit), {result['even_top1']:.3f} (even)")
    print(f"agreement with PyTorch: {result['agreement']:.3f}")
    return result


if __name__ == "__main__":
    main()
