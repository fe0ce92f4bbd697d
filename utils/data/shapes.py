"""The built-in data set of ``--dataset shapes``: ten classes of 32x32 colour pictures.

Seven classes are outlines, three are textures (stripes, checker, dots) on a patch whose outline
says nothing about the class. Place, size, rotation and colours are random, the background is uneven
and noisy, a bar lies behind the object and another may cover part of it. The ranges are set so that
capacity counts: after 8 epochs on 10,000 pictures a VGG-like net of 0.3 M parameters is right on
about 92 % of 2,000 others, and with a quarter of the channels on about 85 %.

The same call gives the same bits on every machine: the generator is asked for uniform numbers
only, and every later step is an operation that IEEE 754 rounds in one way (no sin, exp or matrix
product, whose last bits depend on the processor).
"""

from math import cos, pi, sin

import numpy as np

CLASSES = tuple("circle ring crescent triangle square star cross stripes checker dots".split())
_TEXTURES = CLASSES[7:]
_SIZE = 32
# Pictures are drawn in blocks, each from a generator of its own, so that a picture depends on the
# seed and its index only. A multiple of ten, since labels are dealt ten by ten.
_BLOCK = 200


def draw_shapes(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The first ``count`` pictures of the endless sequence that ``seed`` stands for.

    Gives images, uint8 [count, 32, 32, 3] (height, width, RGB), and labels, int64 [count], indices
    into ``CLASSES``. Asking for more pictures leaves the earlier ones as they were. Labels are
    dealt ten by ten, each ten being all the classes in a random order. Raises ValueError where
    ``count`` or ``seed`` is negative.
    """
    images, labels = np.empty((count, _SIZE, _SIZE, 3), np.uint8), np.empty(count, np.int64)
    for start in range(0, count, _BLOCK):
        rng = np.random.Generator(np.random.PCG64([seed, start // _BLOCK]))
        block = slice(start, start + _BLOCK)
        images[block], labels[block] = (x[: count - start] for x in _draw_block(rng))
    return images, labels


def _draw_block(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw ``_BLOCK`` pictures, uint8 [_BLOCK, 32, 32, 3], and their labels, int64 [_BLOCK]."""
    labels = rng.random((_BLOCK // len(CLASSES), len(CLASSES))).argsort(axis=1).reshape(-1)
    base = _uniform(rng, 0.1, 0.6, 3)
    canvas = base + _smooth_noise(rng) * _uniform(rng, 0.0, 0.4, 1)
    _paint_bar(rng, canvas)

    distance, blend = _objects(rng, labels)
    # Objects are brighter than their background, and textures alternate with a darker colour.
    # One picture in six is faint, which keeps the best net from being right on all of them.
    contrast = np.minimum(_uniform(rng, 0.0, 6.0, 1), 1)
    first = base + contrast * _uniform(rng, 0.1, 0.5, 3)
    second = first - contrast * _uniform(rng, 0.1, 0.5, 3)
    _paint(canvas, distance, first + (second - first) * blend[..., None])
    _paint_bar(rng, canvas)

    noise = rng.random(canvas.shape, np.float32) - np.float32(0.5)
    canvas += noise * _uniform(rng, 0.1, 0.4, 1)
    return np.floor(np.clip(canvas, 0, 1) * 255 + np.float32(0.5)).astype(np.uint8), labels


def _objects(rng: np.random.Generator, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Signed distance in pixels (negative inside) and share of the second colour, [n, 32, 32]."""
    radius = _uniform(rng, 7.0, 12.0)
    u, v = _turned_grid(rng, reach=5.0)
    fatness, pitch = _uniform(rng, 0.0, 1.0), _uniform(rng, 4.0, 7.0)
    patches = (rng.random(len(labels)) * 3).astype(np.int64)
    distance = np.empty_like(u)
    blend = np.clip(0.25 + 0.25 * v / radius, 0, 1)
    for label, name in enumerate(CLASSES):
        own = np.flatnonzero(labels == label)
        if name in _TEXTURES:
            blend[own] = _texture(name, u[own], v[own], pitch[own])
            for patch, outline in enumerate(("circle", "triangle", "square")):
                some = own[patches[own] == patch]
                distance[some] = _outline(outline, u[some], v[some], radius[some], fatness[some])
        else:
            distance[own] = _outline(name, u[own], v[own], radius[own], fatness[own])
    return distance, blend


def _outline(
    name: str, u: np.ndarray, v: np.ndarray, radius: np.ndarray, fatness: np.ndarray
) -> np.ndarray:
    """Signed distance in pixels to a shape that reaches some ``radius`` pixels from the origin."""
    match name:
        case "circle":
            return np.sqrt(u * u + v * v) - 0.9 * radius
        case "ring":
            width = (0.15 + 0.15 * fatness) * radius
            return np.abs(np.sqrt(u * u + v * v) - radius + width) - width
        case "crescent":
            bite = u - (0.35 + 0.25 * fatness) * radius
            bitten = 0.8 * radius - np.sqrt(bite * bite + v * v)
            return np.maximum(np.sqrt(u * u + v * v) - radius, bitten)
        case "triangle":
            return _polygon_sides(3, u, v).max(axis=0) - 0.55 * radius
        case "square":
            return _polygon_sides(4, u, v).max(axis=0) - 0.75 * radius
        case "star":
            # A point of a five-pointed star may lie beyond one of the five lines, not two.
            return np.partition(_polygon_sides(5, u, v), 3, axis=0)[3] - 0.4 * radius
        case _:  # cross
            long, short = np.maximum(np.abs(u), np.abs(v)), np.minimum(np.abs(u), np.abs(v))
            return np.maximum(long - 0.95 * radius, short - (0.2 + 0.15 * fatness) * radius)


def _polygon_sides(sides: int, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Distance from the origin along each side's normal, [sides, n, 32, 32]."""
    angles = [2 * pi * k / sides for k in range(sides)]
    # Rounded, because the last bit of a cosine is the platform's choice.
    return np.stack([u * round(sin(a), 6) + v * round(cos(a), 6) for a in angles])


def _texture(name: str, u: np.ndarray, v: np.ndarray, pitch: np.ndarray) -> np.ndarray:
    """Share of the second colour, 0 to 1, of a texture that repeats every ``pitch`` pixels."""
    # Distances in pixels to the middle of the period, which is where the dots are.
    across, along = (np.abs(x / pitch - np.floor(x / pitch) - 0.5) * pitch for x in (u, v))
    if name == "dots":
        return np.clip(0.33 * pitch - np.sqrt(across * across + along * along) + 0.5, 0, 1)
    a, b = (np.clip(x - 0.25 * pitch + 0.5, 0, 1) for x in (across, along))
    return a if name == "stripes" else a + b - 2 * a * b  # or checker


def _turned_grid(rng: np.random.Generator, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """Pixel coordinates about a centre within ``reach`` of the middle, turned: [_BLOCK, 32, 32]."""
    pixels = np.arange(_SIZE, dtype=np.float32) - (_SIZE - 1) / 2
    x = pixels - _uniform(rng, -reach, reach)
    y = pixels[:, None] - _uniform(rng, -reach, reach)
    # A rotation without a cosine: half-angle tangents from -1 to 1 give half a turn, and the sign
    # the other half.
    t = _uniform(rng, -1.0, 1.0)
    sign = np.where(_uniform(rng, -1.0, 1.0) < 0, np.float32(-1), np.float32(1))
    c, s = sign * (1 - t * t) / (1 + t * t), sign * 2 * t / (1 + t * t)
    return x * c + y * s, y * c - x * s


def _paint_bar(rng: np.random.Generator, canvas: np.ndarray) -> None:
    """Paint one thin bar of random place, length and colour on every picture."""
    u, v = _turned_grid(rng, reach=16.0)
    length, width = _uniform(rng, 2.0, 8.0), _uniform(rng, 0.6, 1.8)
    distance = np.maximum(np.abs(u) - length, np.abs(v) - width)
    _paint(canvas, distance, _uniform(rng, 0.0, 1.0, 3))


def _paint(canvas: np.ndarray, distance: np.ndarray, colour: np.ndarray) -> None:
    """Put ``colour`` where ``distance`` is negative, with an edge one pixel soft."""
    canvas += (colour - canvas) * np.clip(0.5 - distance, 0, 1)[..., None]


def _smooth_noise(rng: np.random.Generator) -> np.ndarray:
    """Noise from -0.5 to 0.5 without detail finer than 8 pixels, [_BLOCK, 32, 32, 3]."""
    noise = rng.random((_BLOCK, 5, 5, 3), np.float32) - np.float32(0.5)
    low, step = np.divmod(np.arange(_SIZE), 8)
    step = (step / 8).astype(np.float32)[:, None]
    rows = noise[:, low] + (noise[:, low + 1] - noise[:, low]) * step[..., None]
    return rows[:, :, low] + (rows[:, :, low + 1] - rows[:, :, low]) * step


def _uniform(rng: np.random.Generator, low: float, high: float, *channels: int) -> np.ndarray:
    """One number for each picture, or for each of its channels, float32 [_BLOCK, 1, 1, ...]."""
    # Not rng.uniform: compiled code may fuse its multiplication and addition into one rounding.
    return rng.random((_BLOCK, 1, 1, *channels), np.float32) * (high - low) + low
