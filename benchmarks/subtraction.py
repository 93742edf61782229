"""Core-seconds and peak memory of the warp beside SWarp, and of the pixel kernel beside the `sfft` of PyPI.

    python benchmarks/subtraction.py NEW.fits REFERENCE.fits [--sfft-python PYTHON]

Both fits get the same crop of the same pair on one grid, the same mask of sources, the same reach and degrees of the
kernel, and one thread. Each runs in a process of its own, the second run counts: compiled code is loaded then.
`sfft` is left out where no interpreter is given that can import it, SWarp where it is not installed.
This file is run by that other interpreter, too, so it imports nothing of the project at the top.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import numpy as np  # noqa: E402  (after the number of threads is set)

ROOT = Path(__file__).resolve().parents[1]
CROP = 1024
DEGREE, SKY_DEGREE = 2, 0
ARRAYS = ("new", "reference", "new_variance", "reference_variance", "flags", "stars", "mask")


def compare_subtraction(products: dict[str, Any], work: Path, sfft_python: str | None = None) -> dict[str, float]:
    """Print ours beside SWarp and sfft for one pair of images; the figures.

    Parameters
    ----------
    products : dict
        ``image``, ``background``, ``psf``, ``wcs``, ``sources`` and ``reference`` of `benchmarks.bench`.
    work : Path
        Folder for files in between.
    sfft_python : str, optional
        Interpreter that has `sfft`; this one if it has it.
    """
    figures = {**_warps(products, work), **_fits(products, work, sfft_python)}
    for what, theirs in (("warp", "swarp"), ("kernel fit and convolution, 1024 x 1024", "sfft")):
        ours_s, ours_mb = figures[f"{theirs}_ours_core_s"], figures[f"{theirs}_ours_mb"]
        print(f"\n{what}: ours {ours_s:.2f} core-s, {ours_mb:.0f} MB", end="")
        if f"{theirs}_core_s" in figures:
            core_s, peak_mb = figures[f"{theirs}_core_s"], figures[f"{theirs}_mb"]
            print(f"; {theirs} {core_s:.2f} core-s, {peak_mb:.0f} MB", end="")
            print(f"; ratios {core_s / ours_s:.1f} and {peak_mb / ours_mb:.1f}")
        else:
            print(f"; {theirs} is not installed")
    return figures


def _warps(products: dict[str, Any], work: Path) -> dict[str, float]:
    """The reference onto the grid of the new image; memory of ours is its inputs and what the warp adds to them."""
    from benchmarks.bench import _peak_mb, _reset_peak, children_s
    from seechange_assets.products import wcs_from_text
    from seechange_assets.science.warp import warp_image

    reference, shape = products["reference"], products["image"].data.shape
    source, target = wcs_from_text(reference.wcs.header), wcs_from_text(products["wcs"].header)
    best, peak = float("inf"), 0.0
    for _ in range(3):
        _reset_peak()
        before, start = _peak_mb(), children_s()
        warp_image(reference.data, reference.variance, reference.flags, source, target, shape)
        best, peak = min(best, children_s() - start), max(peak, _peak_mb() - before)
    inputs = (reference.data.nbytes + reference.variance.nbytes + reference.flags.nbytes) / 2**20
    figures = {"swarp_ours_core_s": best, "swarp_ours_mb": inputs + peak}
    program = shutil.which("SWarp") or shutil.which("swarp")
    return figures if program is None else {**figures, **_swarp(program, products, work)}


def _swarp(program: str, products: dict[str, Any], work: Path) -> dict[str, float]:
    from astropy.io import fits

    from benchmarks.bench import _tool
    from seechange_assets.products import header_from_text

    reference, (ny, nx) = products["reference"], products["image"].data.shape
    header = header_from_text(reference.wcs.header)
    # The pixels bring their own axes; cards of the solved header would stand in the wrong place.
    del header["NAXIS*"]
    fits.PrimaryHDU(reference.data, header).writeto(work / "r.fits", overwrite=True)
    target = header_from_text(products["wcs"].header)
    target["NAXIS"], target["NAXIS1"], target["NAXIS2"] = 2, nx, ny
    (work / "warped.head").write_text(target.tostring(sep="\n", endcard=True, padding=False) + "\n")
    options = ["-RESAMPLING_TYPE", "LANCZOS3", "-SUBTRACT_BACK", "N", "-COMBINE_TYPE", "AVERAGE", "-NTHREADS", "1"]
    options += ["-IMAGEOUT_NAME", "warped.fits", "-WRITE_XML", "N", "-VERBOSE_TYPE", "QUIET"]
    figures = _tool([program, "r.fits", *options], work)
    return {"swarp_core_s": figures.core_s, "swarp_mb": figures.peak_mb}


def _fits(products: dict[str, Any], work: Path, sfft_python: str | None) -> dict[str, float]:
    """Both fits of one crop."""
    half = _write_crop(products, work)
    figures = {f"sfft_ours_{name}": value for name, value in _in_process(sys.executable, "ours", half, work).items()}
    degree = int(figures["sfft_ours_degree"])  # ours lowers it where sources are few; both fit as many unknowns
    python = sfft_python or sys.executable
    if subprocess.run([python, "-c", "import sfft"], capture_output=True, check=False).returncode == 0:
        figures |= {f"sfft_{name}": value for name, value in _in_process(python, "sfft", half, work, degree).items()}
        scatter = figures["sfft_residual"] / figures["sfft_ours_residual"]
        print(f"\nresidual at the fitted sources, sfft over ours: {scatter:.3f}")
    return figures


def _write_crop(products: dict[str, Any], work: Path) -> int:
    """The middle of the pair on one grid, as arrays; the reach of the kernel."""
    from seechange_assets.products import wcs_from_text
    from seechange_assets.science.background import level_map
    from seechange_assets.science.inpaint import inpaint
    from seechange_assets.science.matched_psf import psf_pairs, stamp_size
    from seechange_assets.science.matching_kernel import widths_px
    from seechange_assets.science.noise import variance_map
    from seechange_assets.science.sfft import default_half_width
    from seechange_assets.science.star_match import bright_stars
    from seechange_assets.science.warp import warp_image

    p, reference = products, products["reference"]
    source, target = wcs_from_text(reference.wcs.header), wcs_from_text(p["wcs"].header)
    shape = p["image"].data.shape
    warped, variance, flags = warp_image(reference.data, reference.variance, reference.flags, source, target, shape)
    flags |= p["image"].flags
    y0, x0 = ((n - min(n, CROP)) // 2 for n in shape)
    cut = np.s_[y0 : y0 + CROP, x0 : x0 + CROP]
    planes = {
        "new": inpaint(p["image"].data - level_map(p["background"]), flags)[cut],
        "reference": inpaint(warped, flags)[cut],
        "new_variance": variance_map(p["image"], p["background"])[cut], "reference_variance": variance[cut],
    }  # fmt: skip
    table = p["sources"].table[bright_stars(p["sources"], min_snr=20)]
    stars = np.stack([table["x"], table["y"]], axis=1) - (x0, y0)
    rows, columns = np.indices(planes["new"].shape)
    mask = np.zeros(planes["new"].shape, bool)
    size = stamp_size(p["psf"], reference.psf)
    psfs = psf_pairs(p["psf"], reference.psf, p["wcs"].header, reference.wcs.header, size)
    fwhm_px = 2.3548 * max(widths_px(psfs, shape))
    for x, y in stars:
        near = np.s_[max(int(y) - 20, 0) : max(int(y) + 21, 0), max(int(x) - 20, 0) : max(int(x) + 21, 0)]
        mask[near] |= np.hypot(columns[near] - x, rows[near] - y) < 2 * fwhm_px
    flux_scale = np.sum(planes["new"][mask]) / np.sum(planes["reference"][mask])
    planes["reference"] = planes["reference"] * np.float32(flux_scale)
    planes["reference_variance"] = planes["reference_variance"] * np.float32(flux_scale**2)
    center = psfs(shape[1] / 2, shape[0] / 2)
    for name, array in {**planes, "flags": flags[cut], "stars": stars, "mask": mask, "psfs": np.stack(center)}.items():
        np.save(work / f"{name}.npy", array)
    return default_half_width(fwhm_px)


def _in_process(python: str, which: str, half: int, work: Path, degree: int = DEGREE) -> dict[str, float]:
    """Run this file as a worker."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT) if which == "ours" else ""}
    command = [python, str(Path(__file__).resolve()), "--worker", which, "--half-width", str(half)]
    command += ["--degree", str(degree), str(work)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise RuntimeError(f"the benchmark of {which} failed: {done.stderr[-500:]}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def worker(which: str, half: int, degree: int, work: Path) -> dict[str, float]:
    """Fit and difference image, twice; figures of the second run."""
    arrays = {name: np.load(work / f"{name}.npy") for name in ARRAYS}
    run = {"ours": _ours, "sfft": _theirs}[which]
    run(arrays, half, degree, work)
    Path("/proc/self/clear_refs").write_text("5")
    start = time.process_time()
    difference, degree = run(arrays, half, degree, work)
    core_s = time.process_time() - start
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))
    scaled = difference / np.sqrt(arrays["new_variance"] + arrays["reference_variance"])
    inside = arrays["mask"].copy()
    inside[:40] = inside[-40:] = inside[:, :40] = inside[:, -40:] = False
    low, high = np.percentile(scaled[inside], [15.87, 84.13])
    return {"core_s": core_s, "mb": peak, "residual": float(high - low) / 2, "degree": degree}


