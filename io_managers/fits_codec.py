"""Products to FITS and back, exactly.

One rule serves every product: arrays become image extensions, tables become binary
tables, everything else is JSON in the extension ``META``. Extension names are field
names (``PSF.COEFFICIENTS`` for nested products), so a file opens in any FITS viewer.
The bytes depend on the product and its provenance only: no time stamps.
"""

import dataclasses
import json
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seechange_assets import products
from seechange_assets.content import is_table
from seechange_assets.errors import ArchiveError

if TYPE_CHECKING:
    from astropy.io.fits import HDUList

META = "META"
_PRODUCT_CLASSES: dict[str, type] = {
    name: value for name, value in vars(products).items() if isinstance(value, type) and dataclasses.is_dataclass(value)
}


def write_product(product: Any, path: Path, cards: dict[str, str]) -> None:
    """Write `product` to a new FITS file; `cards` go into the primary header.

    CHECKSUM and DATASUM are set in every extension.
    """
    from astropy.io import fits

    blocks: dict[str, Any] = {}
    meta = _flatten(product, "", blocks)
    primary = fits.PrimaryHDU()
    for keyword, value in cards.items():
        primary.header[keyword] = value
    hdus = fits.HDUList([primary, *(_to_hdu(name, block, product) for name, block in blocks.items())])
    text = json.dumps(meta, sort_keys=True, separators=(",", ":")).encode()
    hdus.append(fits.ImageHDU(np.frombuffer(text, np.uint8), name=META))
    for hdu in hdus:
        hdu.add_checksum(when="")
    hdus.writeto(path, overwrite=True, output_verify="ignore")  # our own headers: the check is half of the time


def read_product(path: Path, without: Collection[str] = (), *, mapped: bool = False) -> Any:
    """Read a product back, arrays read-only and in native byte order.

    Parameters
    ----------
    path : Path
    without : collection of str
        Fields of the product whose arrays are not read: they come back empty, of shape (0, 0).
    mapped : bool
        Leave images of floating point in the file, in its byte order: only what is looked at is read.

    Raises
    ------
    ArchiveError
        When the file is not one of ours.
    """
    from astropy.io import fits

    try:
        with fits.open(path, memmap=False, character_as_bytes=False) as hdus:
            meta = json.loads(hdus[META].data.tobytes())
            return _restore(meta, hdus, frozenset(name.upper() for name in without), mapped)
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise ArchiveError(f"{path} is not a readable product file: {error}") from error


def _flatten(value: Any, name: str, blocks: dict[str, Any]) -> Any:
    """JSON for `value`; arrays and tables move to `blocks` and leave their name."""
    if dataclasses.is_dataclass(value):
        fields = {
            item.name: _flatten(getattr(value, item.name), f"{name}.{item.name}".strip("."), blocks)
            for item in dataclasses.fields(value)
        }
        return {"product": type(value).__name__, "fields": fields}
    if isinstance(value, np.ndarray) or is_table(value):
        blocks[name.upper()] = value
        return {"hdu": name.upper(), "dtype": None if is_table(value) else value.dtype.str}
    if isinstance(value, tuple):
        return {"tuple": [_flatten(item, name, blocks) for item in value]}
    if isinstance(value, dict):
        return {"dict": {key: _flatten(item, name, blocks) for key, item in value.items()}}
    return value.item() if isinstance(value, np.generic) else value


def _restore(meta: Any, hdus: "HDUList", without: frozenset[str], mapped: bool) -> Any:
    if not isinstance(meta, dict):
        return meta
    if "product" in meta:
        fields = {key: _restore(item, hdus, without, mapped) for key, item in meta["fields"].items()}
        return _PRODUCT_CLASSES[meta["product"]](**fields)
    if "tuple" in meta:
        return tuple(_restore(item, hdus, without, mapped) for item in meta["tuple"])
    if "dict" in meta:
        return {key: _restore(item, hdus, without, mapped) for key, item in meta["dict"].items()}
    if meta["hdu"] in without:
        return np.empty((0, 0), np.dtype(meta["dtype"]).newbyteorder("="))
    return _from_hdu(hdus[meta["hdu"]], meta["dtype"], mapped)


def _to_hdu(name: str, block: Any, product: Any) -> Any:
    from astropy.io import fits

    if is_table(block):
        hdu = fits.table_to_hdu(block)
        hdu.name = name
        return hdu
    hdu = fits.ImageHDU(block, name=name)
    text = _wcs_text(product)
    if text and block.ndim == 2 and "COEFFICIENTS" not in name:
        for card in products.header_from_text(text).cards:
            if card.keyword not in hdu.header and card.keyword not in ("", "COMMENT", "HISTORY", "SIMPLE", "EXTEND"):
                hdu.header.append(card, end=True)
    return hdu


def _wcs_text(product: Any) -> str:
    if isinstance(product, products.Image):
        return product.info.wcs_guess
    if isinstance(product, (products.Difference, products.Reference)):
        return product.wcs.header
    return ""


def _from_hdu(hdu: Any, dtype: str | None, mapped: bool) -> Any:
    if dtype is None:
        return _from_table_hdu(hdu)
    native = np.dtype(dtype).newbyteorder("=")
    if mapped and native.kind == "f" and len(hdu.shape) == 2:
        place = hdu.fileinfo()
        return np.memmap(place["file"].name, native.newbyteorder(">"), "r", place["datLoc"], hdu.shape)
    array = hdu.data
    del hdu.data  # an open file keeps every array it has given: a product would be in memory twice
    if array.dtype == native.newbyteorder() and array.flags.writeable:
        array = array.byteswap(inplace=True).view(native)
    array = np.ascontiguousarray(array).astype(native, copy=False)
    array.setflags(write=False)
    return array


def _from_table_hdu(hdu: Any) -> Any:
    from astropy.table import Column, Table

    table = Table.read(hdu)
    table.convert_bytestring_to_unicode()
    native = {
        name: Column(
            np.ascontiguousarray(table[name], dtype=table[name].dtype.newbyteorder("=")), unit=table[name].unit
        )
        for name in table.colnames
    }
    for column in native.values():
        column.setflags(write=False)
    return Table(native, copy=False)
