"""Interpolation between neighbours, in one dimension and in two."""

import jax.numpy as jnp

from tests.benchmarks.corpus.third.case import case


def interpolate(values, places):
    """Between neighbours, by places within 0 and n - 1."""
    low = jnp.clip(jnp.floor(places).astype(jnp.int32), 0, values.shape[0] - 2)
    t = places - low
    return (1 - t) * values[low] + t * values[low + 1]


def interpolate_bwd(wrong, args, y, dy):
    values, places = args
    low = jnp.clip(jnp.floor(places).astype(jnp.int32), 0, values.shape[0] - 2)
    t = places - low
    if wrong == "shares swapped":
        t = 1 - t
    zero = jnp.zeros_like(values)
    dvalues = zero.at[low].add((1 - t) * dy).at[low + 1].add(t * dy)
    if wrong == "duplicates overwritten":
        dvalues = zero.at[low].set((1 - t) * dy) + zero.at[low + 1].set(t * dy)
    if wrong == "nearest":
        dvalues = zero.at[jnp.round(places).astype(jnp.int32)].add(dy)
    dplaces = dy * (values[low + 1] - values[low])
    return dvalues, -dplaces if wrong == "sign of the slope" else dplaces


def bilinear_sample(image, at):
    """[H, W] at [N, 2] rows and columns."""
    low = jnp.floor(at).astype(jnp.int32)
    (i, j), (s, t) = low.T, (at - low).T
    top = (1 - t) * image[i, j] + t * image[i, j + 1]
    bottom = (1 - t) * image[i + 1, j] + t * image[i + 1, j + 1]
    return (1 - s) * top + s * bottom


def bilinear_sample_bwd(wrong, args, y, dy):
    image, at = args
    low = jnp.floor(at).astype(jnp.int32)
    (i, j), (s, t) = low.T, (at - low).T
    a, b, c, d = image[i, j], image[i, j + 1], image[i + 1, j], image[i + 1, j + 1]
    ds = (1 - t) * (c - a) + t * (d - b)
    dt = (1 - s) * (b - a) + s * (d - c)
    if wrong == "rows and columns swapped":
        ds, dt = dt, ds
    if wrong == "slope of the top row alone":
        dt = b - a
    g = (
        jnp.zeros_like(image)
        .at[i, j]
        .add((1 - s) * (1 - t) * dy)
        .at[i, j + 1]
        .add((1 - s) * t * dy)
    )
    if wrong != "bottom row forgotten":
        g = g.at[i + 1, j].add(s * (1 - t) * dy).at[i + 1, j + 1].add(s * t * dy)
    if wrong == "corners transposed":
        g = (
            jnp.zeros_like(image)
            .at[i, j]
            .add((1 - s) * (1 - t) * dy)
            .at[i + 1, j]
            .add((1 - s) * t * dy)
        )
        g = g.at[i, j + 1].add(s * (1 - t) * dy).at[i + 1, j + 1].add(s * t * dy)
    return g, jnp.stack([ds, dt], -1) * dy[:, None]


def at_places(rng):
    return jnp.asarray(rng.standard_normal(6), jnp.float32), jnp.asarray(
        rng.uniform(0.1, 4.9, 7), jnp.float32
    )


def at_points(rng):
    return jnp.asarray(rng.standard_normal((4, 5)), jnp.float32), jnp.asarray(
        rng.uniform(0.1, 2.9, (6, 2)), jnp.float32
    )


CASES = [
    case(interpolate, interpolate_bwd, at_places,
        ("shares swapped", "values", "factors swapped"), ("duplicates overwritten", "values", "duplicates overwritten"),
        ("nearest", "values", "approximation"), ("sign of the slope", "places", "sign")),
    case(bilinear_sample, bilinear_sample_bwd, at_points,
        ("rows and columns swapped", "at", "axes swapped"), ("slope of the top row alone", "at", "term forgotten"),
        ("bottom row forgotten", "image", "term forgotten"), ("corners transposed", "image", "axes swapped")),
]  # fmt: skip