def _ours(arrays: dict[str, np.ndarray], half: int, degree: int, work: Path) -> tuple[np.ndarray, int]:
    from seechange_assets.science.matching_kernel import ImagePair, convolve
    from seechange_assets.science.sfft import fit_sfft

    stamps = np.load(work / "psfs.npy")
    pair = ImagePair(*(arrays[name] for name in ARRAYS[:5]))
    kernel = fit_sfft(
        pair, lambda _x, _y: (stamps[0], stamps[1]), arrays["stars"], half_width_px=half, degree=degree,
        sky_degree=SKY_DEGREE, device="cpu",
    )  # fmt: skip
    if kernel.convolves == "reference":
        return pair.new - convolve(pair.reference, kernel), kernel.degree
    return convolve(pair.new, kernel) - pair.reference, kernel.degree


def _theirs(arrays: dict[str, np.ndarray], half: int, degree: int, work: Path) -> tuple[np.ndarray, int]:
    from astropy.io import fits
    from sfft.CustomizedPacket import Customized_Packet

    stamps = np.load(work / "psfs.npy")
    sharper = "REF" if (stamps[1] ** 2).sum() >= (stamps[0] ** 2).sum() else "SCI"
    paths = {}
    for name in ("reference", "new"):
        for masked in ("", "masked_"):
            data = np.where(arrays["mask"], arrays[name], 0) if masked else arrays[name]
            paths[masked + name] = str(work / f"{masked}{name}.fits")
            fits.PrimaryHDU(data.astype(np.float32)).writeto(paths[masked + name], overwrite=True)
    _, difference = Customized_Packet.CP(
        paths["reference"], paths["new"], paths["masked_reference"], paths["masked_new"], sharper, half,
        KerPolyOrder=degree, BGPolyOrder=SKY_DEGREE, ConstPhotRatio=True, BACKEND_4SUBTRACT="Numpy",
        NUM_CPU_THREADS_4SUBTRACT=1, VERBOSE_LEVEL=0,
    )  # fmt: skip
    return difference.T, degree


def given_pair(new: Path, reference: Path) -> dict[str, Any]:
    """Products of two calibrated FITS images."""
    from seechange_assets.instruments.generic import read_image
    from seechange_assets.science.subtract_pair import as_reference, calibrate

    c, old = (calibrate(read_image(path), None) for path in (new, reference))
    return {
        "image": c.image, "background": c.background, "psf": c.psf, "wcs": c.wcs, "sources": c.sources,
        "reference": as_reference(old),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", type=Path, nargs="+", help="new and reference image (of a worker: its folder)")
    parser.add_argument("--sfft-python", help="interpreter that can import sfft; this one by default")
    parser.add_argument("--worker", choices=["ours", "sfft"], help=argparse.SUPPRESS)
    parser.add_argument("--half-width", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--degree", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(worker(options.worker, options.half_width, options.degree, options.paths[0])))
        return 0
    if len(options.paths) != 2:
        parser.error("give a new image and a reference")
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as folder:
        compare_subtraction(given_pair(*options.paths), Path(folder), options.sfft_python)
    return 0


if __name__ == "__main__":
    sys.exit(main())
