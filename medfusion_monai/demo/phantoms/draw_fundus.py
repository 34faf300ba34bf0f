"""Eye fundus phantoms: drawn colour photographs of the posterior pole whose class is the size of the optic cup.

They replace patients in tests and demonstrations. The label depends only on the vertical cup-to-disc ratio, the height
of the pale cup over that of the optic disc, which is large in glaucoma. Disc, colours, pigment, vessels, position and
exposure vary independently, and neither the size of the disc nor the colour reveals the label.

For tiny networks to learn the ratio at 64 pixels, the field is narrower than the 45 degrees of a clinical photograph,
and the disc is large in it, 0.38 to 0.54 of the image side. To keep the macula in the frame, it is 0.9 to 1.9 disc
diameters from the disc instead of the usual 2.5.
"""

from __future__ import annotations

import numpy as np

from medfusion_monai.demo.phantoms.drawing import checked_size, pixel_grid, smooth_inside

CLASS_NAMES = ("no_referable_glaucoma", "referable_glaucoma")
RATIO_RANGES = ((0.32, 0.42), (0.60, 0.70))

# Lengths are in units of half the shorter image side, y points down, and the origin is the image centre.
NOISE_STD = 0.006
REACH = 2.6  # no pixel of the field is farther from the disc
CURVE_POINTS = 1024  # of a vessel, from the disc to that distance

# Red, green, blue in [0, 1].
PALE_FUNDUS, DARK_FUNDUS = np.array([0.86, 0.44, 0.21]), np.array([0.60, 0.25, 0.11])
CUP = np.array([1.0, 0.85, 0.60])
BLOOD = np.array([0.30, 0.62, 0.55])  # share of each colour absorbed by a wide vein
MACULA = np.array([0.22, 0.42, 0.42])  # and by the centre of the macula


def draw_fundus_phantom(seed: int, label: int, size: int | tuple[int, int] = 64) -> tuple[np.ndarray, dict[str, float]]:
    """Draw one phantom.

    Args:
        seed: decides everything but the class.
        label: 0 for a small cup, 1 for a large one, as in referable glaucoma.
        size: pixels, one number for both sides or (H, W).

    Returns:
        The image, float32 RGB of shape (3, H, W) in [0, 1], and its truth: ``cup_to_disc_ratio``, vertical;
        ``left_eye``, 1 or 0; and in pixels ``disc_height``, ``cup_height``, and the centres ``disc_x``, ``disc_y``,
        ``cup_x``, ``cup_y``, ``macula_x``, ``macula_y``.
    """
    if label not in (0, 1):
        raise ValueError(f"label is {label!r}: use 0 (small cup) or 1 (large cup).")
    height, width = checked_size(size)
    rng = np.random.default_rng([seed, label])
    anatomy = _draw_anatomy(rng, label)
    rows, columns = pixel_grid(height, width)
    color = _color_fundus(rows, columns, anatomy, rng)
    color = _add_vessels(_add_disc(color, rows, columns, anatomy), rows, columns, anatomy, rng)
    image = _expose(color, rows, columns, anatomy, rng)
    return image.astype(np.float32), _truth(anatomy, height, width)


def _draw_anatomy(rng: np.random.Generator, label: int) -> dict[str, float]:
    """Draw the lengths and angles of one eye, from bounded uniform distributions."""
    disc = rng.uniform(0.38, 0.54)  # half the height
    ratio = rng.uniform(*RATIO_RANGES[label])
    left_eye = rng.uniform() < 0.5
    temporal = 1.0 if left_eye else -1.0  # the direction from the disc to the macula along x
    field = rng.uniform(0.97, 0.99)
    disc_x = -temporal * rng.uniform(0.80, 1.0) * (field - 0.06 - disc)
    disc_y = rng.uniform(-0.12, 0.08)
    macula_x = temporal * rng.uniform(0.64, 0.80)
    room = disc * (1 - ratio)
    anatomy = {
        "ratio": ratio,
        "disc": disc,
        "left_eye": float(left_eye),
        "temporal": temporal,
        "field": field,
        "field_x": rng.uniform(-0.005, 0.005),
        "field_y": rng.uniform(-0.005, 0.005),
        "disc_x": disc_x,
        "disc_y": disc_y,
        "disc_shape": rng.uniform(0.84, 0.98),  # width over height
        "disc_tilt": np.deg2rad(rng.uniform(-14, 14)),
        "cup_x": disc_x + temporal * rng.uniform(0.0, 0.3) * room,
        "cup_y": disc_y + rng.uniform(-0.15, 0.15) * room,
        "cup_shape": rng.uniform(0.84, 1.02),
        "cup_tilt": np.deg2rad(rng.uniform(-14, 14)),
        "macula_x": macula_x,
        "macula_y": disc_y + np.tan(np.deg2rad(rng.uniform(2, 9))) * abs(macula_x - disc_x),
        "torsion": np.deg2rad(rng.uniform(-7, 7)),
        "pigment": rng.uniform(0, 1),
        "rim": rng.uniform(0.38, 0.46),  # how far from the fundus' colour to the cup's
        "pallor": rng.uniform(0.88, 1.0),
        "softness": rng.uniform(0.012, 0.021),
    }
    return {key: float(value) for key, value in anatomy.items()}


