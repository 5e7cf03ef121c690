"""A small plain network for the yardsticks: ResNet-18 on X-rays, a narrow 3D ResNet-10 on volumes, no tricks."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from torch import nn

from chestflow.nn.resnet3d import ResNet3d


def _network(volumes: bool) -> nn.Module:
    if volumes:
        body = ResNet3d(10, 16)
        return nn.Sequential(body, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(body.out_channels, 2))
    from torchvision.models import resnet18

    network = resnet18(num_classes=2)
    network.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    return network


def train_and_test(images: np.ndarray, positive: np.ndarray, patients: np.ndarray, epochs: int, seed: int = 0) -> float:
    """Train on three of five folds by patient and return the AUC on the other two.

    Args:
        images: (N, H, W) or (N, D, H, W) uint8.
        positive: (N,) bool.
        patients: (N,) names.
    """
    folds = [
        test for _, test in StratifiedGroupKFold(5, shuffle=True, random_state=0).split(images, positive, patients)
    ]
    test = np.concatenate(folds[:2])
    train = np.setdiff1d(np.arange(len(images)), test)
    pictures = torch.from_numpy(images.astype(np.float32))[:, None] / 255
    axes = tuple(range(1, pictures.ndim))
    pictures = (pictures - pictures.mean(axes, keepdim=True)) / pictures.std(axes, keepdim=True)
    target = torch.from_numpy(positive.astype(np.int64))
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    network = _network(images.ndim == 4)
    batch, rate = (8, 2e-3) if images.ndim == 4 else (16, 1e-3)
    steps = len(train) // batch
    optimiser = torch.optim.AdamW(network.parameters(), rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=epochs * steps)
    for _ in range(epochs):
        order = torch.from_numpy(train)[torch.randperm(len(train), generator=generator)]
        for rows in order[: steps * batch].split(batch):
            inputs = pictures[rows]
            if torch.rand(1, generator=generator) < 0.5:
                inputs = inputs.flip(-1)
            moves = torch.randint(-4, 5, (2,), generator=generator).tolist()
            loss = nn.functional.cross_entropy(network.train()(inputs.roll(moves, (-2, -1))), target[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    with torch.no_grad():
        logits = torch.cat([network.eval()(pictures[rows]) for rows in torch.from_numpy(test).split(16)])
    return float(roc_auc_score(positive[test], logits[:, 1] - logits[:, 0]))
