"""Train the real/bogus classifiers on simulated triplets: ``python -m seechange_assets.realbogus.train``.

Writes ``cnn-1`` and ``tabular-1`` beside this module: the weights (``.npz``) and, measured on mosaics of
another seed, the operating point and the rates of each kind (``.yaml``). Seeded: the same versions of the
libraries give the same files, however many processes simulate.
"""

import argparse
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from seechange_assets.realbogus.network import FEATURES, VIEW_PX, evaluate, evaluate_features, network_input
from seechange_assets.realbogus.painters import KINDS, REAL_KINDS
from seechange_assets.realbogus.stamps import simulate

if TYPE_CHECKING:
    import torch

SEED = 20261122
CHANNELS = (12, 24, 32)
HIDDEN = 32
#: Fraction of the artefacts that may pass at the operating point.
FALSE_POSITIVES = 0.01
SNR_BINS = ((5, 5.5), (5.5, 6), (6, 8), (8, 15), (15, 1000))

Sample = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64], NDArray[np.float64]]


def sample(seed: int, n_mosaics: int, *, workers: int = 1) -> Sample:
    """Stamps, features, kinds and S/N of about 70 examples per mosaic; each mosaic has a generator of its own."""
    job = partial(_mosaic, seed)
    if workers == 1:
        parts = [job(number) for number in range(n_mosaics)]
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            parts = list(pool.map(job, range(n_mosaics), chunksize=4))
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))  # type: ignore[return-value]


def _mosaic(seed: int, number: int) -> Sample:
    batch = simulate(np.random.default_rng([seed, number]))
    snr = np.abs(np.asarray(batch.measurements.table["score"], np.float64))
    return *network_input(batch.cutouts, batch.measurements), batch.kind, snr


def build(mean: NDArray[np.float32], scale: NDArray[np.float32]) -> "torch.nn.Module":
    """The convolutional network in torch, with the names of the layers that `network.evaluate` reads."""
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


def build_tabular(mean: NDArray[np.float32], scale: NDArray[np.float32]) -> "torch.nn.Module":
    """Two hidden layers on the measured features alone, for `network.evaluate_features`."""
    import torch
    from torch import nn

    class Network(nn.Module):
        mean: torch.Tensor
        scale: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(len(FEATURES), HIDDEN)
            self.hidden = nn.Linear(HIDDEN, HIDDEN)
            self.output = nn.Linear(HIDDEN, 1)
            self.register_buffer("mean", torch.from_numpy(mean))
            self.register_buffer("scale", torch.from_numpy(scale))

        def forward(self, _: "torch.Tensor", features: "torch.Tensor") -> "torch.Tensor":
            hidden = torch.relu(self.first((features - self.mean) / self.scale))
            return self.output(torch.relu(self.hidden(hidden)))[:, 0]

    return Network()


def exported(network: "torch.nn.Module") -> dict[str, NDArray[np.float32]]:
    """Weights by the names that `network` reads."""
    values = {key: value.detach().numpy().astype(np.float32) for key, value in network.state_dict().items()}
    values["features.mean"], values["features.scale"] = values.pop("mean"), values.pop("scale")
    return values


def train(
    network: "torch.nn.Module", stamps: NDArray, features: NDArray, is_real: NDArray, *, epochs: int, seed: int = SEED
) -> "torch.nn.Module":
    """AdamW with a one-cycle learning rate; each batch turned and mirrored at random."""
    import torch

    rng = np.random.default_rng(seed)
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


def trained(name: str, data: Sample, *, epochs: int) -> dict[str, NDArray[np.float32]]:
    """Weights of a classifier by its name; on one thread, from fixed initial weights."""
    import torch

    stamps, features, kind, _ = data
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    make = build if name == "cnn-1" else build_tabular
    network = make(features.mean(axis=0), features.std(axis=0) + np.float32(1e-3))
    return exported(train(network, stamps, features, kind < len(REAL_KINDS), epochs=epochs))


def operating_cut(score: NDArray, kind: NDArray, false_positives: float = FALSE_POSITIVES) -> float:
    """Least cut, in hundredths, at which no more than that fraction of the artefacts passes."""
    return float(np.ceil(100 * np.quantile(score[kind >= len(REAL_KINDS)], 1 - false_positives)) / 100)


def rates(score: NDArray, kind: NDArray, snr: NDArray, cut: float) -> dict[str, Any]:
    """What is missed and what passes at a cut: overall, by kind, and the reals by S/N; each with its number."""
    real = kind < len(REAL_KINDS)

    def missed(chosen: NDArray) -> list[float]:
        return [round(float(np.mean(score[chosen] < cut)), 4) if chosen.any() else 0.0, int(chosen.sum())]

    def passed(chosen: NDArray) -> list[float]:
        return [round(1 - missed(chosen)[0], 4), int(chosen.sum())]

    return {
        "cut": cut,
        "missed": missed(real),
        "passed": passed(~real),
        "missed_by_kind": {name: missed(kind == k) for k, name in enumerate(REAL_KINDS)},
        "passed_by_kind": {name: passed(kind == KINDS.index(name)) for name in KINDS[len(REAL_KINDS) :]},
        "missed_by_snr": {f"{a:g}-{b:g}": missed(real & (snr >= a) & (snr < b)) for a, b in SNR_BINS},
    }


def scored(name: str, weights: Mapping[str, NDArray[np.float32]], data: Sample) -> NDArray[np.float64]:
    """Scores of a sample by a classifier."""
    return evaluate(weights, data[0], data[1]) if name == "cnn-1" else evaluate_features(weights, data[1])


def main(arguments: list[str] | None = None) -> int:
    """Simulate, train, save, report."""
    import yaml

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mosaics", type=int, default=450)
    parser.add_argument("--validation-mosaics", type=int, default=150)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--workers", type=int, default=2, help="processes that simulate; the result is the same")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    options = parser.parse_args(arguments)
    start = time.monotonic()
    data = sample(SEED, options.mosaics, workers=options.workers)
    validation = sample(SEED + 1, options.validation_mosaics, workers=options.workers)
    sys.stdout.write(f"simulated {len(data[2])} and {len(validation[2])} in {time.monotonic() - start:.0f} s\n")
    for name in ("cnn-1", "tabular-1"):
        weights = trained(name, data, epochs=options.epochs)
        np.savez_compressed(options.output / f"{name}.npz", allow_pickle=False, **weights)
        score = scored(name, weights, validation)
        report = yaml.safe_dump(rates(score, *validation[2:], operating_cut(score, validation[2])), sort_keys=False)
        (options.output / f"{name}.yaml").write_text(report)
        sys.stdout.write(f"{name} after {time.monotonic() - start:.0f} s\n{report}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
