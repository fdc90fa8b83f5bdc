"""DenseNet in PyTorch, written from the paper; nothing is shared with the package."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn


class Layer(nn.Module):
    def __init__(self, num_in, growth):
        super().__init__()
        self.norm1, self.conv1 = (
            nn.BatchNorm2d(num_in),
            nn.Conv2d(num_in, 4 * growth, 1, bias=False),
        )
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x):
        y = self.conv1(self.norm1(x).relu())
        return torch.cat([x, self.conv2(self.norm2(y).relu())], 1)


class Reference(nn.Module):
    """DenseNet-BC from the paper's section 3 and table 1, under torchvision's names."""

    def __init__(self, plan):
        super().__init__()
        parts = OrderedDict(
            conv0=nn.Conv2d(3, plan.stem, 7, 2, 3, bias=False),
            norm0=nn.BatchNorm2d(plan.stem),
            relu0=nn.ReLU(),
            pool0=nn.MaxPool2d(3, 2, 1),
        )
        width = plan.stem
        for number, depth in enumerate(plan.depths, start=1):
            layers = OrderedDict()
            for k in range(1, depth + 1):
                layers[f"denselayer{k}"] = Layer(width, plan.growth)
                width += plan.growth
            parts[f"denseblock{number}"] = nn.Sequential(layers)
            if number < len(plan.depths):
                parts[f"transition{number}"] = nn.Sequential(
                    OrderedDict(
                        norm=nn.BatchNorm2d(width),
                        relu=nn.ReLU(),
                        conv=nn.Conv2d(width, width // 2, 1, bias=False),
                        pool=nn.AvgPool2d(2),
                    )
                )
                width //= 2
        parts["norm5"] = nn.BatchNorm2d(width)
        self.features = nn.Sequential(parts)

    def forward(self, x):
        maps = {}
        for name, part in self.features.named_children():
            x = part(x)
            maps[name] = x
        blocks = [maps[name] for name in maps if name.startswith("denseblock")]
        return [maps["pool0"], *blocks[:-1], x.relu()]
