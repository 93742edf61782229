"""A real packet of Rubin's: names, order and types of the fields of ``lsst.v9_0``, as far as it takes to read one."""

import fastavro

#: Letters for types: l long, i int, d double, f float, b boolean, s string, y bytes; in capitals a union with null.
_TYPES = {"l": "long", "i": "int", "d": "double", "f": "float", "b": "boolean", "s": "string", "y": "bytes"}
_FLAGS = (
    "bad cr crCenter edge nodata nodataCenter interpolated interpolatedCenter offimage saturated saturatedCenter "
    "suspect suspectCenter streak streakCenter injected injectedCenter injected_template injected_templateCenter"
)
_SOURCE = (
    (
        "diaSourceId:l visit:l detector:i diaObjectId:L ssObjectId:L parentDiaSourceId:L midpointMjdTai:d ra:d raErr:F "
        "dec:d decErr:F ra_dec_Cov:F x:f xErr:F y:f yErr:F centroid_flag:B apFlux:F apFluxErr:F apFlux_flag:B "
        "apFlux_flag_apertureTruncated:B isNegative:B snr:F psfFlux:F psfFluxErr:F psfLnL:F psfChi2:F psfNdata:I "
        "psfFlux_flag:B psfFlux_flag_edge:B psfFlux_flag_noGoodPixels:B trailFlux:F trailFluxErr:F trailRa:D "
        "trailRaErr:F trailDec:D trailDecErr:F trailLength:F trailLengthErr:F trailAngle:F trailAngleErr:F trailChi2:F "
        "trailNdata:I trail_flag_edge:B dipoleMeanFlux:F dipoleMeanFluxErr:F dipoleFluxDiff:F dipoleFluxDiffErr:F "
        "dipoleLength:F dipoleAngle:F dipoleChi2:F dipoleNdata:I scienceFlux:F scienceFluxErr:F forced_PsfFlux_flag:B "
        "forced_PsfFlux_flag_edge:B forced_PsfFlux_flag_noGoodPixels:B templateFlux:F templateFluxErr:F ixx:F iyy:F "
        "ixy:F ixxPSF:F iyyPSF:F ixyPSF:F shape_flag:B shape_flag_no_pixels:B shape_flag_not_contained:B "
        "shape_flag_parent_source:B extendedness:F reliability:F band:S isDipole:B dipoleFitAttempted:B "
        "timeProcessedMjdTai:d timeWithdrawnMjdTai:D bboxSize:I pixelFlags:B "
    )
    + " ".join(f"pixelFlags_{name}:B" for name in _FLAGS.split())
    + " glint_trail:B"
)
_FORCED = (
    "diaForcedSourceId:l diaObjectId:l ra:d dec:d visit:l detector:i psfFlux:F psfFluxErr:F midpointMjdTai:d "
    "scienceFlux:F scienceFluxErr:F band:S timeProcessedMjdTai:d timeWithdrawnMjdTai:D"
)


def _per_band(names):
    return " ".join(f"{band}_{name}" for band in "ugrizy" for name in names.split())


_OBJECT = " ".join([
    "diaObjectId:l validityStartMjdTai:d ra:d raErr:F dec:d decErr:F ra_dec_Cov:F",
    _per_band("psfFluxMean:F psfFluxMeanErr:F psfFluxSigma:F psfFluxNdata:I fpFluxMean:F fpFluxMeanErr:F"),
    _per_band("scienceFluxMean:F scienceFluxMeanErr:F"),
    _per_band("psfFluxMin:F psfFluxMax:F psfFluxMaxSlope:F psfFluxErrMean:F"),
    "firstDiaSourceMjdTai:D lastDiaSourceMjdTai:D nDiaSources:i",
])  # fmt: skip


def _record(name, fields):
    kinds = [field.split(":") for field in fields.split()]
    kinds = [(field, ["null", _TYPES[kind.lower()]] if kind.isupper() else _TYPES[kind]) for field, kind in kinds]
    return {"type": "record", "name": name, "fields": [{"name": field, "type": kind} for field, kind in kinds]}


def read_lsst_packet(message):
    """The record behind Confluent's header; packets of solar system objects are not for this."""
    schema = _record("alert", "diaSourceId:l observation_reason:S target_name:S")
    schema["fields"] += [
        {"name": "diaSource", "type": _record("diaSource", _SOURCE)},
        {"name": "prvDiaSources", "type": ["null", {"type": "array", "items": "diaSource"}]},
        {"name": "prvDiaForcedSources", "type": ["null", {"type": "array", "items": _record("forced", _FORCED)}]},
        {"name": "diaObject", "type": ["null", _record("diaObject", _OBJECT)]},
        {"name": "ssSource", "type": ["null"]},
        {"name": "MPCORB", "type": ["null"]},
        *_record("", "cutoutDifference:Y cutoutScience:Y cutoutTemplate:Y")["fields"],
    ]
    return fastavro.schemaless_reader(message, fastavro.parse_schema(schema), None)
