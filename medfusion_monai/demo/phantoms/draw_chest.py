"""Chest X-ray phantoms: drawn postero-anterior radiographs whose class is the size of the heart.

They replace patients in tests and demonstrations. The label depends only on the cardiothoracic ratio: heart width over
inner thorax width, considered enlarged above 0.5. Scale, position, exposure and anatomy vary independently, and the
heart's width in pixels does not reveal the label.
"""

from __future__ import annotations

import numpy as np

from medfusion_monai.demo.phantoms.drawing import checked_size, pixel_grid, smooth_inside, smooth_max

CLASS_NAMES = ("no_cardiomegaly", "cardiomegaly")
RATIO_RANGES = ((0.36, 0.47), (0.53, 0.64))

# Lengths are in units of half the shorter image side, y points down, and the origin is the image centre.
NOISE_STD = 0.006


def draw_chest_phantom(seed: int, label: int, size: int | tuple[int, int] = 64) -> tuple[np.ndarray, dict[str, float]]:
    """Draw one phantom.

    Args:
        seed: decides everything but the class.
        label: 0 for a heart of normal size, 1 for an enlarged one.
        size: pixels, one number for both sides or (H, W).

    Returns:
        The image, float32 of shape (1, H, W) in [0, 1], and its truth: ``cardiothoracic_ratio``, and in pixels
        ``heart_width``, ``thorax_width``, ``heart_left``, ``heart_right``, ``thorax_left``, ``thorax_right``.
    """
    if label not in (0, 1):
        raise ValueError(f"label is {label!r}: use 0 (normal heart) or 1 (enlarged heart).")
    height, width = checked_size(size)
    rng = np.random.default_rng([seed, label])
    anatomy = _draw_anatomy(rng, label)
    rows, columns = pixel_grid(height, width)
    # (H, W) each: the patient's own axes, shifted and slightly turned
    shifted_x, shifted_y = columns - anatomy["center_x"], rows - anatomy["center_y"]
    cosine, sine = np.cos(anatomy["tilt"]), np.sin(anatomy["tilt"])
    x, y = cosine * shifted_x + sine * shifted_y, cosine * shifted_y - sine * shifted_x
    density = _project(x, y, anatomy)
    image = _expose(density, rows, columns, rng)
    return image.astype(np.float32)[None], _truth(anatomy, min(height, width) / 2, width)


def _draw_anatomy(rng: np.random.Generator, label: int) -> dict[str, float]:
    """Draw the lengths and angles of one patient, from bounded uniform distributions."""
    thorax = rng.uniform(0.48, 0.86)  # half the inner width
    ratio = rng.uniform(*RATIO_RANGES[label])
    room = 0.90 - thorax
    tall = rng.uniform(0.92, 1.08) * (0.45 * thorax + 0.40)
    anatomy = {
        "ratio": ratio,
        "thorax": thorax,
        "center_x": rng.uniform(-1, 1) * min(0.08, room),
        "center_y": rng.uniform(-0.04, 0.04),
        "tilt": np.deg2rad(rng.uniform(-2.5, 2.5)),
        "apex": -tall,  # top of the lungs
        "base": tall * 0.90,  # costophrenic angles
        "dome": rng.uniform(0.26, 0.33),  # how far the diaphragm rises, in parts of the thorax
        "wall": rng.uniform(0.10, 0.17),
        "heart_share": rng.uniform(0.56, 0.62),  # part of the heart on the patient's left, the image's right
        "heart_tilt": np.deg2rad(rng.uniform(16, 26)),
        "heart_roundness": rng.uniform(0.76, 0.86),
        "armpit": rng.uniform(0.55, 0.70),
        "rib_phase": rng.uniform(0, 1),
        "rib_strength": rng.uniform(0.02, 0.05),
        "vessels": rng.uniform(0.05, 0.11),
        "vessel_phase": rng.uniform(0, 2 * np.pi),
        "lung": rng.uniform(0.20, 0.27),
        "knob": rng.uniform(0.8, 1.2),
    }
    return {key: float(value) for key, value in anatomy.items()}


