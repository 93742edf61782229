"""Train the real/bogus network on simulated triplets: ``python -m seechange_assets.realbogus.train``.

Writes ``cnn-1.npz`` beside this module (about 100 kB) and prints, on triplets of another seed, the
fraction of each kind of real that is missed at 1 percent false positives, and the false positives
of each kind of bogus. Seeded: the same versions on one thread give the same weights.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from seechange_assets.realbogus.network import FEATURES, VIEW_PX, evaluate, network_input
from seechange_assets.realbogus.stamps import KINDS, REAL_KINDS, simulate

if TYPE_CHECKING:
    import torch

SEED = 20261122
CHANNELS = (12, 24, 32)
HIDDEN = 32


def sample(
    seed: int, n: int, *, fwhm_px: float | None = None, kinds: tuple[str, ...] = KINDS
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64], NDArray]:
    """At least `n` examples: stamps, features, kinds, S/N."""
    rng = np.random.default_rng(seed)
    parts, count = [], 0
    while count < n:
        batch = simulate(rng, fwhm_px=fwhm_px, kinds=kinds)
        parts.append(
            (*network_input(batch.cutouts, batch.measurements), batch.kind, np.abs(batch.measurements.table["score"]))
        )
        count += len(batch.kind)
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))  # type: ignore[return-value]


def build(mean: NDArray[np.float32], scale: NDArray[np.float32]) -> "torch.nn.Module":
    """The network in torch, with the names of the layers that `network.evaluate` reads."""
    import torch
    from torch import nn

    class Network(nn.Module):
        mean: torch.Tensor
        scale: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(3, CHANNELS[0], 3, padding=1)
            self.conv2 = nn.Conv2d(CHANNELS[0], CHANNELS[1], 3, padding=1)
            self.conv3 = nn.Conv2d(CHANNELS[1], CHANNELS[2], 3, padding=1)
            self.hidden = nn.Linear(CHANNELS[2] * (VIEW_PX // 8) ** 2 + len(FEATURES), HIDDEN)
            self.output = nn.Linear(HIDDEN, 1)
            self.register_buffer("mean", torch.from_numpy(mean))
            self.register_buffer("scale", torch.from_numpy(scale))

        def forward(self, maps: "torch.Tensor", features: "torch.Tensor") -> "torch.Tensor":
            for layer in (self.conv1, self.conv2, self.conv3):
                maps = nn.functional.max_pool2d(torch.relu(layer(maps)), 2)
            joined = torch.cat([maps.flatten(1), (features - self.mean) / self.scale], 1)
            if self.training:
                joined = nn.functional.dropout(joined, 0.1)
            return self.output(torch.relu(self.hidden(joined)))[:, 0]

    return Network()


def exported(network: "torch.nn.Module") -> dict[str, NDArray[np.float32]]:
    """Weights by the names that `network.evaluate` reads."""
    values = {key: value.detach().numpy().astype(np.float32) for key, value in network.state_dict().items()}
    values["features.mean"], values["features.scale"] = values.pop("mean"), values.pop("scale")
    return values


def train(stamps: NDArray, features: NDArray, is_real: NDArray, *, epochs: int, seed: int = SEED) -> "torch.nn.Module":
    """Adam with a one-cycle learning rate; each example turned and mirrored at random in each epoch."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    network = build(features.mean(axis=0), features.std(axis=0) + 1e-3)
    batch = 256
    steps = epochs * (len(stamps) // batch)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for _ in range(epochs):
        order = rng.permutation(len(stamps))
        for first in range(0, len(order) - batch + 1, batch):
            rows = order[first : first + batch]
            turned = np.rot90(stamps[rows], int(rng.integers(4)), axes=(2, 3))[:, :, :: rng.choice([1, -1])]
            logit = network(torch.from_numpy(np.ascontiguousarray(turned)), torch.from_numpy(features[rows]))
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                logit, torch.from_numpy(is_real[rows].astype(np.float32))
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def report(score: NDArray, kind: NDArray, snr: NDArray, cut: float | None = None) -> list[str]:
    """What is missed and what passes, per kind and S/N, at `cut` or at 1 percent false positives."""
    real = kind < len(REAL_KINDS)
    cut = float(np.quantile(score[~real], 0.99)) if cut is None else cut
    missed, passed = np.mean(score[real] < cut), np.mean(score[~real] >= cut)
    lines = [f"cut {cut:.3f}: {missed:.2%} of the reals missed, {passed:.2%} false positives"]
    for k, name in enumerate(KINDS):
        chosen = score[kind == k]
        if k < len(REAL_KINDS):
            lines.append(f"  {name:14s} {np.mean(chosen < cut):7.2%} missed of {chosen.size}")
        else:
            lines.append(f"  {name:14s} {np.mean(chosen >= cut):7.2%} passed of {chosen.size}")
    for low, high in ((4.5, 6), (6, 8), (8, 15), (15, 1000)):
        chosen = score[real & (snr >= low) & (snr < high)]
        lines.append(f"  S/N {low:4.1f} to {high:6.1f} {np.mean(chosen < cut):7.2%} missed of {chosen.size}")
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Simulate, train, save, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=20000)
    parser.add_argument("--epochs", type=int, default=11)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("cnn-1.npz"))
    options = parser.parse_args(arguments)
    start = time.process_time()
    stamps, features, kind, _ = sample(SEED, options.examples)
    sys.stdout.write(f"simulated {len(kind)} in {time.process_time() - start:.0f} core-seconds\n")
    weights = exported(train(stamps, features, kind < len(REAL_KINDS), epochs=options.epochs))
    np.savez_compressed(options.output, allow_pickle=False, **weights)
    sys.stdout.write(f"trained after {time.process_time() - start:.0f} core-seconds\n")
    stamps, features, kind, snr = sample(SEED + 1, 6000)
    score = evaluate(weights, stamps, features)
    sys.stdout.write("\n".join([*report(score, kind, snr), *report(score, kind, snr, 0.5)]) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
