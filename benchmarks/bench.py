"""Core-seconds and peak memory of every step on one CCD image, and of Debian's tools on the same pixels.

    make bench                        simulated LS4 CCD (1 arcsec/pixel), 2048 x 4096
    make bench ARGS="--image sci.fits --catalog gaia.ldac"     any calibrated image
    make bench ARGS="--repeat 5"      best of so many; the default is 3

A step is warm: compiled code is loaded and the step has run once on a small image. File input and output are not
counted, for the tools neither as far as they allow. Peak memory is that of a fresh process that does the step alone on
inputs made before; the floor is what its interpreter and inputs take. JSON goes to benchmarks/results.
"""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402  (after the number of threads is set)

RESULTS = Path(__file__).parent / "results"
SHAPE = (4096, 2048)
SMALL = (1024, 512)
IMAGE_TO_ZP = ("image", "background", "sources", "psf", "wcs", "zp")
TARGET_CORE_S, TARGET_MB = 2.5, 700
COUNTERPARTS = {
    "background + sources": (("background", "sources"), "source-extractor"),
    "psf": (("psf",), "psfex"),
    "wcs": (("wcs",), "scamp"),
}


@dataclass
class Figures:
    """What a step took."""

    core_s: float
    wall_s: float
    peak_mb: float = float("nan")


def simulated(shape: tuple[int, int], seed: int = 7) -> dict[str, Any]:
    """Raw frame, masters and catalogue of an LS4-like CCD of that shape."""
    from seechange_assets.instruments.base import RawCcd
    from seechange_assets.instruments.ls4 import Ls4
    from seechange_assets.products import ImageInfo, header_text
    from seechange_assets.science.masters import build_bias, build_flat
    from seechange_assets.simulation.ccd import FIELD_DEG, MJD, _draw_sky
    from seechange_assets.simulation.detector import expose, make_detector
    from seechange_assets.simulation.geometry import Geometry
    from seechange_assets.simulation.render import MoffatField
    from seechange_assets.simulation.scene import Conditions, render_scene
    from seechange_assets.simulation.sky import measure_catalog

    class Camera(Ls4):
        name = ""
        ccd_shape = shape

    rng, camera = np.random.default_rng(seed), Camera()
    amplifiers = camera.amplifiers()
    detector = make_detector(rng, amplifiers, camera.raw_shape, shape)
    sky = _draw_sky(rng, camera, "r", shape, 1.0, None, 30)
    geometry = Geometry(*FIELD_DEG, shape, 1.0)
    scene = render_scene(
        sky, camera, "r", geometry, MoffatField(1.8, shape), Conditions(MJD, 45.0, 1.8), with_transients=True
    )
    guess = camera.wcs_guess(FIELD_DEG[0] + 0.002, FIELD_DEG[1] - 0.001, "01")
    guess["CRPIX1"], guess["CRPIX2"] = (shape[1] + 1) / 2, (shape[0] + 1) / 2

    def raw(kind: str, electrons: np.ndarray, exptime_s: float) -> RawCcd:
        info = ImageInfo(
            exposure=f"bench_{kind}", ccd="01", instrument="ls4", field="bench", filter="r", mjd=MJD,
            exptime_s=exptime_s, airmass=1.1, target="", project="", gain=float(np.mean(camera.gains)),
            read_noise=float(np.mean(camera.read_noises)), saturation=camera.saturation_adu, pixel_scale_arcsec=1.0,
            wcs_guess=header_text(guess) if kind == "science" else "",
        )  # fmt: skip
        frame = expose(rng, electrons, detector, exptime_s=exptime_s)
        return RawCcd(info, frame.astype(np.float32), amplifiers)

    biases = [raw("bias", np.zeros(shape, np.float32), 0.0) for _ in range(3)]
    bias = build_bias(biases, calibration="bench")
    flat = build_flat([raw("flat", np.full(shape, 38000.0, np.float32), 5.0) for _ in range(3)], bias)
    return {
        "raw": raw("science", scene.electrons, 45.0), "bias": bias, "flat": flat,
        "catalog": measure_catalog(rng, [sky.stars]), "bad": np.zeros(shape, np.uint16),
    }  # fmt: skip