def _project(x: np.ndarray, y: np.ndarray, anatomy: dict[str, float]) -> np.ndarray:
    """Return how much each pixel's ray is attenuated, about 0 for air and 1 for the spine."""
    body = smooth_inside(_body_distance(x, y, anatomy), 0.03)
    heart_distance = _heart_distance(x, y, anatomy)
    heart, lungs = smooth_inside(heart_distance), smooth_inside(_lung_distance(x, y, heart_distance, anatomy))
    vessels, ribs = _draw_vessels(x, y, anatomy), _draw_ribs(x, y, anatomy)
    spine = smooth_inside(np.abs(x) - 0.085, 0.02)
    disks = 0.5 + 0.5 * np.cos(y * 2 * np.pi / 0.13)
    trachea = smooth_inside(smooth_max(np.abs(x + 0.005) - 0.045, y - anatomy["apex"] - 0.42, 0.03), 0.015)

    soft_tissue = 0.60 + 0.10 * np.exp(-((x / 0.30) ** 2)) + 0.10 * np.clip(y - 0.2, 0, 1)
    lung_tissue = anatomy["lung"] + 0.05 * np.clip(y - 0.1, 0, 1) + vessels
    density = soft_tissue + (lung_tissue - soft_tissue) * lungs
    density += 0.09 * heart * (1 - 0.4 * smooth_inside(_diaphragm_depth(x, y, anatomy)))
    density += (0.055 + 0.02 * disks) * spine - 0.13 * trachea
    density += ribs + _draw_clavicles(x, y, anatomy)
    return density * body


def _outer_wall(y: np.ndarray, anatomy: dict[str, float]) -> np.ndarray:
    """Return half the inner width of the thorax at each height; its maximum is ``thorax``, low in the chest."""
    height = anatomy["base"] - anatomy["apex"]
    depth = np.clip((y - anatomy["apex"]) / height, 0, 1)
    rising = np.clip(depth / 0.74, 0, 1)
    return anatomy["thorax"] * (0.52 + 0.48 * np.sin(np.pi / 2 * rising) ** 0.9 - 0.06 * np.clip(depth - 0.80, 0, 1))


def _diaphragm_depth(x: np.ndarray, y: np.ndarray, anatomy: dict[str, float]) -> np.ndarray:
    """Return how far a point lies above the diaphragm: a dome on each side, the left one of the image higher."""
    side = np.where(x < 0, -1.0, 1.0)
    across = np.abs(x) / anatomy["thorax"]  # 0 at the midline, 1 at the wall
    dome = anatomy["dome"] * anatomy["thorax"] * (1 - ((across - 0.42) / 0.60) ** 2)
    lower = 0.045 * (side > 0)
    return (y - (anatomy["base"] - dome + lower)) * 0.8


def _lung_distance(x: np.ndarray, y: np.ndarray, heart_distance: np.ndarray, anatomy: dict[str, float]) -> np.ndarray:
    away = np.abs(x)
    thorax, apex = anatomy["thorax"], anatomy["apex"]
    wall = (away - _outer_wall(y, anatomy)) * 0.95
    # The mediastinum: narrow at the aortic arch, whose knob bulges to the image's right, wider at the hila.
    hilum = 0.07 * np.exp(-(((y - apex * 0.20) / 0.16) ** 2))
    knob = 0.045 * anatomy["knob"] * np.exp(-(((y - apex * 0.47) / 0.09) ** 2)) * (x > 0)
    medial = smooth_max(0.09 + 0.04 * thorax + hilum + knob - away, -heart_distance, 0.04)
    top = apex + 0.9 * (away - 0.42 * thorax) ** 2 / thorax - y
    lung = smooth_max(smooth_max(wall, top, 0.10), medial, 0.03)
    return np.maximum(lung, _diaphragm_depth(x, y, anatomy))


def _heart_axes(anatomy: dict[str, float]) -> tuple[float, float]:
    """Return the half axes of the tilted ellipse whose width across the image is the ratio's share of the thorax."""
    roundness, angle = anatomy["heart_roundness"], anatomy["heart_tilt"] + anatomy["tilt"]
    half_width = anatomy["ratio"] * anatomy["thorax"]
    long = half_width / np.sqrt(np.cos(angle) ** 2 + (roundness * np.sin(angle)) ** 2)
    return long, roundness * long


def _heart_center(anatomy: dict[str, float]) -> tuple[float, float]:
    half_width = anatomy["ratio"] * anatomy["thorax"]
    dome_top = anatomy["base"] - anatomy["dome"] * anatomy["thorax"]
    return (2 * anatomy["heart_share"] - 1) * half_width, dome_top - 0.05 - 0.27 * half_width


def _heart_distance(x: np.ndarray, y: np.ndarray, anatomy: dict[str, float]) -> np.ndarray:
    long, short = _heart_axes(anatomy)
    center_x, center_y = _heart_center(anatomy)
    cosine, sine = np.cos(anatomy["heart_tilt"]), np.sin(anatomy["heart_tilt"])
    along, across = cosine * (x - center_x) + sine * (y - center_y), cosine * (y - center_y) - sine * (x - center_x)
    radius = np.sqrt((along / long) ** 2 + (across / short) ** 2) + 1e-6
    slope = np.sqrt((along / long**2) ** 2 + (across / short**2) ** 2) / radius + 1e-6
    return (radius - 1) / slope  # first-order distance to an ellipse


