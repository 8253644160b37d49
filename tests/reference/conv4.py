"""Conv4 by stock modules, its parameters read from a flat theta (Ravi & Larochelle 2017, section 5.1)."""

import torch
from torch import Tensor, nn
from torch.func import functional_call


class Conv4(nn.Sequential):
    """4 x (3x3 convolution, batch-norm, ReLU, 2x2 max-pool), then a linear head."""

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        n_way: int,
        filters: int = 32,
        conv_bias: bool = True,
        momentum: float = 0.1,
    ):
        channels, height, width = image_shape
        layers: list[nn.Module] = []
        for block in range(4):
            layers += [
                nn.Conv2d(filters if block else channels, filters, 3, padding=1, bias=conv_bias),
                nn.BatchNorm2d(filters, eps=1e-3, momentum=momentum),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
            height, width = height // 2, width // 2
        super().__init__(*layers, nn.Flatten(), nn.Linear(filters * height * width, n_way))
        self.double()

    def norms(self) -> list[nn.BatchNorm2d]:
        return [layer for layer in self if isinstance(layer, nn.BatchNorm2d)]

    def named(self, theta: Tensor) -> dict[str, Tensor]:
        """Cut theta into this module's parameters: convolutions as (out, 3, 3, in), head rows as weight, bias."""
        parameters, start = {}, 0
        for name, layer in self.named_children():
            if isinstance(layer, nn.Linear):
                head = theta[start:].view(layer.out_features, layer.in_features + 1)
                parameters |= {f"{name}.weight": head[:, :-1], f"{name}.bias": head[:, -1]}
                continue
            for part, value in layer.named_parameters():
                flat = theta[start : start + value.numel()]
                start += value.numel()
                if isinstance(layer, nn.Conv2d) and part == "weight":
                    flat = flat.view(layer.out_channels, 3, 3, layer.in_channels).permute(0, 3, 1, 2)
                parameters[f"{name}.{part}"] = flat
        return parameters

    def logits(self, theta: Tensor, x: Tensor) -> Tensor:
        """Normalized by the batch's own statistics; gradients flow to theta."""
        self.train()
        return functional_call(self, self.named(theta), (x,), strict=False)

    def running_logits(self, theta: Tensor, x: Tensor) -> Tensor:
        """Normalized by the running averages that `logits` left in the batch-norms."""
        self.eval()
        return functional_call(self, self.named(theta), (x,), strict=False)

    def moments(self, theta: Tensor, x: Tensor) -> Tensor:
        """Mean and biased variance of what enters each batch-norm; gradients flow to theta."""
        seen: list[Tensor] = []

        def record(_layer: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen.extend([args[0].mean((0, 2, 3)), args[0].var((0, 2, 3), correction=0)])

        hooks = [norm.register_forward_pre_hook(record) for norm in self.norms()]
        self.logits(theta, x)
        for hook in hooks:
            hook.remove()
        return torch.cat(seen)

    def fixed_logits(self, theta: Tensor, x: Tensor, moments: Tensor) -> Tensor:
        """Normalized by given moments; gradients flow to theta and to the moments."""
        pairs = moments.view(len(self.norms()), 2, -1)

        def normalize(pair: Tensor):
            mean, var = pair[:, :, None, None]

            def hook(layer: nn.Module, args: tuple[Tensor, ...], _output: Tensor) -> Tensor:
                gamma, beta = (part[:, None, None] for part in layer.parameters())
                return gamma * (args[0] - mean) / torch.sqrt(var + 1e-3) + beta

            return hook

        hooks = [norm.register_forward_hook(normalize(pair)) for norm, pair in zip(self.norms(), pairs, strict=True)]
        logits = self.logits(theta, x)
        for hook in hooks:
            hook.remove()
        return logits
