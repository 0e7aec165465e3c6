"""Top-1, top-5 and loss of a network on a split."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leanconv.preprocess import Preprocessing
from leanconv.train.data import Pictures


@torch.no_grad()
def evaluate(
    model: nn.Module,
    split: Pictures,
    rules: Preprocessing,
    *,
    batch_size: int = 256,
    device: str | torch.device | None = None,
) -> dict[str, float]:
    """Cross entropy, top-1 and top-5 (fractions) of `model` on `split`, in evaluation mode: keys loss, top1, top5.

    Under several processes each measures a part, and all get the whole result.
    """
    device = torch.device(device) if device is not None else next(model.parameters()).device
    rank, world = 0, 1
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    was_training = model.training
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64)  # loss, top-1, top-5, pictures
    for images, labels in split.pictures(batch_size, rank=rank, world=world, device=device):
        logits = model(normalize(images.permute(0, 3, 1, 2).float(), rules)).float()
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices
        hits = best == labels[:, None]
        loss = F.cross_entropy(logits, labels, reduction="sum")
        sums[:3] += torch.stack([loss, hits[:, 0].sum(), hits.sum()]).double().cpu()
        sums[3] += len(labels)
    model.train(was_training)
    if world > 1:
        moved = sums.to(device, torch.float32 if device.type == "mps" else torch.float64)
        torch.distributed.all_reduce(moved)
        sums = moved.double().cpu()
    loss, top1, top5, count = sums.tolist()
    return {"loss": loss / count, "top1": top1 / count, "top5": top5 / count}


def normalize(x: Tensor, rules: Preprocessing) -> Tensor:
    """``(x / 255 - mean) / std`` for x [N, C, H, W] with grey levels 0..255."""
    mean = torch.tensor(rules.mean, device=x.device).view(1, -1, 1, 1)
    std = torch.tensor(rules.std, device=x.device).view(1, -1, 1, 1)
    return (x / 255 - mean) / std
