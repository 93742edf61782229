"""Charge of particles in a thick CCD, drawn without the project's simulator: muons, worms and blots."""

import numpy as np

# Fully depleted CCDs: thickness and pixel [micron], electrons per micron of a muon's path, widest diffusion [micron].
THICKNESS_UM, PIXEL_UM, MUON_E_UM, DIFFUSION_UM = 250.0, 15.0, 70.0, 6.0
PACKETS = 8


def draw_particles(rng, shape, count):
    """Electrons ``shape`` left by so many particles."""
    charge = np.zeros(shape, np.float32)
    for kind in rng.choice(3, count, p=[0.55, 0.3, 0.15]):
        x, y = rng.uniform(0, shape[1]), rng.uniform(0, shape[0])
        _deposit(rng, charge, *(_muon, _worm, _blot)[kind](rng, x, y))
    return charge


def _muon(rng, x, y):
    """A straight track through the whole thickness, angles as at sea level (cos^2), charge with a Landau tail."""
    cosine = rng.uniform(0.03, 1) ** (1 / 3)
    angle, slope = rng.uniform(0, 2 * np.pi), np.sqrt(1 - cosine**2) / cosine / PIXEL_UM
    z = np.arange(0, THICKNESS_UM, max(0.02, 2 * cosine))
    knock_on = np.where(rng.uniform(size=z.size) < 0.02, rng.exponential(6, z.size), 0)
    share = MUON_E_UM * THICKNESS_UM / cosine / z.size * (rng.gamma(2, 0.5, z.size) + knock_on)
    return x + z * slope * np.cos(angle), y + z * slope * np.sin(angle), z, share


def _worm(rng, x, y):
    """An electron scattered many times at one depth."""
    step = 0.1
    n = int((2 + rng.exponential(15)) / step)
    angle = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.12, n))
    share = rng.lognormal(np.log(600), 0.8) * step * np.linspace(0.5, 1.5, n) * rng.gamma(3, 1 / 3, n)
    depth = np.full(n, rng.uniform(0, THICKNESS_UM))
    return x + np.cumsum(np.cos(angle)) * step, y + np.cumsum(np.sin(angle)) * step, depth, share


def _blot(rng, x, y):
    """All charge at one place."""
    share = np.full(40, rng.lognormal(np.log(1500), 0.6) / 40)
    return np.full(40, x), np.full(40, y), np.full(40, rng.uniform(0, THICKNESS_UM)), share


def _deposit(rng, charge, x, y, z, electrons):
    """Packets of charge that diffuse on their way ``z`` [micron] to the pixels."""
    spread = np.repeat(DIFFUSION_UM / PIXEL_UM * np.sqrt(z / THICKNESS_UM), PACKETS)
    column, row = (
        np.floor(np.repeat(a, PACKETS) + spread * rng.normal(size=spread.size) + 0.5).astype(int) for a in (x, y)
    )
    inside = (column >= 0) & (row >= 0) & (column < charge.shape[1]) & (row < charge.shape[0])
    packets = np.repeat(electrons / PACKETS, PACKETS).astype(np.float32)
    np.add.at(charge, (row[inside], column[inside]), packets[inside])
