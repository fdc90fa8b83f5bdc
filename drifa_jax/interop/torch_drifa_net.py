"""DRIFA-Net in PyTorch: an independent twin of `drifa_jax.models`, written for reading.

It shares no code with the JAX network and imports no JAX. Names of modules follow the JAX tree
(`branches.mri.stages.stage_2.conv1.weight`), and `forward` returns intermediates under the same
names, so that the two can be compared layer by layer (`drifa parity`). Maps are NCHW here.

Source: Dhar et al., WACV 2025, section 3; the order of layers is the authors' implementation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCKS_PER_RESOLUTION = {
    "resnet10": (1, 1, 1, 1),
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
}
BOTTLENECK_BACKBONES = {"resnet50"}
ALL_MFA = ("hifa", "clia")
ALL_MIFA = ("mgifa", "mlifa")


def conv1x1(channels: int) -> nn.Conv2d:
    """The convolution of every attention part."""
    return nn.Conv2d(channels, channels, kernel_size=1)


def mean_over_space(x: Tensor) -> Tensor:
    """`[b, c, h, w] -> [b, c]`."""
    return x.mean(dim=(2, 3))


def max_over_space(x: Tensor) -> Tensor:
    """`[b, c, h, w] -> [b, c]`; of equal maxima each takes its share of the gradient."""
    return x.amax(dim=(2, 3))


def min_over_space(x: Tensor) -> Tensor:
    """`[b, c, h, w] -> [b, c]`."""
    return x.amin(dim=(2, 3))


def scale_channels(x: Tensor, gate: Tensor) -> Tensor:
    """A map times one weight per channel."""
    return x * gate[:, :, None, None]


class HIFA(nn.Module):
    """Hierarchical information fusion attention: one weight per channel, in (0, 1)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = conv1x1(channels)
        self.conv2 = conv1x1(channels)
        self.conv3 = conv1x1(channels)
        self.conv4 = conv1x1(channels)
        self.dense = nn.Linear(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        first = torch.sigmoid(self.conv1(x))
        second = torch.sigmoid(self.conv2(first))
        third = torch.sigmoid(self.conv3(first + second))
        fourth = torch.sigmoid(self.conv4(third))
        shallow = mean_over_space(first) + max_over_space(second)
        deep = mean_over_space(third) + max_over_space(fourth)
        return torch.sigmoid(self.dense(torch.cat([shallow, deep], dim=1)))


class CLIA(nn.Module):
    """Channel-wise local information attention: one weight per channel, in (0, 2)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = conv1x1(channels)
        self.conv2 = conv1x1(channels)

    def forward(self, x: Tensor) -> Tensor:
        pooled = torch.sigmoid(self.conv1(x)).mean(dim=(2, 3), keepdim=True)
        local = pooled + torch.sigmoid(self.conv2(pooled))
        return local[:, :, 0, 0]


class MFA(nn.Module):
    """Multi-branch fusion attention: HIFA and CLIA refine the map of one modality."""

    def __init__(self, channels: int, parts: Sequence[str] = ALL_MFA):
        super().__init__()
        self.hifa = HIFA(channels) if "hifa" in parts else None
        self.clia = CLIA(channels) if "clia" in parts else None
        if self.hifa is not None:
            self.hifa_scale = nn.Parameter(torch.ones(()))
        if self.clia is not None:
            self.clia_scale = nn.Parameter(torch.ones(channels))
        self.alpha = nn.Parameter(torch.ones(channels))

    def gate(self, x: Tensor) -> Tensor:
        """The weights `[b, c]` before `alpha`, in (0, 1)."""
        total = 0
        if self.hifa is not None:
            total = total + self.hifa_scale * self.hifa(x)
        if self.clia is not None:
            total = total + self.clia_scale * self.clia(x)
        return torch.sigmoid(total)

    def forward(self, x: Tensor) -> Tensor:
        return scale_channels(x, self.gate(x) * self.alpha)


class MGIFA(nn.Module):
    """Multimodal global information fusion attention: one weight per channel, in (0, 3)."""

    def __init__(self, channels: int):
        super().__init__()
        self.dense = nn.Linear(channels, channels)

    def forward(self, maps: Mapping[str, Tensor]) -> Tensor:
        gate = 0
        for pool in (min_over_space, mean_over_space, max_over_space):
            summed = torch.stack([pool(x) for x in maps.values()]).sum(dim=0)
            gate = gate + torch.sigmoid(self.dense(summed))
        return gate


class MLIFA(nn.Module):
    """Multimodal local information fusion attention: in (0, 3 M) for M modalities."""

    def __init__(self, modalities: Sequence[str], channels: int):
        super().__init__()
        self.convs = nn.ModuleDict({m: conv1x1(channels) for m in modalities})

    def forward(self, maps: Mapping[str, Tensor]) -> Tensor:
        gate = 0
        for modality, x in maps.items():
            local = torch.sigmoid(self.convs[modality](x))
            gate = gate + min_over_space(local) + mean_over_space(local) + max_over_space(local)
        return gate


class MIFA(nn.Module):
    """Multimodal information fusion attention: one gate from all modalities multiplies each."""

    def __init__(self, modalities: Sequence[str], channels: int, parts: Sequence[str] = ALL_MIFA):
        super().__init__()
        self.mgifa = MGIFA(channels) if "mgifa" in parts else None
        self.mlifa = MLIFA(modalities, channels) if "mlifa" in parts else None
        if self.mgifa is not None:
            self.mgifa_scale = nn.Parameter(torch.ones(()))
        if self.mlifa is not None:
            self.mlifa_scale = nn.Parameter(torch.ones(channels))
        self.alpha = nn.ParameterDict({m: torch.ones(channels) for m in modalities})

    def gates(self, maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights `[b, c]` of each part and their union `gate`."""
        gates = {}
        total = 0
        if self.mgifa is not None:
            gates["mgifa"] = self.mgifa(maps)
            total = total + self.mgifa_scale * gates["mgifa"]
        if self.mlifa is not None:
            gates["mlifa"] = self.mlifa(maps)
            total = total + self.mlifa_scale * gates["mlifa"]
        return gates | {"gate": torch.sigmoid(total)}


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's padding: what stride leaves over is added at the end."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(pad_same(x, self.kernel_size[0], self.stride[0], 0.0))


class MaxPool3x3(nn.Module):
    """3x3 maximum with stride 2."""

    def __init__(self, padding: str):
        super().__init__()
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        if self.padding == "same":
            return F.max_pool2d(pad_same(x, 3, 2, float("-inf")), 3, stride=2)
        return F.max_pool2d(x, 3, stride=2, padding=1)


def pad_same(x: Tensor, window: int, stride: int, value: float) -> Tensor:
    """Pads height and width so that the output has `ceil(size / stride)` places."""
    pads = []
    for size in (x.shape[3], x.shape[2]):
        places = -(-size // stride)
        total = max((places - 1) * stride + window - size, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads, value=value)


class Layers:
    """Makes the convolutions and batch norms of one network, which share their constants."""

    def __init__(self, padding: str, epsilon: float, momentum: float):
        if padding not in ("same", "symmetric"):
            raise ValueError(f"padding is {padding!r}; choose 'same' or 'symmetric'.")
        self.padding, self.epsilon, self.momentum = padding, epsilon, momentum

    def conv(self, num_in: int, num_out: int, window: int, stride: int) -> nn.Conv2d:
        """A square convolution with bias."""
        if self.padding == "same":
            return SameConv2d(num_in, num_out, window, stride)
        return nn.Conv2d(num_in, num_out, window, stride, padding=(window - 1) // 2)

    def norm(self, channels: int) -> nn.BatchNorm2d:
        """Batch norm; PyTorch's momentum is the weight of the new average."""
        return nn.BatchNorm2d(channels, eps=self.epsilon, momentum=1 - self.momentum)


class Stem(nn.Module):
    """7x7 convolution with stride 2, MFA, batch norm, ReLU, 3x3 max pool with stride 2."""

    def __init__(self, num_in: int, num_out: int, mfa_parts: Sequence[str], layers: Layers):
        super().__init__()
        self.conv = layers.conv(num_in, num_out, 7, 2)
        self.mfa = MFA(num_out, mfa_parts) if mfa_parts else None
        self.norm = layers.norm(num_out)
        self.pool = MaxPool3x3(layers.padding)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.mfa is not None:
            x = self.mfa(x)
        return self.pool(F.relu(self.norm(x)))


class RRABlock(nn.Module):
    """Residual block with MFA between each convolution and its batch norm."""

    expansion = 1

    def __init__(
        self, num_in: int, num_out: int, stride: int, mfa_parts: Sequence[str], layers: Layers
    ):
        super().__init__()
        self.conv1 = layers.conv(num_in, num_out, 3, stride)
        self.mfa1 = MFA(num_out, mfa_parts) if mfa_parts else None
        self.norm1 = layers.norm(num_out)
        self.conv2 = layers.conv(num_out, num_out, 3, 1)
        self.mfa2 = MFA(num_out, mfa_parts) if mfa_parts else None
        self.norm2 = layers.norm(num_out)
        reshapes = stride != 1 or num_in != num_out
        self.projection = layers.conv(num_in, num_out, 1, stride) if reshapes else None
        self.projection_norm = layers.norm(num_out) if reshapes else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x)
        if self.mfa1 is not None:
            y = self.mfa1(y)
        y = self.conv2(F.relu(self.norm1(y)))
        if self.mfa2 is not None:
            y = self.mfa2(y)
        y = self.norm2(y)
        if self.projection is not None:
            x = self.projection_norm(self.projection(x))
        return F.relu(y + x)


class BottleneckRRABlock(nn.Module):
    """Bottleneck block with MFA after the 1x1 that narrows and after the 3x3, not the last 1x1."""

    expansion = 4

    def __init__(
        self, num_in: int, num_inside: int, stride: int, mfa_parts: Sequence[str], layers: Layers
    ):
        super().__init__()
        num_out = self.expansion * num_inside
        self.conv1 = layers.conv(num_in, num_inside, 1, 1)
        self.mfa1 = MFA(num_inside, mfa_parts) if mfa_parts else None
        self.norm1 = layers.norm(num_inside)
        self.conv2 = layers.conv(num_inside, num_inside, 3, stride)
        self.mfa2 = MFA(num_inside, mfa_parts) if mfa_parts else None
        self.norm2 = layers.norm(num_inside)
        self.conv3 = layers.conv(num_inside, num_out, 1, 1)
        self.norm3 = layers.norm(num_out)
        reshapes = stride != 1 or num_in != num_out
        self.projection = layers.conv(num_in, num_out, 1, stride) if reshapes else None
        self.projection_norm = layers.norm(num_out) if reshapes else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x)
        if self.mfa1 is not None:
            y = self.mfa1(y)
        y = self.conv2(F.relu(self.norm1(y)))
        if self.mfa2 is not None:
            y = self.mfa2(y)
        y = self.norm3(self.conv3(F.relu(self.norm2(y))))
        if self.projection is not None:
            x = self.projection_norm(self.projection(x))
        return F.relu(y + x)


class Branch(nn.Module):
    """The backbone of one modality: a stem and a row of RRA blocks."""

    def __init__(
        self,
        num_channels: int,
        width: int,
        blocks_per_resolution: Sequence[int],
        make_block: type[RRABlock] | type[BottleneckRRABlock],
        mfa_parts: Sequence[str],
        layers: Layers,
    ):
        super().__init__()
        self.stem = Stem(num_channels, width, mfa_parts, layers)
        self.stages = nn.ModuleDict()
        self.widths = []
        num_in = width
        for resolution, num_blocks in enumerate(blocks_per_resolution):
            num_inside = width * 2**resolution
            for block in range(num_blocks):
                stride = 2 if resolution > 0 and block == 0 else 1
                self.stages[f"stage_{len(self.widths)}"] = make_block(
                    num_in, num_inside, stride, mfa_parts, layers
                )
                num_in = make_block.expansion * num_inside
                self.widths.append(num_in)


class StageFusion(nn.Module):
    """After one stage: an MFA in each branch, then MIFA across them."""

    def __init__(
        self,
        modalities: Sequence[str],
        channels: int,
        mfa_parts: Sequence[str],
        mifa_parts: Sequence[str],
    ):
        super().__init__()
        self.mfa = nn.ModuleDict(
            {m: MFA(channels, mfa_parts) for m in modalities} if mfa_parts else {}
        )
        self.mifa = MIFA(modalities, channels, mifa_parts) if mifa_parts else None


class TaskHead(nn.Module):
    """One linear layer from the fused vector to the logits of a task."""

    def __init__(self, num_features: int, num_classes: int):
        super().__init__()
        self.linear = nn.Linear(num_features, num_classes)

    def forward(self, pooled: Tensor) -> Tensor:
        return self.linear(pooled)


class AveragedHeads(nn.Module):
    """A linear layer per modality; the class probabilities are averaged."""

    def __init__(self, modalities: Sequence[str], num_features: int, num_classes: int):
        super().__init__()
        self.linear = nn.ModuleDict({m: nn.Linear(num_features, num_classes) for m in modalities})

    def forward(self, pooled: Mapping[str, Tensor]) -> Tensor:
        """The logarithm of the mean probabilities."""
        opinions = [torch.softmax(head(pooled[m]), dim=1) for m, head in self.linear.items()]
        return torch.log(torch.stack(opinions).mean(dim=0))


class TorchDRIFANet(nn.Module):
    """DRIFA-Net over named modalities and tasks.

        >>> network = TorchDRIFANet({"mri": 1, "ct": 1}, {"tumour": 4}, width=4)
        >>> images = {"mri": torch.ones(2, 1, 64, 64), "ct": torch.ones(2, 1, 64, 64)}
        >>> logits, intermediates = network(images)

    Args:
      modalities: modality -> channels of its images.
      tasks: task -> number of classes.
      width: channels after the stem.
      backbone: a name in `BLOCKS_PER_RESOLUTION`.
      dropout_rate: of Monte Carlo dropout.
      mfa_parts: parts of MFA in stem and blocks.
      stage_mfa_parts: parts of the MFA after each stage but the last.
      mifa_parts: parts of MIFA.
      readout: "concatenate", or "average" for a head per modality.
      padding: "same" (TensorFlow's, for weights trained there) or "symmetric" (PyTorch's own).
      batch_norm_epsilon: added to variances.
      batch_norm_momentum: weight of the old moving average (0.99, not PyTorch's complement).
    """

    def __init__(
        self,
        modalities: Mapping[str, int],
        tasks: Mapping[str, int],
        *,
        width: int = 64,
        backbone: str = "resnet18",
        dropout_rate: float = 0.25,
        mfa_parts: Sequence[str] = ALL_MFA,
        stage_mfa_parts: Sequence[str] = ALL_MFA,
        mifa_parts: Sequence[str] = ALL_MIFA,
        readout: str = "concatenate",
        padding: str = "same",
        batch_norm_epsilon: float = 1e-3,
        batch_norm_momentum: float = 0.99,
    ):
        super().__init__()
        layers = Layers(padding, batch_norm_epsilon, batch_norm_momentum)
        plan = BLOCKS_PER_RESOLUTION[backbone]
        block = BottleneckRRABlock if backbone in BOTTLENECK_BACKBONES else RRABlock
        self.dropout_rate = dropout_rate
        self.branches = nn.ModuleDict(
            {m: Branch(c, width, plan, block, mfa_parts, layers) for m, c in modalities.items()}
        )
        self.widths = next(iter(self.branches.values())).widths
        self.fusion = nn.ModuleDict()
        for number, channels in enumerate(self.widths):
            is_last = number == len(self.widths) - 1
            self.fusion[f"stage_{number}"] = StageFusion(
                list(modalities), channels, () if is_last else stage_mfa_parts, mifa_parts
            )
        if readout not in ("concatenate", "average"):
            raise ValueError(f"readout is {readout!r}; choose 'concatenate' or 'average'.")
        self.averages = readout == "average"
        names, num_features = list(modalities), self.widths[-1]
        self.heads = nn.ModuleDict(
            {
                task: AveragedHeads(names, num_features, k)
                if self.averages
                else TaskHead(num_features * len(names), k)
                for task, k in tasks.items()
            }
        )

    def forward(
        self, images: Mapping[str, Tensor], *, dropout: bool = False
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Logits by task and named intermediates.

        Args:
          images: modality -> `[b, c, h, w]`.
          dropout: whether to draw Monte Carlo dropout, in training and prediction alike.
        """
        seen: dict[str, Tensor] = {}
        maps = {m: branch.stem(images[m]) for m, branch in self.branches.items()}
        for number, width in enumerate(self.widths):
            stage = f"stage_{number}"
            maps = {m: self.branches[m].stages[stage](x) for m, x in maps.items()}
            seen |= {f"{stage}/rra/{m}": x for m, x in maps.items()}
            if dropout and width < self.widths[-1]:
                maps = self._drop(maps)
            maps = self._fuse(stage, maps, seen)
        if dropout:
            maps = self._drop(maps)
        pooled = {m: mean_over_space(x) for m, x in maps.items()}
        seen["pooled"] = torch.cat(list(pooled.values()), dim=1)
        read = pooled if self.averages else seen["pooled"]
        return {task: head(read) for task, head in self.heads.items()}, seen

    def _drop(self, maps):
        return {m: F.dropout(x, self.dropout_rate, training=True) for m, x in maps.items()}

    def _fuse(self, stage: str, maps: dict[str, Tensor], seen: dict[str, Tensor]):
        fusion = self.fusion[stage]
        for m, mfa in fusion.mfa.items():
            gate = mfa.gate(maps[m])
            maps = maps | {m: scale_channels(maps[m], gate * mfa.alpha)}
            seen |= {f"{stage}/mfa/{m}": maps[m], f"{stage}/mfa/{m}/gate": gate}
        if fusion.mifa is not None:
            gates = fusion.mifa.gates(maps)
            alpha = fusion.mifa.alpha
            maps = {m: scale_channels(x, gates["gate"] * alpha[m]) for m, x in maps.items()}
            seen |= {f"{stage}/mifa/{part}": gate for part, gate in gates.items()}
            seen |= {f"{stage}/mifa/{m}": x for m, x in maps.items()}
        return maps