def given(image: Path, catalog: Path) -> dict[str, Any]:
    """A calibrated image of the user's."""
    from resources.sky_catalog import FileCatalog
    from seechange_assets.instruments.base import get_instrument
    from seechange_assets.instruments.generic import read_image
    from seechange_assets.science.astrometry import catalog_cone
    from seechange_assets.science.subtract_pair import plain_g

    raw = read_image(image)
    stars = FileCatalog(catalog).cone(*catalog_cone(raw.info, raw.data.shape, 60.0))
    plain = get_instrument("generic").gaia_magnitude if np.isfinite(stars.table["mag_bp"]).any() else plain_g
    return {"raw": raw, "catalog": stars, "bad": np.zeros(raw.data.shape, np.uint16), "magnitude": plain}


def steps() -> dict[str, Callable[[dict[str, Any]], Any]]:
    """Every step as a function of what the steps before made."""
    from seechange_assets.instruments.base import get_instrument
    from seechange_assets.science.astrometry import solve_wcs
    from seechange_assets.science.background import measure_background
    from seechange_assets.science.cutouts import make_cutouts
    from seechange_assets.science.detections import detect
    from seechange_assets.science.detrend import detrend
    from seechange_assets.science.difference import subtract
    from seechange_assets.science.photometric_calibration import calibrate_photometry
    from seechange_assets.science.psf_fit import build_psf
    from seechange_assets.science.sources import extract_sources

    camera = get_instrument("ls4")

    def masters(p: dict[str, Any]) -> dict[str, Any]:
        return {kind: p[kind] for kind in ("bias", "flat") if kind in p}

    return {
        "image": lambda p: detrend(p["raw"], masters(p), p["bad"]),
        "background": lambda p: measure_background(p["image"]),
        "sources": lambda p: extract_sources(p["image"], p["background"]),
        "psf": lambda p: build_psf(p["image"], p["background"], p["sources"]),
        "wcs": lambda p: solve_wcs(p["sources"], p["image"].info, p["image"].data.shape, p["catalog"]),
        "zp": lambda p: calibrate_photometry(
            p["image"].info, p["sources"], p["psf"], p["background"], p["wcs"],
            p.get("magnitude", camera.gaia_magnitude),
        ),
        "diff": lambda p: subtract(
            p["image"], p["background"], p["psf"], p["wcs"], p["zp"], p["sources"], p["reference"]
        ),
        "detections": lambda p: detect(p["diff"]),
        "cutouts": lambda p: make_cutouts(
            p["detections"], p["diff"], p["image"], p["background"], p["reference"]
        ),
    }  # fmt: skip


def reference_of(p: dict[str, Any]) -> Any:
    """The image with noise of its own in the role of a reference: the work of a subtraction is the same."""
    from seechange_assets.science.subtract_pair import CalibratedImage, as_reference

    noise = np.random.default_rng(1).standard_normal(p["image"].data.shape, dtype=np.float32)
    noise *= np.float32(p["background"].rms)
    image = replace(p["image"], data=p["image"].data + noise)
    return as_reference(CalibratedImage(image, *(p[name] for name in IMAGE_TO_ZP[1:])))


def children_s() -> float:
    """CPU seconds of this process and of its finished children."""
    own, others = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + others.ru_utime + others.ru_stime


def timed(function: Callable[[dict[str, Any]], Any], products: dict[str, Any], repeat: int) -> tuple[Any, Figures]:
    """The product, and the best of `repeat` runs."""
    best = Figures(float("inf"), float("inf"))
    for _ in range(repeat):
        core, wall = children_s(), time.perf_counter()
        result = function(products)
        best = Figures(min(best.core_s, children_s() - core), min(best.wall_s, time.perf_counter() - wall))
    return result, best