def _body_distance(x: np.ndarray, y: np.ndarray, anatomy: dict[str, float]) -> np.ndarray:
    """Trunk, with shoulders that slope down from a neck."""
    away = np.abs(x)
    wall = away - (_outer_wall(y, anatomy) + anatomy["wall"] + 0.10 * np.clip(y - 0.5, 0, 1))
    shoulder_line = anatomy["apex"] - 0.12 + 0.25 * np.clip(away - 0.2, 0, 2) ** 2 + 0.05 * away
    notch = away - _outer_wall(y, anatomy) - anatomy["wall"] - 0.02
    underside = 0.5 * (y - anatomy["apex"] - anatomy["armpit"] - 2.2 * notch)
    arms = smooth_max(smooth_max(shoulder_line - y, underside, 0.06), away - anatomy["thorax"] - 0.48, 0.25)
    neck = smooth_max(away - 0.23, y, 0.05)
    trunk = smooth_max(wall, shoulder_line - y, 0.1)
    return -smooth_max(-np.minimum(trunk, arms), -neck, 0.12)


def _draw_ribs(x: np.ndarray, y: np.ndarray, anatomy: dict[str, float]) -> np.ndarray:
    """Posterior ribs slope down from the spine, anterior ones rise towards it; both are faint bands."""
    thorax = anatomy["thorax"]
    across = np.clip(np.abs(x) / thorax, 0, 1.2)
    cage = smooth_inside(np.abs(x) - _outer_wall(y, anatomy) - 0.03) * smooth_inside(y - anatomy["base"] - 0.1, 0.05)
    cage = cage * smooth_inside(anatomy["apex"] - y, 0.05)
    posterior = (y - 0.30 * thorax * (across - 0.15) ** 2 + 0.04 * across) / 0.165 + anatomy["rib_phase"]
    anterior = (y + 0.42 * thorax * (across - 0.95)) / 0.21 + anatomy["rib_phase"] * 1.7
    bands = _band(posterior) + 0.45 * _band(anterior) * smooth_inside(0.45 - across, 0.06)
    return anatomy["rib_strength"] * bands * cage


def _band(phase: np.ndarray) -> np.ndarray:
    """Return a soft band around each integer, with mean zero to leave the exposure unchanged."""
    return 1 / (1 + np.exp(-6 * (np.cos(2 * np.pi * phase) - 0.35))) - 0.35


def _draw_clavicles(x: np.ndarray, y: np.ndarray, anatomy: dict[str, float]) -> np.ndarray:
    away = np.abs(x)
    middle = anatomy["apex"] + 0.25 - 0.32 * away + 0.03 * np.sin(7 * away)
    return 0.12 * smooth_inside(smooth_max(np.abs(y - middle) - 0.028, np.abs(away - 0.42) - 0.34, 0.03), 0.012)


def _draw_vessels(x: np.ndarray, y: np.ndarray, anatomy: dict[str, float]) -> np.ndarray:
    """Vessels fan out from the hila and fade towards the wall."""
    side = np.where(x < 0, -1.0, 1.0)
    from_x, from_y = np.abs(x) - 0.16, y - anatomy["apex"] * 0.15 + 0.02 * side
    distance = np.sqrt(from_x**2 + from_y**2) + 1e-3
    angle = np.arctan2(from_y, from_x)
    wave = np.cos(7 * angle + 1.1 * np.sin(9 * distance) + anatomy["vessel_phase"] * side)
    return anatomy["vessels"] * (np.exp(-distance / 0.22) + np.exp(-distance / 0.30) * np.clip(wave, 0, 1) ** 2)


def _expose(density: np.ndarray, rows: np.ndarray, columns: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Vary gradients, contrast, brightness and gamma as between machines, and add a little noise."""
    slope_x, slope_y = rng.uniform(-0.04, 0.04, 2)
    density = density * (1 + slope_x * columns + slope_y * rows)
    image = np.clip(density * rng.uniform(0.95, 1.15) + rng.uniform(0.01, 0.05), 0, 1) ** rng.uniform(0.85, 1.15)
    return np.clip(image + rng.normal(0, NOISE_STD, image.shape), 0, 1)


def _truth(anatomy: dict[str, float], unit: float, width: int) -> dict[str, float]:
    half_heart, thorax = anatomy["ratio"] * anatomy["thorax"], anatomy["thorax"]
    center = width / 2 + unit * anatomy["center_x"]
    heart_x, heart_y = _heart_center(anatomy)
    heart = center + unit * (heart_x * np.cos(anatomy["tilt"]) - heart_y * np.sin(anatomy["tilt"]))
    return {
        "cardiothoracic_ratio": float(anatomy["ratio"]),
        "heart_width": float(2 * unit * half_heart),
        "thorax_width": float(2 * unit * thorax),
        "heart_left": float(heart - unit * half_heart),
        "heart_right": float(heart + unit * half_heart),
        "thorax_left": float(center - unit * thorax),
        "thorax_right": float(center + unit * thorax),
    }
