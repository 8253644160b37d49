"""ResNet-12 as its authors write it: torch's own modules, in training mode."""

import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Parameters in the order of theta."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(width)
        self.shortcut = nn.Conv2d(inputs, width, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Leaky ReLU, then the max-pool."""
        y = F.leaky_relu(self.norm1(self.conv1(x)), 0.1)
        y = F.leaky_relu(self.norm2(self.conv2(y)), 0.1)
        y = self.norm3(self.conv3(y)) + self.norm(self.shortcut(x))
        return F.max_pool2d(F.leaky_relu(y, 0.1), 2)


class ResNet12(nn.Sequential):
    """The body."""

    def __init__(self, channels: int, widths: list[int]):
        inputs = [channels, *widths[:-1]]
        blocks = [Block(one, width) for one, width in zip(inputs, widths, strict=True)]
        super().__init__(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def set_body(self, body: Tensor) -> None:
        """Take over theta."""
        parts = list(self.parameters())
        for part, flat in zip(parts, body.split([part.numel() for part in parts]), strict=True):
            if part.dim() == 4:
                flat = flat.view(part.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
            part.data = flat.detach().clone()

    def body_gradient(self) -> list[Tensor]:
        """In the order of theta."""
        grads = [part.grad for part in self.parameters() if part.grad is not None]
        return [(grad.permute(0, 2, 3, 1) if grad.dim() == 4 else grad).flatten() for grad in grads]