def run_steps(products: dict[str, Any], names: list[str], repeat: int) -> dict[str, Figures]:
    """Time the steps in order; their products are left in `products`."""
    figures = {}
    functions = steps()
    for name in names:
        if name == "diff":
            products["reference"] = reference_of(products)
        products[name], figures[name] = timed(functions[name], products, repeat)
    return figures


def _peak_of_chain(products: dict[str, Any], names: list[str], queue: Any) -> None:
    """In a fresh process: resident size before, and the highest one at the end of each step."""
    _reset_peak()
    run_steps(_warm_products(), [n for n in names if n in IMAGE_TO_ZP], 1)
    functions, peaks = steps(), {}
    for name in names:
        if name == "diff":
            products["reference"] = reference_of(products)
        _reset_peak()
        products[name] = functions[name](products)
        peaks[name] = _peak_mb()
    queue.put(peaks)


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _peak_mb(pid: int | str = "self") -> float:
    """Highest resident size of a process since its start or the last reset; NaN where Linux is missing."""
    status = Path(f"/proc/{pid}/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), float("nan"))


def peaks(products: dict[str, Any], names: list[str]) -> dict[str, float]:
    """Peak resident size [MB] of each step, inputs and interpreter included; nothing where Linux is missing."""
    if not Path("/proc/self/clear_refs").exists():
        return {}
    names_of_inputs = ("raw", "bias", "flat", "catalog", "bad", "magnitude")
    inputs = {name: products[name] for name in names_of_inputs if name in products}
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_peak_of_chain, args=(inputs, names, queue))
    process.start()
    result = queue.get()
    process.join()
    return result


def _warm_products() -> dict[str, Any]:
    return simulated(SMALL, seed=1)


def tools(products: dict[str, Any], work: Path) -> dict[str, Figures]:
    """SExtractor, PSFEx and SCAMP on the same image, as far as they are installed."""
    extractor = shutil.which("source-extractor") or shutil.which("sex")
    if extractor is None:
        return {}
    _write_inputs(products, work)
    found = {}
    weights = ["-CATALOG_TYPE", "FITS_LDAC", "-GAIN", f"{products['image'].info.gain:.3f}"]
    weights += ["-SATUR_LEVEL", f"{products['image'].info.saturation:.0f}", "-FLAG_IMAGE", "flags.fits"]
    weights += ["-DETECT_MINAREA", "3", "-DETECT_THRESH", "1.5", "-ANALYSIS_THRESH", "1.5", "-VERBOSE_TYPE", "QUIET"]
    weights += ["-PHOT_APERTURES", ",".join(f"{2 * r:.2f}" for r in products["sources"].aperture_radii_px)]
    weights += ["-SEEING_FWHM", f"{products['psf'].fwhm_px * products['image'].info.pixel_scale_arcsec:.2f}"]
    command = [extractor, "image.fits", "-c", "default.sex", "-PARAMETERS_NAME", "default.param", *weights]
    found["source-extractor"] = _tool([*command, "-CATALOG_NAME", "image.cat"], work)
    if psfex := shutil.which("psfex"):
        options = ["-PSFVAR_DEGREES", "2", "-CHECKPLOT_TYPE", "NONE", "-CHECKIMAGE_TYPE", "NONE", "-WRITE_XML", "N"]
        found["psfex"] = _tool([psfex, "image.cat", *options, "-NTHREADS", "1", "-VERBOSE_TYPE", "QUIET"], work)
    if scamp := shutil.which("scamp"):
        options = ["-ASTREF_CATALOG", "FILE", "-ASTREFCAT_NAME", "reference.ldac", "-SOLVE_PHOTOM", "N"]
        options += ["-ASTREFMAG_KEY", "MAG", "-ASTREFMAGERR_KEY", "MAGERR", "-CHECKPLOT_TYPE", "NONE"]
        options += ["-WRITE_XML", "N", "-NTHREADS", "1", "-VERBOSE_TYPE", "QUIET", "-MATCH", "Y"]
        found["scamp"] = _tool([scamp, "image.cat", *options], work)
    return found


