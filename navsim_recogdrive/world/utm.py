"""From UTM metres to longitude and latitude, which is what nuPlan's GeoPackages store.

Krueger's series to the sixth order in the third flattening n (Karney, "Transverse Mercator with an accuracy of a few
nanometers", J. Geodesy 85, 2011, equations 11, 36 and 15-18): exact to nanometres within a zone.
"""

from __future__ import annotations

import numpy as np

from navsim_recogdrive.world.geometry import FloatArray

_EQUATORIAL_RADIUS_M = 6378137.0
_FLATTENING = 1.0 / 298.257223563
_SCALE = 0.9996
_FALSE_EASTING_M = 500000.0

_N = _FLATTENING / (2.0 - _FLATTENING)
_ECCENTRICITY_SQUARED = _FLATTENING * (2.0 - _FLATTENING)
_RECTIFYING_RADIUS_M = _EQUATORIAL_RADIUS_M / (1.0 + _N) * (1.0 + _N**2 / 4.0 + _N**4 / 64.0 + _N**6 / 256.0)
_BETA = (
    _N / 2 - 2 * _N**2 / 3 + 37 * _N**3 / 96 - _N**4 / 360 - 81 * _N**5 / 512 + 96199 * _N**6 / 604800,
    _N**2 / 48 + _N**3 / 15 - 437 * _N**4 / 1440 + 46 * _N**5 / 105 - 1118711 * _N**6 / 3870720,
    17 * _N**3 / 480 - 37 * _N**4 / 840 - 209 * _N**5 / 4480 + 5569 * _N**6 / 90720,
    4397 * _N**4 / 161280 - 11 * _N**5 / 504 - 830251 * _N**6 / 7257600,
    4583 * _N**5 / 161280 - 108847 * _N**6 / 3991680,
    20648693 * _N**6 / 638668800,
)


def utm_to_lonlat(points: FloatArray, epsg: int) -> FloatArray:
    """Longitude and latitude in degrees, ``[..., 2]``, of ``points [..., 2]`` (easting, northing).

    Raises:
        ValueError: if ``epsg`` is not a northern UTM zone of WGS 84 (32601..32660).
    """
    zone = epsg - 32600
    if not 1 <= zone <= 60:
        raise ValueError(f"expected the EPSG code of a northern UTM zone (32601..32660), found {epsg}")
    points = np.asarray(points, dtype=np.float64)
    easting = points[..., 0] - _FALSE_EASTING_M
    xi = points[..., 1] / (_SCALE * _RECTIFYING_RADIUS_M)
    eta = easting / (_SCALE * _RECTIFYING_RADIUS_M)
    xi_sphere, eta_sphere = xi.copy(), eta.copy()
    for order, beta in enumerate(_BETA, start=1):
        xi_sphere -= beta * np.sin(2 * order * xi) * np.cosh(2 * order * eta)
        eta_sphere -= beta * np.cos(2 * order * xi) * np.sinh(2 * order * eta)
    conformal = np.sin(xi_sphere) / np.hypot(np.sinh(eta_sphere), np.cos(xi_sphere))
    tangent = _geodetic_tangent(conformal)
    longitude = np.degrees(np.arctan2(np.sinh(eta_sphere), np.cos(xi_sphere))) + (6.0 * zone - 183.0)
    return np.stack([longitude, np.degrees(np.arctan(tangent))], axis=-1)


def _geodetic_tangent(conformal: FloatArray) -> FloatArray:
    """Tangent of the latitude from the tangent of the conformal latitude, by Newton's method."""
    e = _ECCENTRICITY_SQUARED**0.5
    tangent = conformal / (1.0 - _ECCENTRICITY_SQUARED)
    for _ in range(5):
        root = np.sqrt(1.0 + tangent**2)
        sigma = np.sinh(e * np.arctanh(e * tangent / root))
        guess = tangent * np.sqrt(1.0 + sigma**2) - sigma * root
        tangent = tangent + (conformal - guess) / np.sqrt(1.0 + guess**2) * (
            1.0 + (1.0 - _ECCENTRICITY_SQUARED) * tangent**2
        ) / ((1.0 - _ECCENTRICITY_SQUARED) * root)
    return tangent
