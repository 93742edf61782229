"""Sums of the normal equations of a pixel kernel, block by block in Fourier space, on a CPU or a GPU.

For `science.sfft`. A block of the image is correlated with itself and its surroundings; the transforms' products are
added up over all blocks, so memory is that of one block and of the products. All in float64, so that a CPU and a
GPU give the same kernel.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from seechange_assets.products import FloatImage
from seechange_assets.science.matching_kernel import n_terms

if TYPE_CHECKING:
    import torch

FloatArray = NDArray[np.float64]

_SIDE = 320  # of the transforms [pixel]: they fit the caches of a CPU and are wide against the lags
_BATCH = {"cpu": 1, "cuda": 16}  # blocks at a time


@dataclass(frozen=True, slots=True)
class Scene:
    """What is summed over: images of shape (ny, nx), all of them multiplied by the weight.

    ``half_width_px`` is the reach w of the kernel, the degrees are those of the polynomials.
    """

    image: FloatImage
    target: FloatImage
    weight: FloatImage
    half_width_px: int
    kernel_degree: int
    sky_degree: int
    device: str

    @property
    def n_terms(self) -> int:
        """Terms of the kernel's polynomial."""
        return n_terms(self.kernel_degree)

    @property
    def n_sky(self) -> int:
        """Terms of the sky's polynomial."""
        return n_terms(self.sky_degree)

    @property
    def lag(self) -> int:
        """Largest distance of two kernel pixels along an axis."""
        return 2 * self.half_width_px

    @property
    def side(self) -> int:
        """Of the transforms: blocks and their surroundings."""
        return max(_SIDE, 64 * -(-8 * self.lag // 64))


@dataclass(frozen=True, slots=True)
class Correlations:
    """The sums of the normal equations; u_i is weight times image times term i, w the reach of the kernel.

    ``images`` is ``(n_terms, n_terms, 4w+1, 4w+1)``, the sum over x of u_i(x) u_j(x + d) at lag d = index - 2w;
    ``target`` is ``(n_terms, 2w+1, 2w+1)``, of u_i(x) t(x + d) with the weighted target t at d = index - w; ``sky`` is
    ``(n_terms, n_sky, 2w+1, 2w+1)``, the same with the weighted terms of the sky; ``sky_sky`` ``(n_sky, n_sky)`` and
    ``sky_target`` ``(n_sky,)`` are at lag 0.
    """

    images: FloatArray
    target: FloatArray
    sky: FloatArray
    sky_sky: FloatArray
    sky_target: FloatArray


@dataclass(frozen=True, slots=True)
class _Block:
    """Some blocks at a time: their corners, the images around them and the terms, (..., n_blocks, side, side)."""

    corners: list[tuple[int, int]]
    image: "torch.Tensor"
    target: "torch.Tensor"
    weight: "torch.Tensor"
    terms: "torch.Tensor"


def correlate(scene: Scene) -> Correlations:
    """All sums."""
    import torch

    n, n_sky, side = scene.n_terms, scene.n_sky, scene.side
    n_right = n + 1 + n_sky
    products = torch.zeros((n, n_right, side, side // 2 + 1), dtype=torch.complex128, device=scene.device)
    plain = torch.zeros((n_sky, n_sky + 1), dtype=torch.float64, device=scene.device)
    with _one_thread():
        for block in _blocks(scene):
            weighted = block.image * block.weight
            right = torch.cat([
                block.terms[:n] * weighted, (block.target * block.weight)[None], block.terms[:n_sky] * block.weight,
            ])  # fmt: skip
            plain += _at_lag_0(right[n + 1 :], right[n], scene.lag)
            left_ft = torch.fft.rfft2(_inside(right[:n], scene.lag)).conj()
            right_ft = torch.fft.rfft2(right)
            for a in range(n):
                for b in range(a, n_right):
                    products[a, b] += (left_ft[a] * right_ft[b]).sum(0)
        lags = torch.fft.irfft2(products, s=(side, side)).cpu().numpy()
    return _gathered(lags, plain.cpu().numpy(), scene)


def correlate_residual(scene: Scene, kernels: FloatArray, sky: FloatArray) -> tuple[FloatArray, FloatArray, FloatImage]:
    """What the image convolved with a kernel leaves of the target, and its sums with the image.

    Parameters
    ----------
    scene : Scene
    kernels : ndarray of float64, shape (n_terms, 2w+1, 2w+1)
        The kernel of each term; the term is taken where the light comes from.
    sky : ndarray of float64, shape (n_sky,)

    Returns
    -------
    tuple of ndarray
        ``target`` and ``sky_target`` as in `Correlations`, the weighted residual in the place of the target; and the
        residual itself, shape (ny, nx), zero far from any weight.
    """
    import torch

    n, n_sky, side, half = scene.n_terms, scene.n_sky, scene.side, scene.half_width_px
    products = torch.zeros((n, side, side // 2 + 1), dtype=torch.complex128, device=scene.device)
    plain = torch.zeros((n_sky, n_sky + 1), dtype=torch.float64, device=scene.device)
    residual = np.zeros(scene.image.shape, np.float32)
    frame = np.zeros((n, side, side))
    frame[:, : 2 * half + 1, : 2 * half + 1] = kernels
    with _one_thread():
        kernel_ft = torch.fft.rfft2(torch.from_numpy(np.roll(frame, (-half, -half), (1, 2))).to(scene.device))
        levels = torch.from_numpy(sky).to(scene.device)
        for block in _blocks(scene):
            made = (torch.fft.rfft2(block.terms[:n] * block.image) * kernel_ft[:, None]).sum(0)
            left = block.target - torch.fft.irfft2(made, s=(side, side))
            left -= torch.tensordot(levels, block.terms[:n_sky], 1)
            _write(residual, left, block.corners, scene)
            weighted = _inside(left * block.weight, half)  # farther out the transform wraps around
            plain += _at_lag_0(block.terms[:n_sky] * block.weight, weighted, scene.lag)
            sources = _inside(block.terms[:n] * (block.image * block.weight), scene.lag)
            products += (torch.fft.rfft2(sources).conj() * torch.fft.rfft2(weighted)).sum(1)
        lags = torch.fft.irfft2(products, s=(side, side)).cpu().numpy()
    narrow = np.arange(-half, half + 1)
    return lags[:, narrow[:, None], narrow], plain.cpu().numpy()[:, -1], residual


class _one_thread:  # noqa: N801  (reads as a statement)
    """Torch with one thread inside, so that sums have one order and the same bytes on every machine."""

    def __enter__(self) -> None:
        import torch

        self._before = torch.get_num_threads()
        torch.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        import torch

        torch.set_num_threads(self._before)


def _blocks(scene: Scene) -> Iterator[_Block]:
    """The blocks with any weight, a few at a time."""
    import torch

    step, lag, (ny, nx) = scene.side - 2 * scene.lag, scene.lag, scene.weight.shape
    corners = [
        (y, x) for y in range(0, ny, step) for x in range(0, nx, step) if scene.weight[y : y + step, x : x + step].any()
    ]
    degree = max(scene.kernel_degree, scene.sky_degree)
    images = (scene.image, scene.target, scene.weight)
    for start in range(0, len(corners), _BATCH[scene.device]):
        some = corners[start : start + _BATCH[scene.device]]
        cuts = np.stack([_cuts(images, *corner, lag, scene.side) for corner in some], axis=1)
        image, target, weight = torch.from_numpy(cuts).to(scene.device, torch.float64)
        yield _Block(some, image, target, weight, _term_maps(some, (ny, nx), degree, lag, scene.side, scene.device))


def _cuts(images: tuple[FloatImage, ...], row: int, column: int, lag: int, side: int) -> FloatImage:
    """A block and `lag` pixels around it of each image, zero outside."""
    ny, nx = images[0].shape
    y0, x0 = max(row - lag, 0), max(column - lag, 0)
    y1, x1 = min(row - lag + side, ny), min(column - lag + side, nx)
    cuts = np.zeros((len(images), side, side), np.float32)
    for cut, image in zip(cuts, images, strict=True):
        cut[y0 - row + lag : y1 - row + lag, x0 - column + lag : x1 - column + lag] = image[y0:y1, x0:x1]
    return cuts


def _term_maps(
    corners: list[tuple[int, int]], shape: tuple[int, int], degree: int, lag: int, side: int, device: str
) -> "torch.Tensor":
    """Terms as in `science.psf.polynomial_terms` on the pixels around some blocks, (n_terms, n_blocks, side, side)."""
    import torch

    offset, first = np.arange(side) - lag, np.array(corners, float)
    ny, nx = shape
    v = torch.from_numpy(2 * (first[:, :1] + offset) / max(ny - 1, 1) - 1).to(device)[:, :, None]
    u = torch.from_numpy(2 * (first[:, 1:] + offset) / max(nx - 1, 1) - 1).to(device)[:, None, :]
    return torch.stack([u ** (total - j) * v**j for total in range(degree + 1) for j in range(total + 1)])


def _inside(planes: "torch.Tensor", border: int) -> "torch.Tensor":
    """Copy with a border of zeros."""
    import torch

    kept = torch.zeros_like(planes)
    inner = slice(border, planes.shape[-1] - border)
    kept[..., inner, inner] = planes[..., inner, inner]
    return kept


def _at_lag_0(sky: "torch.Tensor", target: "torch.Tensor", lag: int) -> "torch.Tensor":
    """Sums over the blocks alone of each sky term times each sky term, and times the target."""
    import torch

    inner = slice(lag, target.shape[-1] - lag)
    terms = sky[..., inner, inner].flatten(1)
    return terms @ torch.cat([terms, target[..., inner, inner].reshape(1, -1)]).T


def _write(residual: FloatImage, values: "torch.Tensor", corners: list[tuple[int, int]], scene: Scene) -> None:
    lag = scene.lag
    for value, (row, column) in zip(values.cpu().numpy(), corners, strict=True):
        place = residual[row : row + scene.side - 2 * lag, column : column + scene.side - 2 * lag]
        place[:] = value[lag : lag + place.shape[0], lag : lag + place.shape[1]]


def _gathered(lags: FloatArray, plain: FloatArray, scene: Scene) -> Correlations:
    """The wanted lags out of the periodic ones; the sums below the diagonal are those above at minus the lag."""
    n, half = scene.n_terms, scene.half_width_px
    wide, narrow = np.arange(-2 * half, 2 * half + 1), np.arange(-half, half + 1)
    images = np.zeros((n, n, wide.size, wide.size))
    for a in range(n):
        for b in range(a, n):
            images[a, b] = lags[a, b][np.ix_(wide, wide)]
            images[b, a] = images[a, b][::-1, ::-1]
    others = lags[:, n:][:, :, narrow[:, None], narrow]
    return Correlations(images, others[:, 0], others[:, 1:], plain[:, :-1], plain[:, -1])