def _tool(command: list[str], work: Path) -> Figures:
    """CPU seconds and peak memory of a program."""
    wall = time.perf_counter()
    with (work / "stderr").open("w") as errors:
        process = subprocess.Popen(command, cwd=work, stdout=subprocess.DEVNULL, stderr=errors)
        peak = 0.0
        while True:
            # Not from rusage: that still counts the size of this process before the exec.
            peak = max(peak, _peak_mb(process.pid))
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            time.sleep(0.01)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        message = (work / "stderr").read_text(errors="replace")[-300:]
        print(f"{Path(command[0]).name} failed: {message}", file=sys.stderr)
    return Figures(usage.ru_utime + usage.ru_stime, time.perf_counter() - wall, peak)


def _write_inputs(products: dict[str, Any], work: Path) -> None:
    from astropy.io import fits

    from seechange_assets.products import header_from_text

    image = products["image"]
    header = header_from_text(image.info.wcs_guess)
    fits.PrimaryHDU(image.data, header).writeto(work / "image.fits", overwrite=True)
    fits.PrimaryHDU(image.flags.astype(np.int16)).writeto(work / "flags.fits", overwrite=True)
    extractor = shutil.which("source-extractor") or "sex"
    (work / "default.sex").write_text(subprocess.check_output([extractor, "-d"], text=True))
    names = "NUMBER X_IMAGE Y_IMAGE XWIN_IMAGE YWIN_IMAGE ERRAWIN_IMAGE ERRBWIN_IMAGE ERRTHETAWIN_IMAGE FLUX_AUTO "
    names += "FLUXERR_AUTO FLUX_APER(4) FLUXERR_APER(4) FLUX_RADIUS SNR_WIN ELONGATION FLAGS IMAFLAGS_ISO CLASS_STAR "
    names += "FWHM_IMAGE A_IMAGE B_IMAGE THETA_IMAGE VIGNET(25,25)"
    (work / "default.param").write_text("\n".join(names.split()) + "\n")
    kernel = "CONV NORM\n1 2 1\n2 4 2\n1 2 1\n"
    (work / "default.conv").write_text(kernel)
    for folder in ("/usr/share/source-extractor", "/usr/share/sextractor"):
        if Path(folder, "default.nnw").exists():
            shutil.copy(Path(folder, "default.nnw"), work / "default.nnw")
    _write_reference(products["catalog"], work / "reference.ldac")


def _write_reference(catalog: Any, path: Path) -> None:
    """The star catalogue as SCAMP reads it."""
    from astropy.io import fits

    table = catalog.table
    error = np.full(len(table), 1e-7)
    columns = [
        ("X_WORLD", "1D", "deg", table["ra"]), ("Y_WORLD", "1D", "deg", table["dec"]),
        ("ERRA_WORLD", "1E", "deg", error), ("ERRB_WORLD", "1E", "deg", error),
        ("ERRTHETA_WORLD", "1E", "deg", 0 * error), ("MAG", "1E", "mag", table["mag_g"]),
        ("MAGERR", "1E", "mag", np.full(len(table), 0.01)),
        ("OBSDATE", "1D", "yr", np.full(len(table), catalog.epoch_yr)),
    ]  # fmt: skip
    text = fits.Header([("SIMPLE", True), ("BITPIX", -32), ("NAXIS", 2)]).tostring(padding=True)
    head = fits.BinTableHDU.from_columns(
        [fits.Column("Field Header Card", f"{len(text)}A", array=[text])], name="LDAC_IMHEAD"
    )
    head.header["TDIM1"] = f"(80, {len(text) // 80})"
    objects = fits.BinTableHDU.from_columns(
        [fits.Column(name, form, unit=unit, array=np.asarray(values)) for name, form, unit, values in columns],
        name="LDAC_OBJECTS",
    )
    fits.HDUList([fits.PrimaryHDU(), head, objects]).writeto(path, overwrite=True)