def _color_fundus(
    rows: np.ndarray, columns: np.ndarray, anatomy: dict[str, float], rng: np.random.Generator
) -> np.ndarray:
    """Return the background (3, H, W): pigment, choroid, the sheen of the nerve fibres and the macula."""
    x, y = columns - anatomy["disc_x"], rows - anatomy["disc_y"]
    squared = x**2 + y**2 + 1e-6
    sheen = rng.uniform(0.05, 0.13) * np.exp(-squared / 0.55) * (0.25 + 0.75 * y**2 / squared)
    texture = rng.uniform(0.2, 0.7) * _choroid(rows, columns, rng)
    from_macula = (columns - anatomy["macula_x"]) ** 2 + (rows - anatomy["macula_y"]) ** 2
    yellow = np.exp(-from_macula / rng.uniform(0.07, 0.12)) + 0.35 * np.exp(-from_macula / 0.012)
    dimming = 1 - rng.uniform(0.75, 1.0) * MACULA[:, None, None] * yellow
    strength = np.array([0.5, 1.0, 1.1])[:, None, None]
    return _fundus_color(anatomy)[:, None, None] * (1 + strength * (sheen + texture)) * dimming


def _fundus_color(anatomy: dict[str, float]) -> np.ndarray:
    return PALE_FUNDUS + anatomy["pigment"] * (DARK_FUNDUS - PALE_FUNDUS)


