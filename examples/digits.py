"""Train a small oriented ConvNet on scikit-learn's handwritten digits: bfloat16 autocast, torch.compile, eight angles, K=15.

    python examples/digits.py            (a minute or two on two cores; the same on a GPU with --device cuda)

Prints the accuracy on images that it has not seen, and writes the loss curve to demo_out/digits.png. Two runs on one machine give the
same numbers.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from rich.progress import track
from sklearn.datasets import load_digits
from torch import Tensor, nn

from tvm_orient import warmup
from tvm_orient.nn import OrientedConv2d

matplotlib.use("Agg")
from matplotlib import pyplot

SIDE, CLASSES, HELD_OUT = 16, 10, 360


class Block(nn.Module):
    """Oriented depthwise convolution, then a pointwise pair: the block of the paper's networks, small."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = OrientedConv2d(channels, 15, directions=8)
        self.norm = nn.GroupNorm(1, channels)
        self.wide, self.narrow = nn.Conv2d(channels, 4 * channels, 1), nn.Conv2d(4 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same."""
        return x + self.narrow(F.gelu(self.wide(self.norm(self.depthwise(x)))))


class Net(nn.Module):
    """A stem, blocks at two scales, and a linear head."""

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, padding=1)
        self.first, self.second = Block(channels), Block(channels)
        self.down = OrientedConv2d(channels, 15, directions=8, stride=2)
        self.head = nn.Linear(channels, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, H, W) -> (N, 10)."""
        return self.head(self.second(self.down(self.first(self.stem(x)))).mean((2, 3)))


def data(device: str) -> tuple[Tensor, Tensor]:
    """1797 images (N, 1, 16, 16) in shuffled order, and their digits."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    images = torch.from_numpy(digits.images[order]).float()[:, None] / 8 - 1
    return F.interpolate(images, (SIDE, SIDE), mode="bilinear").to(device), torch.from_numpy(digits.target[order]).to(device)


def main(
    epochs: Annotated[int, typer.Option(help="Passes over the data.")] = 12,
    batch: Annotated[int, typer.Option(help="Images at a time.")] = 64,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    out: Annotated[Path, typer.Option(metavar="PNG", help="Where the loss curve goes.")] = Path("demo_out/digits.png"),
    least: Annotated[float, typer.Option(help="Exit with 1 below this accuracy.")] = 0.97,
) -> None:
    """Train, measure, and draw."""
    console = Console()
    torch.manual_seed(0)
    images, labels = data(device)
    net = Net().to(device)
    compiled = torch.compile(net, dynamic=True)
    optimizer = torch.optim.AdamW(net.parameters(), lr=4e-3, weight_decay=0.01)
    steps = epochs * ((len(images) - HELD_OUT) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    with torch.autocast(device, torch.bfloat16):
        warmup(net, images[:batch])  # every layer runs on its own kernel from the first step on, so that a second run is the same to the bit
    losses: list[float] = []
    start = time.perf_counter()
    for _ in track(range(epochs), "training", console=console):
        order = HELD_OUT + torch.randperm(len(images) - HELD_OUT)
        for chosen in order.split(batch):
            if len(chosen) < batch:
                continue
            with torch.autocast(device, torch.bfloat16):
                loss = F.cross_entropy(compiled(images[chosen.to(device)]), labels[chosen.to(device)])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
    seconds = time.perf_counter() - start
    with torch.no_grad(), torch.autocast(device, torch.bfloat16):
        right = compiled(images[:HELD_OUT]).argmax(1) == labels[:HELD_OUT]
    accuracy = right.float().mean().item()
    out.parent.mkdir(parents=True, exist_ok=True)
    draw(losses, accuracy, out)
    console.print(f"{sum(p.numel() for p in net.parameters())} parameters, {steps} steps of {batch} in {seconds:.0f} s; last loss {losses[-1]:.4f}")
    console.print(f"accuracy on {HELD_OUT} images that were held out: {accuracy:.1%}; loss curve in {out}")
    raise typer.Exit(0 if accuracy >= least else 1)


def draw(losses: list[float], accuracy: float, path: Path) -> None:
    """The loss of each step, and its running mean."""
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    mean = np.convolve(losses, np.ones(20) / 20, "valid")
    axes.semilogy(losses, color="0.75", linewidth=0.8, label="each step")
    axes.semilogy(range(19, len(losses)), mean, color="C0", label="mean of 20")
    axes.set(xlabel="step", ylabel="cross entropy", title=f"digits, 8 angles, K=15, bfloat16 autocast: {accuracy:.1%} on held-out images")
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    typer.run(main)