def report(figures: dict[str, Figures], others: dict[str, Figures], title: str) -> dict[str, Any]:
    """Print the tables; the verdicts."""
    print(f"\n{title}\n\n{'step':<22}{'core-s':>9}{'wall-s':>9}{'peak MB':>9}")
    for name, figure in figures.items():
        print(f"{name:<22}{figure.core_s:>9.3f}{figure.wall_s:>9.3f}{figure.peak_mb:>9.0f}")
    chain = [figures[name] for name in IMAGE_TO_ZP]
    total, peak = sum(f.core_s for f in chain), max(f.peak_mb for f in chain)
    print(f"{'image to zp':<22}{total:>9.3f}{sum(f.wall_s for f in chain):>9.3f}{peak:>9.0f}")
    verdicts = {"image_to_zp_core_s": total, "peak_mb": peak}
    print(f"\ntarget {TARGET_CORE_S} core-s: {_met(total <= TARGET_CORE_S)}; {TARGET_MB} MB: {_met(peak <= TARGET_MB)}")
    if others:
        print(f"\n{'step':<22}{'ours':>9}{'theirs':>9}{'ratio':>8}  (core-s; theirs with their file input and output)")
    for name, (parts, tool) in COUNTERPARTS.items():
        if tool in others:
            ours, theirs = sum(figures[part].core_s for part in parts), others[tool].core_s
            verdicts[f"ratio_{tool}"] = theirs / ours
            print(f"{name:<22}{ours:>9.3f}{theirs:>9.3f}{theirs / ours:>8.2f}  {tool} ({others[tool].peak_mb:.0f} MB)")
    return verdicts


def _met(condition: bool) -> str:
    return "met" if condition else "MISSED"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, help="calibrated FITS image instead of the simulated one")
    parser.add_argument("--catalog", type=Path, help="star catalogue of that image")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each step; the best counts")
    parser.add_argument("--no-tools", action="store_true", help="leave out Debian's tools and sfft")
    parser.add_argument("--sfft-python", help="interpreter with the package sfft, if this one has not")
    options = parser.parse_args()
    if (options.image is None) != (options.catalog is None):
        parser.error("--image and --catalog go together")
    names = [*IMAGE_TO_ZP, "diff", "detections", "cutouts"]
    print("warming up ...", flush=True)
    run_steps(_warm_products(), names, 1)
    print("making the image ...", flush=True)
    products = given(options.image, options.catalog) if options.image else simulated(SHAPE)
    figures = run_steps(products, names, options.repeat)
    for name, peak in peaks(products, names).items():
        figures[name].peak_mb = peak
    others = {}
    if not options.no_tools:
        with tempfile.TemporaryDirectory() as folder:
            others = tools(products, Path(folder))
    ny, nx = products["image"].data.shape
    what = options.image or "simulated LS4 CCD"
    title = f"{what}: {nx} x {ny} pixels, {len(products['sources'].table)} sources, warm"
    verdicts = report(figures, others, title)
    if not options.no_tools:
        from benchmarks.subtraction import compare_subtraction

        with tempfile.TemporaryDirectory() as folder:
            verdicts |= compare_subtraction(products, Path(folder), options.sfft_python)
    RESULTS.mkdir(exist_ok=True)
    result = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"), "machine": platform.platform(), "title": title,
        "steps": {name: vars(figure) for name, figure in figures.items()},
        "tools": {name: vars(figure) for name, figure in others.items()}, **verdicts,
    }  # fmt: skip
    path = RESULTS / f"bench_{datetime.now(UTC):%Y%m%dT%H%M%S}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\nwritten to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
