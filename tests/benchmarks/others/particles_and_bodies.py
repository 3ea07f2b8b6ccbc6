"""Calls of jax-md and MuJoCo MJX."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import jax_md
from jax_md import energy, quantity, rigid_body, space
from mujoco import mjx
from mujoco.mjx._src import collision_sdf

from tests.benchmarks.others.call import Calls, Table, array, by, normal, unit


def _from(path: str, name: str) -> Any:
    import importlib

    return getattr(importlib.import_module(path), name)


def _lattice_energy(_: Any, r: Any) -> Any:
    displacement, _ = space.periodic_general(jnp.eye(2) * 2.0)
    return energy.soft_sphere_pair(displacement)(r)


JAX_MD: Calls = {
    "jax_md.space": [
        by(lambda _, box, r: space.transform(box, r), normal(2, 2), normal(3, 2)),
        by(lambda _, r: space.periodic(2.0)[0](r[0], r[1]), normal(2, 3)),
        by(lambda _, r: space.distance(r), normal(4, 3)),
    ],
    "jax_md.energy": [
        by(_lattice_energy, unit(4, 2)),
        by(lambda _, r: energy.lennard_jones_pair(space.free()[0])(r), normal(4, 2)),
        by(lambda _, r: energy.morse_pair(space.free()[0])(r), normal(4, 2)),
        by(lambda _, r: quantity.force(energy.soft_sphere_pair(space.free()[0]))(r), unit(4, 2)),
    ],
    "jax_md.rigid_body": [
        by(
            lambda _, q, v: rigid_body.quaternion_rotate(rigid_body.Quaternion(q), v),
            array(0.5, 0.5, -0.5, 0.5),
            normal(3),
        ),
    ],
    "jax_md.reaxff": [
        by(
            lambda _, x: _from("jax_md.mm_forcefields.reaxff.reaxff_helper", "safe_sqrt")(x),
            array(0.5, 4.0, 0.0),
        ),
    ],
    "jax_md.electrostatics": [
        by(
            lambda _, box, r: _from("jax_md._energy.electrostatics", "transform_gradients")(box, r),
            normal(3, 3),
            normal(2, 3),
        ),
        by(
            lambda _, box, r: _from(
                "jax_md.mm_forcefields.nonbonded.electrostatics", "transform_gradients"
            )(box, r),
            normal(3, 3),
            normal(2, 3),
        ),
    ],
    "jax_md.uma": [
        by(
            lambda _, x: _from("jax_md._nn.uma.common.rotation", "safe_acos")(x),
            array(0.5, -0.3, 1.0),
        ),
        by(
            lambda _, y, x: _from("jax_md._nn.uma.common.rotation", "safe_atan2")(y, x),
            normal(3),
            normal(3),
        ),
        by(
            lambda _, x, w: _from("jax_md._nn.uma.kernels", "_segment_mm_2d")(
                x, w, jnp.array([2, 1, 2])
            ),
            normal(5, 3),
            normal(3, 2, 3),
        ),
    ],
}
MJX: Calls = {
    "mjx.collision_sdf": [
        by(lambda _, p, s: collision_sdf._cylinder(p, s), array(1.5, 0.2, 0.3), array(1, 1)),
        by(lambda _, p, s: collision_sdf._cylinder(p, s), array(0.2, 0.3, 0.9), array(1, 1)),
        by(lambda _, p, s: collision_sdf._ellipsoid(p, s), array(0.2, 0.3, 0.9), array(1, 2, 3)),
    ],
    "mjx.math": [
        by(lambda _, x: mjx._src.math.norm(x), normal(3)),
        by(lambda _, x: mjx._src.math.normalize_with_norm(x), normal(3)),
    ],
}


def tables() -> Iterator[Table]:
    """Two packages."""
    yield Table("jax_md", jax_md, JAX_MD, [], {})
    yield Table("mjx", mjx, MJX, [], {})