def _choroid(rows: np.ndarray, columns: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return broad mottling (H, W) of about zero mean: waves of random direction, a third to a whole side long."""
    texture = np.zeros((rows.shape[0], columns.shape[1]), dtype=np.float32)
    for _ in range(5):
        angle, phase, wave = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi), rng.uniform(3.0, 9.0)
        texture += 0.05 * np.cos(wave * (np.cos(angle) * columns + np.sin(angle) * rows) + phase)
    return texture


def _add_disc(color: np.ndarray, rows: np.ndarray, columns: np.ndarray, anatomy: dict[str, float]) -> np.ndarray:
    disc = smooth_inside(_ellipse_distance(rows, columns, "disc", anatomy), anatomy["softness"])
    cup = smooth_inside(_ellipse_distance(rows, columns, "cup", anatomy), anatomy["softness"])
    cup_color = anatomy["pallor"] * CUP
    fundus_color = _fundus_color(anatomy)
    # Red differs less between tissues than green and blue do.
    share = anatomy["rim"] * np.array([1.4, 1.0, 0.95])
    rim_color = fundus_color + share * (cup_color - fundus_color)
    color = color + (rim_color[:, None, None] - color) * disc
    return color + (cup_color - rim_color)[:, None, None] * (cup * disc)


def _half_height(part: str, anatomy: dict[str, float]) -> float:
    return anatomy["disc"] * (anatomy["ratio"] if part == "cup" else 1.0)


def _ellipse_distance(rows: np.ndarray, columns: np.ndarray, part: str, anatomy: dict[str, float]) -> np.ndarray:
    """Return the signed distance, to first order, to the tilted ellipse whose height in the image is the part's."""
    shape, angle = anatomy[f"{part}_shape"], anatomy[f"{part}_tilt"]
    cosine, sine = np.cos(angle), np.sin(angle)
    tall = _half_height(part, anatomy) / np.sqrt(cosine**2 + (shape * sine) ** 2)
    x, y = columns - anatomy[f"{part}_x"], rows - anatomy[f"{part}_y"]
    across, along = (cosine * x + sine * y) / (shape * tall), (cosine * y - sine * x) / tall
    radius = np.sqrt(across**2 + along**2) + 1e-6
    slope = np.sqrt((across / (shape * tall)) ** 2 + (along / tall) ** 2) / radius + 1e-6
    return (radius - 1) / slope


def _add_vessels(
    color: np.ndarray, rows: np.ndarray, columns: np.ndarray, anatomy: dict[str, float], rng: np.random.Generator
) -> np.ndarray:
    """Darken the vessels: each is an angle as a function of the distance from their origin, nasal in the disc."""
    x = anatomy["temporal"] * (columns - anatomy["disc_x"]) + 0.30 * anatomy["disc"]
    up = anatomy["disc_y"] - rows
    cosine, sine = np.cos(anatomy["torsion"]), np.sin(anatomy["torsion"])
    x, up = cosine * x + sine * up, cosine * up - sine * x
    distance, angle = np.sqrt(x**2 + up**2), np.arctan2(up, x)
    index = np.minimum(distance * (CURVE_POINTS / REACH), CURVE_POINTS - 1).astype(np.intp)
    angles, widths, strengths = _draw_curves(rng)
    reach = np.linspace(0, REACH, CURVE_POINTS)
    oblique = 1 / np.sqrt(1 + (reach * np.gradient(angles, reach, axis=1)) ** 2)
    depth = np.zeros_like(distance)
    for curve, cross, half_width, strength in zip(angles, oblique, widths, strengths, strict=True):
        turned = np.abs((angle - curve[index] + np.pi) % (2 * np.pi) - np.pi)
        away = distance * np.minimum(turned, 1.0) * cross[index]
        depth = np.maximum(depth, strength[index] * smooth_inside(away - half_width[index], 0.016))
    within = smooth_inside(_ellipse_distance(rows, columns, "disc", anatomy), 0.04)
    return color * (1 - BLOOD[:, None, None] * depth * (1 - 0.85 * within))


def _draw_curves(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return angle, half width and strength of each vessel at each distance from the disc, (V, CURVE_POINTS) each.

    Angles are zero towards the macula and positive upwards. The arcades are parabolas that open towards the macula.
    """
    reach = np.linspace(0, REACH, CURVE_POINTS)
    curves = []
    for side in (1, -1):
        arcade = _arcade(reach, rng.uniform(0.65, 1.0), rng)
        artery = _arcade(reach, rng.uniform(1.4, 2.2), rng) + 0.10
        nasal = rng.uniform(1.9, 2.3) + 0.25 * np.sin(rng.uniform(1, 2) * reach)
        wide = rng.uniform(0.026, 0.034)
        taper = np.clip(1 - 0.30 * reach, 0.45, 1)
        curves += [
            (side * arcade, wide * taper, np.full_like(reach, 0.9)),
            (side * artery, 0.75 * wide * taper, 0.5 * np.clip(4 * reach, 0.3, 1)),
            (side * nasal, 0.85 * wide * taper, np.full_like(reach, 0.6)),
        ]
        for start, turn in ((rng.uniform(0.40, 0.55), -0.7), (rng.uniform(0.75, 0.95), 0.6)):
            beyond = np.clip(reach - start, 0, None)
            branch = arcade + rng.uniform(0.7, 1.3) * turn * beyond / (0.6 + beyond)
            fade = np.clip(beyond / 0.05, 0, 1) * np.clip(1.4 - beyond, 0, 1)
            curves.append((side * branch, 0.6 * wide * taper, 0.5 * fade))
    angles, widths, strengths = (np.stack(values).astype(np.float32) for values in zip(*curves, strict=True))
    return angles, widths, strengths


def _arcade(reach: np.ndarray, opening: float, rng: np.random.Generator) -> np.ndarray:
    """Return the angle of the parabola up^2 = opening * x where it is ``reach`` from its vertex, slightly wavy."""
    cosine = 2 * reach / (opening + np.sqrt(opening**2 + 4 * reach**2))
    wave = rng.uniform(0.03, 0.06) * np.sin(rng.uniform(5, 8) * reach + rng.uniform(0, 2 * np.pi))
    return np.arccos(cosine) + wave * np.minimum(reach / 0.5, 1)


def _expose(
    color: np.ndarray, rows: np.ndarray, columns: np.ndarray, anatomy: dict[str, float], rng: np.random.Generator
) -> np.ndarray:
    """Vary illumination, brightness, colour cast and gamma as between cameras, and add a little noise."""
    slope_x, slope_y = rng.uniform(-0.10, 0.10, 2)
    from_center = (columns - anatomy["field_x"]) ** 2 + (rows - anatomy["field_y"]) ** 2
    light = (1 + slope_x * columns + slope_y * rows) * (1 - rng.uniform(0.08, 0.25) * from_center)
    gains = rng.uniform(0.78, 1.0) * rng.uniform((0.98, 0.93, 0.92), (1.04, 1.01, 1.06))
    image = np.clip(color * light * gains[:, None, None], 0, 1) ** rng.uniform(0.88, 1.14)
    haze = rng.uniform(0, 0.03)
    field = smooth_inside(np.sqrt(from_center) - anatomy["field"])
    image = (haze + (1 - haze) * image) * field
    return np.clip(image + rng.normal(0, NOISE_STD, image.shape), 0, 1)


def _truth(anatomy: dict[str, float], height: int, width: int) -> dict[str, float]:
    unit = min(height, width) / 2
    return {
        "cup_to_disc_ratio": anatomy["ratio"],
        "left_eye": anatomy["left_eye"],
        "disc_height": 2 * unit * _half_height("disc", anatomy),
        "cup_height": 2 * unit * _half_height("cup", anatomy),
        "disc_x": width / 2 + unit * anatomy["disc_x"],
        "disc_y": height / 2 + unit * anatomy["disc_y"],
        "cup_x": width / 2 + unit * anatomy["cup_x"],
        "cup_y": height / 2 + unit * anatomy["cup_y"],
        "macula_x": width / 2 + unit * anatomy["macula_x"],
        "macula_y": height / 2 + unit * anatomy["macula_y"],
    }
